"""``alt tradeoff``: options, and errors as one sentence. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def tradeoff(
    r: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Tokens merged in every block; 0,2,4,6 here, 0,4,8,13 with a checkpoint."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the embedded benchmark.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the embedded benchmark.")] = 1500,
    preset: Annotated[str, typer.Option(help="World of the embedded benchmark.")] = "cpu",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A trained model (.safetensors): the sweep runs on it and --data.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="List of clips, a line 'path label' each: folders of frames or array files."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV of id,name with the classes of --data.")] = None,
    views: Annotated[str, typer.Option(metavar="CROPSxCLIPS", help="Views of a video, with --data.")] = "1x1",
    batch: Annotated[int, typer.Option(min=1, help="Videos a batch, with --data.")] = 8,
    device: Annotated[str, typer.Option(help="Where it runs, with --data.")] = "cpu",
    measure: Annotated[bool, typer.Option(help="Throughput and peak memory as well.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for tradeoff.json, .csv, .md, .svg and .png.")] = Path(
        "tradeoff_output"
    ),
) -> None:
    """Accuracy, multiply-accumulates, throughput and peak memory as r grows.

    Without a checkpoint: the small ALT of the embedded benchmark, trained here, merging in training and put on
    afterwards, constant and decreasing schedules. With one: the same sweep at test time on data of yours. Beside it
    what the ALT paper prints, counted here too and marked as the paper's.
    """
    from alt.errors import UserError, one_line

    try:
        import torch

        torch.set_num_threads(1)
        chosen = parse_r(r or ("0,4,8,13" if checkpoint else "0,2,4,6"))
        if (checkpoint is None) != (data is None):
            raise UserError("--checkpoint and --data go together: the model, and the clips to test it on.")
        found: Any
        if checkpoint is not None and data is not None:
            from alt.evaluate.checkpoint import clip_files, open_model, sweep

            model = open_model(checkpoint, device)
            dataset = clip_files(model, data, labels, views)
            found = sweep(model, dataset, chosen, batch_size=batch, device=device, measure=measure, say=_say)
        else:
            found = _embedded(chosen, seeds, steps, preset, measure)
        from alt.evaluate.paper_costs import paper_costs
        from alt.evaluate.tradeoff import complaints
        from alt.evaluate.tradeoff_report import markdown, paper_markdown, record, write

        paper = paper_costs()
        files = write(found, paper, out)
        typer.echo(markdown(found.rows))
        typer.echo("GMACs counted here; GFLOPs and accuracies are the paper's, on Kinetics-400:\n")
        typer.echo(paper_markdown(record(found, paper)["paper"]))
        for line in complaints(found.rows):
            typer.echo(f"Unexpected: {line}.", err=True)
        typer.echo(f"Wrote {', '.join(path.name for path in files)} to {out}.")
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        typer.echo(f"Error: this needs {error.name}; install it with: pip install 'alt-kernels[models]'", err=True)
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"Error: {one_line(error, 300)}.", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(130) from None


def parse_r(text: str) -> list[int]:
    """``"0,4,8"`` to ascending distinct numbers, 0 among them."""
    from alt.errors import UserError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() for word in words):
        raise UserError(f"--r takes numbers of tokens such as 0,2,4, got '{text}'.")
    return sorted({0, *map(int, words)})


def _embedded(r: list[int], seeds: int, steps: int, preset: str, measure: bool) -> Any:
    from alt.entityworld.world import World

    from .method_grid import Budget
    from .token_cache import TokenCache
    from .trained_tradeoff import embedded_tradeoff

    cache = TokenCache(World(preset))
    return embedded_tradeoff(cache, r=r, seeds=range(seeds), budget=Budget(steps=steps), measure=measure, say=_say)


def _say(line: str) -> None:
    typer.echo(line, err=True)
