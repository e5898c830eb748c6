"""``alt heatmaps``: heat maps of several models side by side, in groups by the verb of the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from alt.errors import UsageError, UserError, one_line

from .logs import logger
from .options import (
    Device,
    HtmlFile,
    Labels,
    PictureFolder,
    Reduction,
    Root,
    list_of_clips,
    parse_device,
    parse_reduction,
)
from .outputs import check_file, check_folder
from .progress import progress_bar
from .terminal import echo

if TYPE_CHECKING:
    from alt.data.clips import ClipFiles
    from alt.models.video_model import VideoModel
    from alt.visualize.heat_comparison import TextMap

_CLIPS = ("open_clip:", "hf:")


class _Wanted(NamedTuple):
    """names: texts that every model must embed. frames: T of the first checkpoint, which all read; None without one.
    templates: of its class texts, which a CLIP takes over. pretrained: weights of open_clip's CLIP. folder: "hf:PATH"
    of a CLIP among the models, None without one. Both may have the text tower of a checkpoint too."""

    names: list[str]
    frames: int | None
    templates: Sequence[str] | None
    pretrained: str | None
    folder: str | None


def heatmaps(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models (.safetensors), folders of runs, and CLIPs before training: open_clip:NAME or hf:PATH.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, list_of_clips()],
    labels: Labels = None,
    root: Root = None,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Names of the training's dictionary, which group the clips by their verbs: k400 or another set that "
            "ships, or a file; may be repeated.",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(metavar="TAG", help="Weights of open_clip:NAME: open_clip's tag, or a file.", show_default=False),
    ] = None,
    html: HtmlFile = None,
    pictures: PictureFolder = None,
    r: Reduction = None,
    device: Device = "auto",
) -> None:
    """Draw where several models find the class of each clip: one column per model, one row per frame.

    A map is the cosine of every region with the name of the clip's class, embedded by the same model. All columns of a
    clip have one scale of colours. With --dictionary the clips stand in three groups: verbs that a name of the
    dictionary has, novel verbs, and general verbs, which several names have.
    """
    reduction = None if r is None else parse_reduction(r)
    place = parse_device(device)
    if html is None and pictures is None:
        raise UsageError("Say what to write: --html FILE, --pictures FOLDER, or both.")
    if pretrained is None and any(model.startswith("open_clip:") for model in models):
        raise UsageError("open_clip:NAME needs its weights: --pretrained TAG.")
    check_file(html, "--html")
    if pictures is not None:
        check_folder(pictures, "--pictures")
    files, texts, wanted = _open_clips(models, data, labels, root, pretrained)
    groups = _group(texts, dictionary)
    columns: dict[str, list[TextMap]] = {}
    with progress_bar("models", len(models)) as move:
        for model, title in zip(models, _name_columns(models), strict=True):  # one after the other, to spare memory
            columns[title] = _map_clips(_open_model(model, wanted, reduction, place), files, texts)
            move(len(columns), len(models))
    for line in files.describe(wanted.frames or 0):
        logger.warning("%s", line)
    _write(files, texts, groups, columns, html, pictures)


def _open_clips(
    models: Sequence[str], data: Path, labels: Path | None, root: Path | None, pretrained: str | None
) -> tuple[ClipFiles, list[str], _Wanted]:
    """Returns the clips, the name of each one's class, and what the models need, before any weights are read."""
    from alt.data.clips import ClipFiles
    from alt.models.weights import model_file, read_header

    try:
        headers = [read_header(model_file(model)) for model in models if not model.startswith(_CLIPS)]
        files = ClipFiles(data, labels, root)
    except (OSError, ValueError) as error:
        raise UserError(f"{one_line(error, 300)}.") from None
    first: dict[str, Any] = headers[0] if headers else {"classes": [], "config": {}, "texts": None}
    names = files.class_names if labels is not None else first["classes"]
    numbers = files.labels.tolist()
    if max(numbers) >= len(names):
        raise UserError(f"{data}: label {max(numbers)}, but there are {len(names)} class names; --labels names them.")
    texts = [names[number] for number in numbers]
    templates = (first["texts"] or {}).get("templates")
    folder = next((model for model in models if model.startswith("hf:")), None)
    frames = first["config"].get("frames")
    return files, texts, _Wanted(list(dict.fromkeys(texts)), frames, templates, pretrained, folder)


def _group(texts: Sequence[str], dictionary: Sequence[str] | None) -> list[str]:
    """Returns the group of every text; "" without a dictionary."""
    from alt.corpus.verb_groups import group_by_verb
    from alt.data.action_names import name_to_text, read_names

    if not dictionary:
        return [""] * len(texts)
    try:
        names = [name_to_text(name) for source in dictionary for name in read_names(source)]
        return group_by_verb([name_to_text(text) for text in texts], names)
    except (OSError, ValueError) as error:
        raise UserError(f"--dictionary: {one_line(error, 300)}.") from None


