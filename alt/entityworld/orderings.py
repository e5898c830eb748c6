"""Orderings of the methods: statements that must hold over seeds, and others that are only reported."""

from __future__ import annotations

import itertools

from alt.evaluate.spread import mean_std
from alt.tables import plus_minus

from .outcomes import Found, Ordering, Results, make_row
from .system_orderings import system_orderings

__all__ = ["Ordering", "Results", "orderings"]


def orderings(results: Results, *, classes: int, steps: int) -> list[Ordering]:
    """Returns all statements in order. Orderings with missing data are reported as "not run".

    Args:
        results: see ``Results``. classes: number of seen classes. steps: training steps of the adapters.
    """
    found = Found(results)
    rows = [_reversal_blind(found), _reversal_seen(found, steps), _motion_family(found), _merging(found)]
    rows += [_grounding(found), _shots(found), _initialisation(found), _chance(found, classes)]
    rows += _reported(found)
    rows += system_orderings(found)
    return rows


NAME = "ALT r=2"  # the model with its defaults
BLIND = ("CLIP-Mean", "MLP", "ALT no conv")


def _reversal_blind(found: Found) -> Ordering:
    flipped = {name: found.get(name, "changed by reversal") for name in BLIND}
    known = {name: value for name, value in flipped.items() if value is not None}
    text = ", ".join(f"{name} {max(value):.2f} %" for name, value in known.items())
    holds = len(known) == len(flipped) and all(max(value) == 0 for value in known.values())
    statement = f"played backwards, no decision of {', '.join(BLIND)} changes"
    return make_row("a", statement, True, list(flipped.values()), holds, f"decisions changed: {text}")


def _reversal_seen(found: Found, steps: int) -> Ordering:
    statement = f"played backwards, MIT and ALT lose 20 points or more (after {steps} steps)"
    drops = {}
    for name in ("MIT", NAME):
        forward, backward = found.get(name, "seen"), found.get(name, "reversed")
        drops[name] = None if forward is None or backward is None else forward.minus(backward)
    holds = all(drop is not None and drop.mean >= 20 for drop in drops.values())
    text = ", ".join(f"{name} {drop}" for name, drop in drops.items())
    return make_row("a", statement, True, list(drops.values()), holds, f"points lost: {text}")


def _motion_family(found: Found) -> Ordering:
    statement = "classes told apart by their motion: ALT within 5 points of MIT or ahead, both ahead of the mean"
    names = (NAME, "MIT", "MLP", "CLIP-Mean")
    alt, mit, mlp, mean = parts = [found.get(name, "seen motion") for name in names]
    holds = (
        alt is not None
        and mit is not None
        and mlp is not None
        and mean is not None
        and alt.mean >= mit.mean - 5
        and min(alt.mean, mit.mean) > max(mlp.mean, mean.mean)
    )
    text = ", ".join(f"{name} {part}" for name, part in zip(names, parts, strict=True))
    return make_row("b", statement, True, parts, holds, text)


def _merging(found: Found) -> Ordering:
    statement = "as r grows GMACs fall, and accuracy does not rise by more than 2 points at any r over a smaller one"
    names = ("ALT r=0", "ALT r=2", "ALT r=4", "ALT r=6")
    accuracy = [found.get(name, "seen") for name in names]
    cost = [found.get(name, "gmacs") for name in names]
    holds = False
    if all(part is not None for part in accuracy + cost):
        means = [part.mean for part in accuracy if part is not None]
        costs = [part.mean for part in cost if part is not None]
        holds = all(b - a <= 2 for i, a in enumerate(means) for b in means[i + 1 :])
        holds = holds and all(b < a for a, b in itertools.pairwise(costs))
    text = ", ".join(
        f"{name.removeprefix('ALT ')} {a} at {c.mean:.4f} GMACs"
        for name, a, c in zip(names, accuracy, cost, strict=True)
        if a is not None and c is not None
    )
    return make_row("c", statement, True, accuracy + cost, holds, text)


def _grounding(found: Found) -> Ordering:
    planted, wrong = found.get(NAME, "planted"), found.get(NAME, "wrong")
    statement = "the planted object is among a frame's entities five times as often as a wrong object"
    holds = planted is not None and wrong is not None and planted.mean >= 5 * wrong.mean
    return make_row(
        "d", statement, True, [planted, wrong], holds, f"planted {planted} %, wrong {wrong} % of the frames"
    )


def _shots(found: Found) -> Ordering:
    few, many = found.get(NAME, "2-shot"), found.get(NAME, "16-shot")
    holds = few is not None and many is not None and many.mean > few.mean
    return make_row("e", "16 shots are better than 2", True, [few, many], holds, f"2-shot {few}, 16-shot {many}")


def _initialisation(found: Found) -> Ordering:
    gain = found.difference(NAME, "ALT literal init", "2-shot")
    one, other = found.get(NAME, "2-shot"), found.get("ALT literal init", "2-shot")
    statement = "2-shot: residual, zero-initialised outputs are better than the literal initialisation"
    holds = gain is not None and gain.mean > 0
    return make_row("f", statement, True, [gain], holds, f"{one} against {other}, gain {gain}")


def _chance(found: Found, classes: int) -> Ordering:
    accuracy = found.get(NAME, "seen")
    holds = accuracy is not None and accuracy.mean >= 500 / classes
    statement = f"ALT is right five times as often as chance ({100 / classes:.1f} %)"
    return make_row("chance", statement, True, [accuracy], holds, f"{accuracy} %")


def _reported(found: Found) -> list[Ordering]:
    """Returns statements that the papers make or we expected, which are reported whatever the outcome."""
    rows = []
    pairs = (
        ("g", "similarity scale 10 is no worse than the literal 1", "ALT scale 10", "ALT scale 1"),
        ("g", "similarity scale 100 is no worse than the literal 1", "ALT scale 100", "ALT scale 1"),
        ("paper", "ALT is ahead of MIT", NAME, "MIT"),
        ("paper", "aligned regions are ahead of the aligned class token (T5)", NAME, "ALT cls only"),
        ("paper", "entity queries are ahead of random ones (C3)", NAME, "ALT random queries"),
        ("paper", "all entities are ahead of objects alone (C3)", NAME, "ALT objects"),
        ("paper", "all entities are ahead of body parts alone (C3)", NAME, "ALT body parts"),
        ("paper", "all entities are ahead of scenes alone (C3)", NAME, "ALT scenes"),
        ("paper", "all entities are ahead of motions alone (C3)", NAME, "ALT motions"),
        ("paper", "self-attention helps (C4)", NAME, "ALT no SA"),
        ("paper", "the convolution helps (C4)", NAME, "ALT no conv"),
        ("paper", "merging two tokens a block costs nothing (T8)", NAME, "ALT r=0"),
        ("paper", "a trained method is ahead of CLIP-Mean", NAME, "CLIP-Mean"),
    )
    measures = ("seen", "2-shot", "16-shot", "zero-shot transfer-a", "zero-shot transfer-b")
    for key, statement, first, second in pairs:
        gains = {name: found.difference(first, second, name) for name in measures}
        known = {name: gain for name, gain in gains.items() if gain is not None}
        holds = bool(known) and all(gain.mean >= 0 for gain in known.values())
        text = ", ".join(f"{name} {plus_minus(*mean_std(gain), signed=True)}" for name, gain in known.items())
        rows.append(make_row(key, statement, False, list(gains.values()), holds, text))
    return rows
