"""``alt entityworld compare``: the methods of the papers compared on generated video."""

from __future__ import annotations

import enum
from collections.abc import Sequence
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
            help="cpu: adapters on cached tokens of the shipped small CLIP; gpu: everything trained, larger; "
            "tiny and smoke: the same two in a few steps, to see that they run."
        ),
    ] = Preset.cpu,
    seeds: Seeds = 5,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Training steps per method. Without it, 1500 with --preset cpu.",
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
        typer.Option(metavar="NAME,...", help="Methods to compare. Without it, all.", show_default=False),
    ] = None,
    pretrained: Annotated[
        str, typer.Option(metavar="CLIP", help="Small CLIP of --preset cpu: entity-world, or a file of one.")
    ] = "entity-world",
    device: Device = "auto",
    threads: Threads = 1,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for results.json, results.csv and results.md.")
    ] = Path("entityworld_output"),
) -> None:
    """Compare the methods of the papers on procedurally generated video actions; nothing is downloaded.

    Prints the orderings that have to hold and those that are only reported, with mean and spread over the seeds, and
    tables in the layout of the papers'. Ends with status 1 if an ordering that has to hold does not. --preset cpu and
    tiny always run on the CPU.
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


def _pick(known: Sequence[str], wanted: list[str] | None) -> list[str]:
    if wanted is None:
        return list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f"--methods knows {', '.join(known)}; got '{unknown[0] if unknown else ''}'.")
    return wanted


def _on_cpu(
    preset: str, seeds: int, steps: int | None, methods: list[str] | None, pretrained: str, out: Path
) -> list[str]:
    from alt.entityworld.method_grid import METHODS, Budget, run_grid
    from alt.entityworld.method_grid_report import markdown, write
    from alt.entityworld.orderings import orderings
    from alt.entityworld.token_cache import TokenCache
    from alt.entityworld.world import World

    chosen = [METHODS[name] for name in _pick(list(METHODS), methods)]
    tiny = preset == "tiny"
    budget = Budget(steps=steps or (20 if tiny else 1500), few_shot_steps=5 if tiny else Budget.few_shot_steps)
    world = World(_world(preset))
    cache = TokenCache(world, pretrained)
    classes = len(cache.split("seen-train").split.classes)
    config = world.config
    setting: dict[str, Any] = {
        "what": f"EntityWorld at {config.size} px, {config.frames} frames, {classes} seen classes, tower frozen, "
        f"{budget.steps} steps",
        "steps": budget.steps,
        "seeds": list(range(seeds)),
        "classes": classes,
        "preset": preset,
    }
    shots = (2,) if tiny else (2, 16)

    def keep(results: dict[str, list[dict[str, float]]]) -> None:
        write(out, results, [], setting | {"unfinished": True})

    results = run_grid(cache, chosen, seeds=range(seeds), budget=budget, shots=shots, say=say, done=keep)
    found = orderings(results, classes=classes, steps=budget.steps)
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
    from alt.entityworld.gpu_comparison import METHODS, GpuPlan, run_gpu
    from alt.entityworld.method_grid_report import markdown, write

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
