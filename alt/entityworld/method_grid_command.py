"""``alt entityworld``: options, and errors as one sentence. Heavy imports wait until the command runs."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


class Preset(enum.StrEnum):
    cpu = "cpu"
    gpu = "gpu"
    tiny = "tiny"
    smoke = "smoke"


def entityworld(
    preset: Annotated[
        Preset,
        typer.Option(
            help="cpu: adapters on cached tokens of the shipped small CLIP; gpu: everything trained, larger; "
            "tiny and smoke: the same two in a few steps, to see that they run."
        ),
    ] = Preset.cpu,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every method.")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps of every method; 1500 on the CPU.", show_default=False),
    ] = None,
    pretraining_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of the small CLIP that the gpu preset trains first.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds after which the gpu preset begins no further run.", show_default=False),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Methods by name, separated by commas; without it all.", show_default=False),
    ] = None,
    pretrained: Annotated[
        str, typer.Option(help="Small CLIP of the CPU's grid: entity-world, or a file of one.")
    ] = "entity-world",
    device: Annotated[
        str | None, typer.Option(help="Where the gpu preset runs; without it a GPU if there is one.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.csv and results.md.")] = Path(
        "entityworld_output"
    ),
) -> None:
    """The methods of the papers compared on procedurally generated video actions; nothing is downloaded.

    Prints the orderings that have to hold and those that are only reported, with mean and spread over the seeds, and
    tables in the layout of the papers'. Ends with status 1 where an ordering that has to hold does not.
    """
    from alt.errors import UserError, one_line

    try:
        import torch

        torch.set_num_threads(threads)
        if preset in (Preset.gpu, Preset.smoke):
            limits = {"steps": steps, "pretraining_steps": pretraining_steps, "seconds": seconds}
            failed = _on_gpu(preset.value, seeds, limits, _names(methods), device, out)
        elif pretraining_steps is not None or seconds is not None:
            raise UserError(
                "--pretraining-steps and --seconds belong to --preset gpu or smoke, which train a small CLIP;"
                f" got them with --preset {preset.value}."
            )
        else:
            failed = _on_cpu(preset.value, seeds, steps, _names(methods), pretrained, out)
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        typer.echo(f"Error: this needs {error.name}; install it with: pip install 'alt-kernels[models]'", err=True)
        raise typer.Exit(2) from None
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"Error: {one_line(error, 300)}.", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; what was done by then is in {out}.", err=True)
        raise typer.Exit(130) from None
    if failed:
        typer.echo(f"Does not hold: {'; '.join(failed)}.", err=True)
        raise typer.Exit(1)


def _names(methods: str | None) -> list[str] | None:
    return None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]


def _pick(known: Sequence[str], wanted: list[str] | None) -> list[str]:
    from alt.errors import UserError

    if wanted is None:
        return list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UserError(f"--methods knows {', '.join(known)}; got '{unknown[0] if unknown else ''}'.")
    return wanted


def _on_cpu(
    preset: str, seeds: int, steps: int | None, methods: list[str] | None, pretrained: str, out: Path
) -> list[str]:
    from alt.entityworld.world import World

    from .method_grid import METHODS, Budget, run_grid
    from .method_grid_report import markdown, write
    from .orderings import orderings
    from .token_cache import TokenCache

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

    results = run_grid(cache, chosen, seeds=range(seeds), budget=budget, shots=shots, say=_say, done=keep)
    found = orderings(results, classes=classes, steps=budget.steps)
    files = write(out, results, found, setting)
    typer.echo(markdown(results, found, setting))
    typer.echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
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
    preset: str,
    seeds: int,
    limits: dict[str, Any],
    methods: list[str] | None,
    device: str | None,
    out: Path,
) -> list[str]:
    import torch

    from alt.errors import UserError

    from .gpu_comparison import METHODS, GpuPlan, run_gpu
    from .method_grid_report import markdown, write

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if preset == "gpu" and device == "cpu":
        raise UserError(
            "--preset gpu needs a CUDA device; --preset smoke runs the same code on the CPU in a few steps."
        )
    chosen = _pick(list(METHODS), methods)
    plan = GpuPlan.preset(preset).limited(**limits)

    def keep(found: dict[str, list[dict[str, float]]]) -> None:
        write(out, found, [], {"what": f"EntityWorld, preset {preset}", "unfinished": True})

    results, setting = run_gpu(
        plan,
        device=device,
        seeds=range(1 if preset == "smoke" else seeds),
        methods=chosen,
        say=_say,
        done=keep,
    )
    files = write(out, results, [], setting)
    typer.echo(markdown(results, [], setting))
    for line in setting["left_out"]:
        typer.echo(f"Left out: {line}", err=True)
    typer.echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
    return []


def _say(line: str) -> None:
    typer.echo(line, err=True)