def _name_columns(models: Sequence[str]) -> list[str]:
    """Returns a short name of every model: of its run or file, or CLIP; the whole argument where two are the same."""
    from alt.models.weights import WEIGHTS_NAME

    paths = [Path(model).parent if Path(model).name == WEIGHTS_NAME else Path(model) for model in models]
    short = [
        "CLIP" if model.startswith(_CLIPS) else path.name.removesuffix(".safetensors") or model
        for model, path in zip(models, paths, strict=True)
    ]
    return [model if short.count(name) > 1 else name for model, name in zip(models, short, strict=True)]


def _open_model(name: str, wanted: _Wanted, r: Any, device: str) -> VideoModel:
    """Opens a model that holds an embedding of every wanted name.

    Raises:
        UserError: it cannot be read, reads another number of frames, or its text tower is not at hand.
    """
    from alt.evaluate.checkpoint import at_r, open_model

    if name.startswith(_CLIPS):
        model = _open_clip(name, wanted).to(device)
    else:
        model = open_model(name, device, wanted.frames)
        if model.config.head == "linear":
            raise UserError(f"{name}: its linear head has no texts whose place could be shown.")
        if not set(wanted.names) <= set(model.classes):
            _name_classes(model, name, wanted)
    return model if r is None else at_r(model, r)


def _open_clip(name: str, wanted: _Wanted) -> VideoModel:
    """Opens a CLIP before training, as the mean over frames, with the prompts of the first checkpoint."""
    from alt.models.families import BACKBONES
    from alt.models.registry import build_with_clip

    backbone = name.removeprefix("open_clip:")
    pretrained = None if name.startswith("hf:") else wanted.pretrained  # such a folder has its weights
    suffix = next((suffix for suffix, row in BACKBONES.items() if row[0] == backbone), "b16")
    try:
        model, loaded = build_with_clip(
            f"clip-mean-{suffix}", backbone=backbone, pretrained=pretrained, frames=wanted.frames
        )
        model.name_classes(wanted.names, loaded.text_encoder(), wanted.templates or loaded.templates)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{name}: {one_line(error, 300)}.") from None
    return model.eval()


def _name_classes(model: VideoModel, name: str, wanted: _Wanted) -> None:
    """Gives a checkpoint the classes of the clips, embedded as its own were: by the text tower of its run."""
    from alt.evaluate.class_texts import open_class_texts
    from alt.train.config import ModelSection, load_config

    kept = (Path(name) if Path(name).is_dir() else Path(name).parent) / "config.yaml"
    if kept.is_file():
        section = load_config(kept).model
    elif model.config.backbone.startswith("hf:"):
        section = ModelSection(backbone=wanted.folder, pretrained=None)
    else:
        section = ModelSection(pretrained=wanted.pretrained)
    try:
        texts = open_class_texts(model, section, lambda line: logger.warning("%s", line))
        texts.name_classes(model, wanted.names, "the clips")
    except UserError as error:
        if kept.is_file():
            raise UserError(f"{name}: {error}") from None
        hint = "Here --pretrained names the weights, and an hf:PATH among the models its folder."
        raise UserError(f"{name}: {error} {hint}") from None


def _map_clips(model: VideoModel, files: ClipFiles, texts: Sequence[str]) -> list[TextMap]:
    from alt.data.sampling import make_views
    from alt.visualize.heat_comparison import map_text

    frames, size = model.config.frames, model.backbone.image_size[0]
    try:
        return [
            map_text(model, files.take(i, lambda video: make_views(video, frames, size)[0])[0], text)
            for i, text in enumerate(texts)
        ]
    except ValueError as error:
        raise UserError(f"{one_line(error, 300)}.") from None


def _write(
    files: ClipFiles,
    texts: Sequence[str],
    groups: Sequence[str],
    columns: dict[str, list[TextMap]],
    html: Path | None,
    pictures: Path | None,
) -> None:
    from alt.corpus.verb_groups import VERB_GROUPS
    from alt.files import replacing
    from alt.visualize.heat_comparison import ComparedHeat, draw_heat_comparison, write_heat_comparison
    from alt.visualize.heat_row import file_name

    order = sorted(range(len(texts)), key=lambda i: ("", *VERB_GROUPS).index(groups[i]))
    compared = [
        ComparedHeat(texts[i], {title: maps[i] for title, maps in columns.items()}, groups[i], files.name(i))
        for i in order
    ]
    try:
        if html is not None:
            write_heat_comparison(html, compared, note=f"{len(compared)} clips, one table each.")
            echo(f"Wrote {html}.")
        if pictures is None:
            return
        for number, one in enumerate(compared, 1):
            with replacing(pictures / f"{number:03d}_{file_name(one.text)}.png", "the picture") as partial:
                draw_heat_comparison(one).save(partial, "PNG")
    except ValueError as error:
        raise UserError(f"{one_line(error, 300)}.") from None
    echo(f"Wrote {len(compared)} pictures to {pictures}.")
