"""Which methods stand in which table of the comparison, beside which printed numbers."""

from __future__ import annotations

from collections.abc import Mapping

from alt import paper, paper_tables

__all__ = ["TABLES", "Numbers"]

Numbers = tuple[float | None, float | None, float | None]


def _rows_of(ablation: paper.Ablation, rows: Mapping[str, tuple[str, str]]) -> tuple[tuple[str, str, Numbers], ...]:
    """Rows of a table: for each name in the paper's ablation what it is called here, and the method."""
    return tuple((what, method, ablation.rows[name]) for name, (what, method) in rows.items())


def _at_r(r: int) -> Numbers:
    found = paper.cost_of("alt-b16", r)
    return (found and found.top1, None, None)


def _strategy(row: str) -> Numbers:
    table = next(table for table in paper_tables.TABLES if table.key == "strategy")
    return (table.rows[row][0].iclr, None, None)


def _dictionary(row: str) -> Numbers:
    return (None, None, paper.MAXI_DICTIONARIES[row])


_THREE = "Kinetics-400, HMDB-51 2-shot, UCF-101 zero-shot"
_NOTHING: Numbers = (None, None, None)

# title -> what the paper's columns are, and rows: (what it is, the method here, the paper's numbers).
TABLES: dict[str, tuple[str, tuple[tuple[str, str, Numbers], ...]]] = {
    "Systems, everything trained": (
        f"{_THREE}. {paper.SYSTEMS_SOURCE}",
        (
            ("CLIP, nothing trained", "CLIP-Mean photo prompt", paper.SYSTEMS["CLIP"]),
            ("one frame", "tuned CLIP-One", paper.SYSTEMS["CLIP-One"]),
            ("mean of the frames", "tuned CLIP-Mean", paper.SYSTEMS["CLIP-Mean"]),
            ("the same, linear head", "tuned CLIP-Mean no texts", _NOTHING),
            ("all frames in one sequence", "tuned CLIP-Joint", paper.SYSTEMS["CLIP-Joint"]),
            ("X-CLIP without prompts", "tuned X-CLIP no prompts", paper.SYSTEMS["X-CLIP without prompts"]),
            ("X-CLIP", "tuned X-CLIP", paper.SYSTEMS["X-CLIP"]),
            ("ViFi-CLIP, both towers trained", "tuned ViFi-CLIP", paper.SYSTEMS["ViFi-CLIP"]),
            ("MAXI, without labels", "MAXI", paper.SYSTEMS["MAXI"]),
            ("ALT", "tuned ALT", paper.SYSTEMS["ALT"]),
        ),
    ),
    "Tokens merged in a block, other systems": (
        "none is printed",
        tuple(
            (f"{name}, r = {r}{' (as 4 of B/16)' if r == 2 else ' (as 8 of B/16)' if r else ''}", method, _NOTHING)
            for name in ("X-CLIP", "ViFi-CLIP")
            for r, method in ((0, f"tuned {name}"), (2, f"tuned {name} r=2"), (4, f"tuned {name} r=4"))
        ),
    ),
    "What of the image tower is trained": (
        f"Table 7: Kinetics-400 ({paper.VERSION})",
        (
            ("frozen", "ALT strategy frozen", _strategy("frozen")),
            ("S-adapter", "ALT strategy s", _strategy("S-adapter")),
            ("SM-adapter", "ALT strategy sm", _strategy("SM-adapter")),
            ("STM-adapter", "ALT strategy stm", _strategy("STM-adapter")),
            ("fine-tuned", "tuned ALT", _strategy("fine-tuned")),
        ),
    ),
    "Without labels": (
        "UCF-101 zero-shot (arXiv 2303.08914)",
        (
            ("CLIP as it is", "CLIP-Mean photo prompt", paper.SYSTEMS["CLIP"]),
            ("names of the seen classes", "MAXI", _dictionary("400 names")),
            ("and half as many wrong ones", "MAXI 50 % wrong names", _NOTHING),
            ("and as many wrong ones", "MAXI 100 % wrong names", _dictionary("400 names, 400 of captions")),
            ("cross-entropy with the matched names", "pseudo-labels", _dictionary("pseudo-labels")),
        ),
    ),
    "Components": (
        f"{paper.COMPONENTS.table}: {_THREE} ({paper.VERSION})",
        _rows_of(
            paper.COMPONENTS,
            {
                "order-aware baseline": ("order-aware baseline (MIT)", "MIT"),
                "class token aligned": ("alignment of the class token", "ALT r=0 cls"),
                "class token aligned, merging": ("and merging", "ALT cls only"),
                "regions aligned, merging": ("and alignment of regions", "ALT r=2"),
            },
        ),
    ),
    "Tokens merged in a block": (
        f"Table 8: Kinetics-400, r = 0, 4, 8, 13 ({paper.VERSION})",
        (
            ("r = 0", "ALT r=0", _at_r(0)),
            ("r = 2 (the paper's 4)", "ALT r=2", _at_r(4)),
            ("r = 4 (the paper's 8)", "ALT r=4", _at_r(8)),
            ("r = 6 (the paper's 13)", "ALT r=6", _at_r(13)),
        ),
    ),
    "Entities of the corpus": (
        f"{paper.CORPUS_SUBSETS.table}: {_THREE} ({paper.VERSION})",
        _rows_of(
            paper.CORPUS_SUBSETS,
            {
                "none": ("none (random queries)", "ALT random queries"),
                "body parts": ("body parts", "ALT body parts"),
                "objects": ("objects", "ALT objects"),
                "scenes": ("scenes", "ALT scenes"),
                "motions": ("motions", "ALT motions"),
                "all": ("all", "ALT r=2"),
            },
        ),
    ),
    "Parts of the adapter": (
        f"{paper.ADAPTER_PARTS.table}: {_THREE} ({paper.VERSION})",
        _rows_of(
            paper.ADAPTER_PARTS,
            {
                "neither": ("neither", "ALT no SA no conv"),
                "self-attention": ("self-attention", "ALT no conv"),
                "convolution": ("convolution", "ALT no SA"),
                "both": ("both", "ALT r=2"),
            },
        ),
    ),
    "Readings of what the paper leaves open": (
        "no table of the paper",
        (
            ("similarity scale 1, the literal one", "ALT scale 1", _NOTHING),
            ("similarity scale 10", "ALT scale 10", _NOTHING),
            ("similarity scale 100", "ALT scale 100", _NOTHING),
            ("similarity scale of CLIP", "ALT r=2", _NOTHING),
            ("literal initialisation", "ALT literal init", _NOTHING),
        ),
    ),
}
