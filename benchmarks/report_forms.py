"""The tables of `bench_cpu_towers.py` in docs/results.md: who merges by form."""

from __future__ import annotations

from typing import Any

from alt.tables import to_markdown

Record = dict[str, Any]

INTRO = """### Every form of a tower

Milliseconds per image, medians over the rounds, and the share of the FLOP saving that is realised against the unmerged
tower in the same column. Milliseconds are of this machine in this hour; the last column of the second table is a ratio
within a round.
"""


def sections(record: Record) -> list[str]:
    """Returns the lines of all towers in a device's record; none if it has none."""
    infos = [b["extra_info"] for b in record["benchmarks"] if "forms" in b["extra_info"]]
    return [INTRO, *(line for info in infos for line in _tower(info))] if infos else []


def _tower(info: Record) -> list[str]:
    cells = {(cell["row"], cell["form"]): cell for cell in info["forms"]["cells"]}
    forms = list(dict.fromkeys(form for _, form in cells))
    rows = []
    for row in dict.fromkeys(row for row, _ in cells):
        there = [cells.get((row, form)) for form in forms]
        ratio = next(cell["flop_ratio"] for cell in there if cell is not None)
        rows.append([row, f"{ratio:.3f}", *("" if cell is None else _time(cell) for cell in there)])
    title = info["title"].removesuffix(", every form")
    lines = [f"{title}, {info['shape']}", "", to_markdown(["", "FLOP ratio", *forms], rows)]
    lines += [f"Not run: {form}, {why}.\n" for form, why in info["absent"].items()]
    best = [
        [r, found["ours"], found["other"], "{median:.3f} [{low:.3f}, {high:.3f}]".format(**found["ratio"])]
        for r, found in info["forms"]["best"].items()
    ]
    head = ["r", "our fastest form", "the fastest of the others", "speed-up of ours over it"]
    return [*lines, to_markdown(head, best, left=3)]


def _time(cell: Record) -> str:
    share = cell["saving_realised"]
    return f"{cell['ms']:.0f}" if share is None else f"{cell['ms']:.0f} ({100 * share['median']:.0f} %)"
