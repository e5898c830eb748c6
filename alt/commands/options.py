"""Options that mean the same in every command that has them, and the readers of their values."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alt.errors import UsageError, UserError

from .logs import logger
from .settings import complete_setting

if TYPE_CHECKING:
    from alt.evaluate.views import Views


def list_of_clips() -> Any:
    """Returns the option ``--data``, which some commands need and others do without."""
    return typer.Option(
        "--data",
        metavar="LIST",
        help="List of clips, one line 'path label' per clip: folders of frames or array files.",
        show_default=False,
    )


def language_model() -> Any:
    """Returns the option ``--llm``, which `alt corpus expand` needs and `alt bags` does without."""
    return typer.Option(
        "--llm",
        metavar="NAME",
        help="Language model, as the endpoint names it; --answers keeps what it says.",
        show_default=False,
    )


def kept_answers() -> Any:
    """Returns the option ``--answers``, see :func:`language_model`."""
    return typer.Option(
        "--answers",
        metavar="FILE",
        help="File of its answers (.jsonl), each kept as soon as it comes; kept ones are not asked for again.",
        show_default=False,
    )


Reduction = Annotated[
    str | None,
    typer.Option(
        "--r",
        metavar="R",
        help="Tokens merged per block: a number, a share such as 0.05, or a list with one number per block. "
        "Without it, what the model was saved with.",
        show_default=False,
    ),
]
Sweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        metavar="R,R,...",
        help="Numbers of tokens merged per block, one run each; 0 is always among them.",
        show_default=False,
    ),
]
OldSweep = Annotated[str | None, typer.Option("--r", hidden=True)]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto (a GPU if there is one), cpu, cuda or cuda:N.")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="CSV",
        help="Class names, columns id and name. Without it, labels are numbers of the model's classes.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the configuration, for example optim.lr=1e-5; repeatable. 'help' lists them.",
        autocompletion=complete_setting,
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="FOLDER",
        help="Folder that list, class names and clips are relative to. Without it, the list's folder for its clips.",
        show_default=False,
    ),
]
CropsAndClips = Annotated[
    str,
    typer.Option(
        "--views", metavar="CROPSxCLIPS", help="Spatial crops x temporal clips per video; softmaxes are added up."
    ),
]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Videos per batch.")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="CPU threads.")]
Seeds = Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Number of seeds: 0 to N - 1.")]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write one page to look at.", show_default=False),
]
PictureFolder = Annotated[
    Path | None,
    typer.Option("--pictures", metavar="FOLDER", help="Write the page's pictures as PNG files.", show_default=False),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the results as JSON. - prints them, and nothing else.", show_default=False
    ),
]


Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="An OpenAI-compatible endpoint, http://localhost:8000/v1; its key is read from ALT_LLM_KEY. Without it "
        "nothing is asked, and kept answers are replayed.",
        show_default=False,
    ),
]
RequestsPerMinute = Annotated[float, typer.Option("--per-minute", metavar="N", help="Requests per minute, at most.")]
TaggerName = Annotated[
    str,
    typer.Option(
        "--tagger",
        metavar="NAME",
        help="Parts of speech: spacy, nltk, lexicon (WordNet's words), or auto, the first that is installed.",
    ),
]
WordNetFolder = Annotated[
    Path | None,
    typer.Option(
        "--wordnet",
        metavar="FOLDER",
        help="WordNet's data base files. Without it that of WNSEARCHDIR, or where Debian's wordnet-base puts them.",
        show_default=False,
    ),
]


class WorldPreset(enum.StrEnum):
    """Size of EntityWorld."""

    cpu = "cpu"
    gpu = "gpu"
    tiny = "tiny"


WorldOption = Annotated[
    WorldPreset,
    typer.Option(
        "--world",
        help="EntityWorld's size: cpu (24 px, 4 frames, 60 classes), gpu (64 px, 8 frames, 250 classes) or tiny.",
    ),
]


class Precision(enum.StrEnum):
    """Precision of weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"


def is_given(ctx: typer.Context, name: str) -> bool:
    """Returns whether an option is on the command line, its default value included."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_reduction(text: str) -> int | float | tuple[int, ...]:
    """Returns ``"8"``, a share ``"0.05"``, or one number per block ``"16,16,0"`` as numbers.

    Raises:
        UsageError: another text.
    """
    words = [word.strip() for word in text.split(",")]
    try:
        numbers = [float(word) if "." in word else int(word) for word in words]
    except ValueError:
        raise UsageError(f"--r takes a number, a share such as 0.05 or a list such as 16,8,0, got '{text}'.") from None
    if len(numbers) == 1:
        return numbers[0]
    if not all(isinstance(number, int) for number in numbers):
        raise UsageError(f"--r takes whole numbers in a list, one per block, got '{text}'.")
    return tuple(int(number) for number in numbers)


def parse_sweep(text: str) -> list[int]:
    """Returns ``"8, 4,8"`` as ascending distinct numbers, with 0 (no merging), which the others are compared with.

    Raises:
        UsageError: another text.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", word) for word in words):
        raise UsageError(f"--sweep takes whole numbers with commas between them, such as 0,4,8, got '{text}'.")
    return sorted({0, *map(int, words)})


def parse_views(text: str) -> Views:
    """Returns the views of ``"3x4"``.

    Raises:
        UsageError: another text.
    """
    from alt.evaluate.views import Views

    try:
        return Views.parse(text)
    except ValueError as error:
        raise UsageError(f"--{error}.") from None


def parse_device(text: str) -> str:
    """Returns "cpu", "cuda" or "cuda:N"; "auto" is a GPU that torch can use, if there is one, and else the CPU.

    Raises:
        UsageError: another text.
        UserError: this machine has no such GPU.
    """
    import torch

    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", text)
    if match is None:
        raise UsageError(f"--device takes auto, cpu, cuda or cuda:N, got '{text}'.")
    if text == "cpu":
        return text
    if not torch.cuda.is_available():
        raise UserError(f"--device {text}: this machine has no CUDA device that torch can use.")
    if match[1] is not None and int(match[1]) >= torch.cuda.device_count():
        raise UserError(f"--device {text}: this machine has {torch.cuda.device_count()} CUDA devices.")
    return text


def parse_accelerator(device: str) -> str:
    """Returns Lightning's name of a device. A run may use several GPUs, so none is chosen by its number."""
    parse_device(device)  # raises if this machine has no such device
    known = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}
    if device not in known:
        raise UsageError(f"--device {device}: alt train takes cuda; choose one GPU with CUDA_VISIBLE_DEVICES.")
    return known[device]


def parse_sweep_or_r(sweep: str | None, r: str | None, default: str) -> list[int]:
    """Returns the numbers of ``--sweep``, or of ``--r``, which listed them before it was one schedule everywhere."""
    if r is None:
        return parse_sweep(default if sweep is None else sweep)
    logger.warning("--r is deprecated here, where it lists several values; write --sweep %s", r)
    return parse_sweep(r)
