"""Orderings (h) to (j): whole models against each other, and MAXI against CLIP as it is.

Those have to hold that held over five seeds when they were first run.
"""

from __future__ import annotations

import itertools

from alt.evaluate.spread import mean_std
from alt.tables import plus_minus

from .outcomes import Found, Ordering, Series, make_row

__all__ = ["system_orderings"]

UNSEEN = ("zero-shot transfer-a", "zero-shot transfer-b")
MAXI = ("MAXI", "MAXI 50 % wrong names", "MAXI 100 % wrong names")
CLIP = "CLIP-Mean photo prompt"
SHARES = ("match p=1", "match p=0.9", "match p=0.5", "match p=0.3")


def system_orderings(found: Found) -> list[Ordering]:
    """Returns the statements on whole models, then what the papers say of them, which is only reported."""
    one, mean, xclip = "tuned CLIP-One", "tuned CLIP-Mean", "tuned X-CLIP"
    rows = [
        _ahead(
            found,
            "h",
            "everything trained is no worse than a frozen tower",
            "tuned ALT",
            "ALT strategy frozen",
            gated=True,
        ),
        _ahead(found, "i", "motion: X-CLIP is ahead of the mean", xclip, mean, "seen motion", gated=True),
        _ahead(found, "i", "motion: the mean is ahead of one frame", mean, one, "seen motion", gated=True),
    ]
    for name in MAXI:
        statement = f"unseen classes: {name} is ahead of CLIP as it is"
        rows += [_unseen(found, statement, name, CLIP, gated=True), _matching(found, name)]
    statement = "unseen classes: bags of texts are ahead of pseudo-labels"
    rows.append(_unseen(found, statement, "MAXI", "pseudo-labels", gated=True))
    rows += [_merging(found, name) for name in ("X-CLIP", "ViFi-CLIP")]
    rows.append(_strategies(found))
    pairs = (
        ("prompts help X-CLIP", xclip, "tuned X-CLIP no prompts"),
        ("X-CLIP is ahead of the mean", xclip, mean),
        ("all frames in one sequence are ahead of one frame", "tuned CLIP-Joint", one),
        ("a trained text tower helps the mean", "tuned ViFi-CLIP", mean),
        ("ALT is ahead of X-CLIP", "tuned ALT", xclip),
    )
    return rows + [_everywhere(found, *pair) for pair in pairs]


def _ahead(
    found: Found, key: str, statement: str, first: str, second: str, name: str = "seen", gated: bool = False
) -> Ordering:
    gain = found.difference(first, second, name)
    text = f"{first} {found.get(first, name)}, {second} {found.get(second, name)}, gain {_signed(gain)}"
    return make_row(key, statement, gated, [gain], gain is not None and gain.mean >= 0, text)


def _unseen(found: Found, statement: str, first: str, second: str, gated: bool = False) -> Ordering:
    gain = found.mean_difference(first, second, UNSEEN)
    text = f"{first} {found.mean_of(first, UNSEEN)}, {second} {found.mean_of(second, UNSEEN)}, gain {_signed(gain)}"
    return make_row("j", statement, gated, [gain], gain is not None and gain.mean > 0, text)


def _matching(found: Found, name: str) -> Ordering:
    statement = f"{name}: the fewer clips are kept, the more of their names are right"
    shares = [found.get(name, share) for share in SHARES]
    means = [share.mean for share in shares if share is not None]
    text = ", ".join(f"{label.removeprefix('match ')} {share} %" for label, share in zip(SHARES, shares, strict=True))
    return make_row("j", statement, True, shares, means == sorted(means), text)


def _merging(found: Found, name: str) -> Ordering:
    statement = f"{name}: as r grows GMACs fall, and accuracy does not rise by more than 2 points"
    methods = (f"tuned {name}", f"tuned {name} r=2", f"tuned {name} r=4")
    parts = [found.get(method, measure) for measure in ("seen", "gmacs") for method in methods]
    accuracy, costs = parts[:3], parts[3:]
    holds = all(b.mean - a.mean <= 2 for a, b in itertools.combinations([p for p in accuracy if p], 2))
    holds = holds and all(b.mean < a.mean for a, b in itertools.pairwise([p for p in costs if p]))
    text = ", ".join(
        f"r={2 * i} {a} at {c.mean:.4f} GMACs" for i, (a, c) in enumerate(zip(accuracy, costs, strict=True)) if c
    )
    return make_row("c", statement, False, parts, holds, text)


def _strategies(found: Found) -> Ordering:
    statement = "the more of the tower is trained, the better: frozen, S, SM, STM, everything (T7)"
    methods = [*(f"ALT strategy {name}" for name in ("frozen", "s", "sm", "stm")), "tuned ALT"]
    seen = [found.get(method, "seen") for method in methods]
    means = [part.mean for part in seen if part is not None]
    text = ", ".join(f"{method} {part}" for method, part in zip(methods, seen, strict=True))
    return make_row("paper", statement, False, seen, means == sorted(means), text)


def _everywhere(found: Found, statement: str, first: str, second: str) -> Ordering:
    gains = {name: found.difference(first, second, name) for name in ("seen", "2-shot", "16-shot", *UNSEEN)}
    holds = all(gain.mean >= 0 for gain in gains.values() if gain is not None)
    text = ", ".join(f"{name} {_signed(gain)}" for name, gain in gains.items())
    return make_row("paper", statement, False, list(gains.values()), holds, text)


def _signed(gain: Series | None) -> str:
    return "" if gain is None else plus_minus(*mean_std(gain), signed=True)
