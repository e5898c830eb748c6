"""The second half of the demonstration: trains the small ALT for every r and compares accuracy with cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from alt.entityworld import demo_run
from alt.entityworld.demo.photo_measurements import cpu_threads
from alt.entityworld.method_grid import METHODS, Budget, build, train_head
from alt.entityworld.token_cache import TokenCache
from alt.entityworld.world import World
from alt.errors import UserError, printable
from alt.evaluate.tradeoff import Tradeoff, TradeoffRow, find_anomalies
from alt.evaluate.tradeoff_report import record, schedule_name, write
from alt.tables import plus_minus
from alt.visualize import Truth, explain, measure_agreement, write_example_page

__all__ = ["run_tradeoff", "tradeoff_table"]


def run_tradeoff(
    out: Path, console: Console, *, seeds: int = 5, steps: int = 400, measure: bool = True, threads: int = 1
) -> dict[str, Any]:
    """Trains, tests, prints the table, and writes ``tradeoff.*`` and ``example.html`` into ``out``.

    Args:
        out: folder. seeds: trainings per r. steps: of each training.
        measure: also measure throughput and peak memory. threads: more than one rarely helps such small tensors.

    Returns:
        The content of tradeoff.json.

    Raises:
        UserError: the files cannot be written.
    """
    started = time.perf_counter()
    with cpu_threads(threads), console.status("rendering EntityWorld") as status:
        cache = TokenCache(World("cpu"))
        found = demo_run(seeds=seeds, steps=steps, measure=measure, cache=cache, say=status.update)
    setting = found.setting
    console.print(
        f"\n[bold]The small ALT[/bold] on procedurally generated video ({setting['data']}): {setting['training']}, "
        f"{seeds} seed{'s' if seeds > 1 else ''} at every r. Chance is {setting['chance']:.1f} %."
    )
    console.print(tradeoff_table(found.rows))
    console.print(_verdict(found))
    for line in find_anomalies(found.rows):
        console.print(f"Unexpected: {line}.", style="yellow")
    try:
        with cpu_threads(threads):
            files = [*write(found, [], out), _example(cache, steps, out)]
    except OSError as error:
        raise UserError(f"--out: '{out}' cannot be written ({error.strerror}).") from None
    names = ", ".join(path.name for path in files)
    console.print(f"{names} are in {printable(str(out))} ({time.perf_counter() - started:.0f} s).", markup=False)
    return record(found, [])


def _example(cache: TokenCache, steps: int, out: Path, checked: int = 60) -> Path:
    """Writes the page of the first test clip: the truth beside the model's choice, and its hit rate on other clips."""
    method = METHODS["ALT r=2"]
    model = build(method, cache, seed=0)
    train_head(model, cache.tokens("seen-train", method.r), steps=steps, lr=Budget().lr, seed=0)
    model.eval()
    split = cache.split("seen-test").split
    split = split.subset(range(checked + 1))  # as many clips as classes, one of each
    frames, shown = cache.world.render(split).frames, cache.world.shown(split)
    truths = [Truth(split.class_names[spec.label], found) for spec, found in zip(split, shown, strict=True)]
    known = measure_agreement((explain(model, clip), truth) for clip, truth in zip(frames[1:], truths[1:], strict=True))
    size, classes = cache.world.config.size, len(split.class_names)
    note = (
        f"The first test clip of EntityWorld: generated video of {size} x {size} pixels, {classes} classes of actions. "
        f"The model is the small ALT, trained for {steps} steps, merging {method.r} tokens per block."
    )
    return write_example_page(model, frames[0], out, truth=truths[0], agreement=known, note=note)


def tradeoff_table(rows: Sequence[TradeoffRow]) -> Table:
    """Returns a table with one row per point, within 80 columns."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for head in ("schedule", "merging"):
        table.add_column(head, no_wrap=True)
    for head in ("r", "1e6 MACs\nper clip", "top-1 %", "frames\nper s", "peak\nMiB"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            schedule_name(row.inflection),
            row.regime.split(" (")[0],
            str(row.r),
            f"{1e3 * row.gmacs:.2f}",
            plus_minus(row.accuracy_mean, row.accuracy_std),
            "" if row.images_per_s is None else f"{row.images_per_s:.0f}",
            "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:.1f}",
        )
    return table


def _verdict(found: Tradeoff) -> str:
    """Returns the result of the table in one sentence."""
    plain = found.rows[0]
    most = max((row for row in found.rows if row.regime == "in training"), key=lambda row: row.r)
    return (
        f"From r = 0 to r = {most.r}, merging in training: {100 * (1 - most.gmacs / plain.gmacs):.0f} % fewer "
        f"multiply-accumulates, top-1 {most.accuracy_mean - plain.accuracy_mean:+.1f} points "
        f"({plain.accuracy_mean / found.setting['chance']:.0f} and "
        f"{most.accuracy_mean / found.setting['chance']:.0f} times chance). Frames/s are of a tower this small, where "
        "arithmetic is not what takes the time; the table above is of the real one."
    )
