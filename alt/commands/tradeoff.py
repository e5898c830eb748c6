"""``alt tradeoff``: accuracy, multiply-accumulates, throughput and memory as r grows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alt.errors import UsageError

from .options import (
    Batch,
    CropsAndClips,
    Device,
    Labels,
    OldSweep,
    Root,
    Seeds,
    Sweep,
    Threads,
    WorldOption,
    WorldPreset,
    is_given,
    list_of_clips,
    parse_device,
    parse_sweep_or_r,
    parse_views,
)
from .outputs import check_folder
from .terminal import echo, say


def tradeoff(
    ctx: typer.Context,
    sweep: Sweep = None,
    seeds: Seeds = 5,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Training steps per seed and r.")] = 1500,
    world: WorldOption = WorldPreset.cpu,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="A trained model (.safetensors): sweep it over --data instead.", show_default=False
        ),
    ] = None,
    data: Annotated[Path | None, list_of_clips()] = None,
    labels: Labels = None,
    root: Root = None,
    views: CropsAndClips = "1x1",
    batch: Batch = 8,
    device: Device = "auto",
    threads: Threads = 1,
    measure: Annotated[bool, typer.Option(help="Measure throughput and peak memory as well.")] = True,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for tradeoff.json, .csv, .md, .svg and .png.")
    ] = Path("tradeoff_output"),
    r: OldSweep = None,
) -> None:
    """Measure accuracy, multiply-accumulates, throughput and peak memory as r grows.

    Without a model: train the small ALT on EntityWorld on the CPU, with merging in training and switched on afterwards,
    with constant and decreasing schedules. With a model: the same sweep at test time on your data, with --views,
    --batch and --device. Beside it, what the ALT paper prints: counted here as well, and marked as the paper's.
    """
    import torch

    chosen = parse_sweep_or_r(sweep, r, "0,4,8,13" if checkpoint else "0,2,4,6")
    if (checkpoint is None) != (data is None):
        raise UsageError("--checkpoint and --data go together: the model, and the clips to test it on.")
    unread = ("labels", "root", "views", "batch") if checkpoint is None else ("seeds", "steps", "world")
    for name in unread:
        if is_given(ctx, name):
            raise UsageError(f"--{name} goes {'with' if checkpoint is None else 'without'} --checkpoint.")
    parse_views(views)
    place = parse_device(device)
    if checkpoint is None and place != "cpu" and is_given(ctx, "device"):
        raise UsageError(f"--device: expected cpu without --checkpoint, because the training runs there, got {place}.")
    check_folder(out, "--out")
    torch.set_num_threads(threads)
    found: Any
    if checkpoint is not None and data is not None:
        from alt.evaluate.checkpoint import clip_files, open_model
        from alt.evaluate.checkpoint import sweep as run_sweep

        model = open_model(checkpoint, place)
        dataset = clip_files(model, data, labels, views, root)
        found = run_sweep(model, dataset, chosen, batch_size=batch, device=place, measure=measure, say=say)
    else:
        found = _train_and_test(chosen, seeds, steps, world.value, measure)
    _report(found, out)


def _train_and_test(r: list[int], seeds: int, steps: int, world: str, measure: bool) -> Any:
    from alt.entityworld.method_grid import Budget
    from alt.entityworld.token_cache import TokenCache
    from alt.entityworld.trained_tradeoff import train_tradeoff
    from alt.entityworld.world import World

    cache = TokenCache(World(world))
    return train_tradeoff(cache, r=r, seeds=range(seeds), budget=Budget(steps=steps), measure=measure, say=say)


def _report(found: Any, out: Path) -> None:
    """Prints the table and the paper's numbers, and writes the files."""
    from alt.evaluate.paper_costs import paper_costs
    from alt.evaluate.tradeoff import find_anomalies
    from alt.evaluate.tradeoff_report import markdown, paper_markdown, record, write

    paper = paper_costs()
    files = write(found, paper, out)
    echo(markdown(found.rows))
    echo("GMACs counted here; GFLOPs and accuracies are the paper's, on Kinetics-400:\n")
    echo(paper_markdown(record(found, paper)["paper"]))
    for line in find_anomalies(found.rows):
        say(f"Unexpected: {line}.")
    echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
