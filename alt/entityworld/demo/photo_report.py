"""Output of the demonstration: the table, the notes under it, results.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from alt.entityworld.demo.photo_measurements import FRAMES, Row
from alt.paper import cost_of

__all__ = ["notes", "paper_gflops", "result_table", "row_record"]

_IN_THE_PAPER = {"ViT-B-16": "alt-b16", "ViT-L-14": "alt-l14"}


def paper_gflops(model: str, r: int) -> int | None:
    """Returns the paper's GFLOPs of the whole ALT model on this tower, 8 frames, in its own convention."""
    found = cost_of(_IN_THE_PAPER.get(model.removesuffix("-quickgelu"), ""), r, FRAMES)
    return None if found is None else found.gflops


def result_table(rows: Sequence[Row], model: str, title: str) -> Table:
    """Returns the table, one row per r."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
        collapse_padding=True,  # nine columns within 80 characters
    )
    heads = (
        "r",
        "tokens\nleft",
        f"GFLOPs\n{FRAMES} frames",
        "paper's\ncount¹",
        "paper\nprints²",
        "ms per\nimage",
        "speed\nup",
        "saving\nrealised³",
        "cosine\nto r=0",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        printed = paper_gflops(model, row.r)
        table.add_row(
            str(row.r),
            str(row.tokens),
            f"{row.gmacs:.1f}",
            f"{row.paper_gmacs:.1f}",
            "-" if printed is None else str(printed),
            f"{row.ms:.0f}" if row.ms >= 100 else f"{row.ms:.1f}",
            f"{row.speedup:.2f}x",
            "-" if row.realised is None else f"{row.realised:.0%}",
            f"{row.cosine:.4f}",
        )
    return table


def notes(rows: Sequence[Row], model: str, machine_busy: bool) -> list[str]:
    """Returns the footnotes of the table, and notes on clipped blocks."""
    out = [
        f"GFLOPs are multiply-accumulates of the image tower for {FRAMES} frames, as the literature counts them.",
        "¹ With a dense similarity and merge in every block, and LayerNorms: how we read the paper's counting.",
    ]
    if any(paper_gflops(model, row.r) for row in rows):
        out.append("² What the ALT paper prints: the whole ALT model, text alignment and adapter included.")
    else:
        out.append("² The ALT paper prints nothing for this tower.")
    out.append("³ Share of the GFLOP saving that is saved in time: (1 - time ratio) / (1 - GFLOPs ratio).")
    for row in rows:
        if row.clipped:
            many = len(row.clipped) > 1
            blocks = ", ".join(str(block + 1) for block in row.clipped)
            out.append(
                f"At r = {row.r} the tokens run out: block{'s' if many else ''} {blocks} merge{'' if many else 's'} "
                "as many as there are pairs."
            )
    if machine_busy:
        out.append("The machine was busy with other work, so take the times as rough.")
    return out


def row_record(row: Row, model: str) -> dict[str, Any]:
    """Returns a row for results.json: numbers unrounded, blocks counted from 1 as in the notes."""
    record = row._asdict()
    record["clipped"] = [block + 1 for block in row.clipped]
    record["paper_prints"] = paper_gflops(model, row.r)
    return record
