"""``alt compare``: the systems of the papers trained and compared on generated video."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from alt.errors import UsageError, UserError

from .options import Device, Seeds, Threads, parse_device
from .outputs import check_folder
from .terminal import echo, say


class Preset(enum.StrEnum):
    cpu = "cpu"
    gpu = "gpu"
    tiny = "tiny"
    smoke = "smoke"


def compare(
    preset: Annotated[
        Preset,
        typer.Option(
            help="cpu: on the shipped small CLIP; gpu: on a larger one that is trained first; "
            "tiny and smoke: the same two in a few steps, to see that they run."
        ),
    ] = Preset.cpu,
    seeds: Seeds = 5,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Training steps per method. Without it, with --preset cpu, 1500 on cached tokens, 500 of a whole "
            "model, 120 without labels.",
            show_default=False,
        ),
    ] = None,
    pretraining_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Steps of the small CLIP that --preset gpu trains first.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=1, help="Time after which --preset gpu begins no further run.", show_default=False
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Methods or groups of them (systems, unlabelled, merging, strategies, adapters). Without it, all.",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        str, typer.Option(metavar="CLIP", help="Small CLIP of --preset cpu: entity-world, or a file of one.")
    ] = "entity-world",
    device: Device = "auto",
    threads: Threads = 1,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the cells, results.json, results.csv and results.md.")
    ] = Path("entityworld_output"),
) -> None:
    """Train and compare the systems of the papers on procedurally generated video actions; nothing is downloaded.

    Prints the orderings that have to hold and those that are only reported, with mean and spread over the seeds, and
    tables beside the papers'. Ends with status 1 if an ordering that has to hold does not. With --preset cpu and tiny,
    which always run on the CPU, every method and seed is a file in the folder, and the same command goes on where it
    was stopped.
    """
    import torch

    names = _names(methods)
    place = parse_device(device)
    check_folder(out, "--out")
    torch.set_num_threads(threads)
    try:
        if preset in (Preset.gpu, Preset.smoke):
            limits = {"steps": steps, "pretraining_steps": pretraining_steps, "seconds": seconds}
            failed = _on_gpu(preset.value, seeds, limits, names, place, out)
        elif pretraining_steps is not None or seconds is not None:
            raise UsageError(
                "--pretraining-steps and --seconds belong to --preset gpu or smoke, which train a small CLIP;"
                f" got them with --preset {preset.value}."
            )
        else:
            failed = _on_cpu(preset.value, seeds, steps, names, pretrained, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted; what was done by then is in {out}.") from None
    if failed:
        raise UserError(f"Does not hold: {'; '.join(failed)}.")


def _names(methods: str | None) -> list[str] | None:
    return None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]


def _pick(
    known: Sequence[str], wanted: list[str] | None, groups: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    if wanted is None:
        return list(known)
    groups = groups or {}
    wanted = list(dict.fromkeys(name for word in wanted for name in groups.get(word, [word])))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f"--methods knows {', '.join([*groups, *known])}; got '{unknown[0] if unknown else ''}'.")
    return wanted


def _on_cpu(
    preset: str, seeds: int, steps: int | None, methods: list[str] | None, pretrained: str, out: Path
) -> list[str]:
    from alt.entityworld.comparison import measure_speed, run_cells
    from alt.entityworld.comparison_report import markdown, write
    from alt.entityworld.methods import GROUPS, METHODS, Plan
    from alt.entityworld.orderings import orderings
    from alt.entityworld.token_cache import TokenCache
    from alt.entityworld.world import World

    chosen = [METHODS[name] for name in _pick(list(METHODS), methods, GROUPS)]
    tiny = preset == "tiny"
    plan = (Plan.tiny() if tiny else Plan()).with_steps(steps)
    world = World(_world(preset))
    cache = TokenCache(world, pretrained)
    classes = len(cache.split("seen-train").split.classes)
    config = world.config
    setting: dict[str, Any] = {
        "what": f"EntityWorld at {config.size} px, {config.frames} frames, {classes} seen classes",
        "plan": asdict(plan),
        "seeds": list(range(seeds)),
        "classes": classes,
        "preset": preset,
    }

    def keep(results: dict[str, list[dict[str, float]]]) -> None:
        write(out, results, [], setting | {"unfinished": True})

    results = run_cells(out / "cells", chosen, cache, seeds=range(seeds), plan=plan, say=say, done=keep)
    setting["speed"] = measure_speed(out / "speed.json", [m for m in chosen if m.training == "clips"], cache)
    found = orderings(results, classes=classes, steps=plan.tokens.steps)
    files = write(out, results, found, setting)
    echo(markdown(results, found, setting))
    echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
    if tiny:  # a few steps say nothing of who is ahead
        return []
    return [f"({o.key}) {o.statement}" for o in found if o.gated and o.holds is False]


def _world(preset: str) -> Any:
    """A tiny run takes the world of the shipped small CLIP, with few clips."""
    from alt.entityworld.world import WorldConfig

    if preset != "tiny":
        return WorldConfig.preset(preset)
    few = {"train_per_class": 2, "test_per_class": 1, "transfer_train_per_class": 2, "transfer_test_per_class": 1}
    return WorldConfig.preset("cpu", **few)


def _on_gpu(
    preset: str, seeds: int, limits: dict[str, Any], methods: list[str] | None, device: str, out: Path
) -> list[str]:
    from alt.entityworld.comparison_report import markdown, write
    from alt.entityworld.gpu_comparison import METHODS, GpuPlan, run_gpu

    if preset == "gpu" and device == "cpu":
        raise UsageError(
            "--preset gpu needs a CUDA device; --preset smoke runs the same code on the CPU in a few steps."
        )
    chosen = _pick(list(METHODS), methods)
    plan = GpuPlan.preset(preset).with_limits(**limits)

    def keep(found: dict[str, list[dict[str, float]]]) -> None:
        write(out, found, [], {"what": f"EntityWorld, preset {preset}", "unfinished": True})

    results, setting = run_gpu(
        plan,
        device=device,
        seeds=range(1 if preset == "smoke" else seeds),
        methods=chosen,
        say=say,
        done=keep,
    )
    files = write(out, results, [], setting)
    echo(markdown(results, [], setting))
    for line in setting["left_out"]:
        say(f"Left out: {line}")
    echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
    return []
