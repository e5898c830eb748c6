"""The model of a configuration: weights, corpus, class texts; and its export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alt.corpus import READY, Corpus, TextSource
from alt.errors import UserError, one_line

from .checkpoint import write_errors
from .config import ModelSection, TrainConfig

if TYPE_CHECKING:
    from alt.models.clip import LoadedClip


def check_files(config: TrainConfig) -> None:
    """Checks that the weights exist and the corpus fits, before anything slow. No weights are read.

    Raises:
        UserError: a file or a tag of weights does not exist, the corpus cannot be read, it has no entity of the chosen
            categories, or another text encoder embedded it.
    """
    from alt.models.clip import check_weights

    section = config.model
    try:
        check_weights(section.clip, section.pretrained)
    except ValueError as error:
        raise UserError(f"model: {one_line(error, 300)}.") from None
    if section.init_from is not None and not Path(section.init_from).is_file():
        raise UserError(f"model.init_from: there is no file {section.init_from}; train the run it names first.")
    if section.corpus not in (None, "world", "labels"):
        _check_corpus(section)


def _check_corpus(section: ModelSection) -> None:
    """Reads the corpus of a file. Its encoder is compared by name here; by its weights when the model is there."""
    from alt.models.clip import name_backbone

    name = str(section.corpus)
    if name not in READY and not Path(name).is_file():
        raise UserError(
            f"model.corpus: there is no file {name}; `alt corpus build` makes one, and {', '.join(READY)} ship."
        )
    try:
        corpus = Corpus.load(name)
        if section.corpus_categories is not None:
            corpus.subset(section.corpus_categories)
    except (OSError, ValueError) as error:
        raise UserError(f"model.corpus: {one_line(error, 300)}.") from None
    wanted = "random" if section.texts == "random" else name_backbone(section.clip)
    if corpus.encoder is not None and corpus.encoder.backbone not in ("", wanted):
        raise UserError(
            f"model.corpus: {name} was embedded by {corpus.encoder}, and this run embeds its texts with {wanted}; "
            "embed it again with `alt corpus embed`."
        )


def build_model(
    config: TrainConfig, classes: Sequence[str], world: Any = None, say: Callable[[str], None] = lambda line: None
) -> nn.Module:
    """Builds the video model and sets its classes and corpus. Errors as in :func:`build_with_encoder`."""
    return build_with_encoder(config, classes, world, say)[0]


def build_with_encoder(
    config: TrainConfig, classes: Sequence[str], world: Any = None, say: Callable[[str], None] = lambda line: None
) -> tuple[Any, Any]:
    """Builds the video model, and returns it with the encoder of its class texts; None for a head without texts.

    Raises:
        UserError: the model, its weights, its corpus or the texts do not fit. The message is one sentence.
    """
    from alt.models.registry import build_with_clip

    section = config.model
    try:
        model: Any
        model, clip = build_with_clip(
            section.name,
            backbone=section.backbone,
            pretrained=section.pretrained,
            frames=section.frames,
            r=section.r,
            **section.options,
        )
        if section.texts == "random":
            model.joint_text_source = RandomTextEncoder(model.width).source()
        if getattr(model.config, "queries", None) == "entity":
            corpus = _open_corpus(section, classes, world)
            if corpus.embeddings is None:
                corpus = corpus.embed(text_encoder(section, model.width, clip))
            model.set_corpus(corpus)
        encoder = None if model.config.head == "linear" else text_encoder(section, model.width, clip)
        if model.text is not None and section.texts == "random":
            raise UserError(
                "model.texts: a model that holds its text tower reads its class names; expected clip, got random."
            )
        if section.texts == "random" and model.config.prompting == "random":
            raise UserError("model.texts: random directions have no templates to draw from; expected clip, got random.")
        model.name_classes(list(classes), encoder, section.templates)
        if section.init_from is not None:
            say(load_start(model, Path(section.init_from)))
    except UserError:
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise UserError(f"model: {one_line(error, 300)}.") from error
    return model, encoder


def _open_corpus(section: ModelSection, classes: Sequence[str], world: Any) -> Corpus:
    if section.corpus is None:
        raise UserError(
            f"model.corpus must name a corpus for {section.name} with entity queries: a file, world or labels."
        )
    if section.corpus == "labels":
        corpus = Corpus.from_labels(classes)
    elif section.corpus == "world":
        if world is None:
            raise UserError("model.corpus is world, which only data of kind entity_world has.")
        corpus = Corpus.from_entities(world.corpus_rows())
    else:
        corpus = Corpus.load(section.corpus)
    return corpus if section.corpus_categories is None else corpus.subset(section.corpus_categories)


class RandomTextEncoder:
    """Embeds every text as a fixed random direction, for towers that were not trained with texts."""

    def __init__(self, width: int) -> None:
        self.width = width

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns unit rows ``[n, width]``, each a function of its text alone."""
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
            rows.append(torch.randn(self.width, generator=torch.Generator().manual_seed(seed)))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def embed_classes(self, names: Sequence[str], templates: Any = None, unit: bool = True) -> Tensor:
        return self.embed(names)

    def source(self, templates: Any = ()) -> TextSource:
        """Returns the record of this encoder, which has no tower and reads no templates."""
        return TextSource("random", None, "")


def text_encoder(section: ModelSection, width: int, clip: LoadedClip | None = None) -> Any:
    """Returns the encoder of class names and corpus that ``model.texts`` names.

    Args:
        section: the model. width: d of the joint space. clip: its loaded CLIP; None: the weights are read.

    Raises:
        UserError: it is CLIP's text tower, and no weights are named.
    """
    from alt.models.clip import has_own_weights
    from alt.models.registry import create_text_encoder

    if section.texts == "random":
        return RandomTextEncoder(width)
    if section.pretrained is None and not has_own_weights(section.clip):
        raise UserError(
            "model.pretrained is null, so its text tower is untrained; set model.texts=random for a random direction "
            "per text, or name weights."
        )
    if clip is not None:
        return clip.text_encoder()
    quick_gelu = section.options.get("quick_gelu")  # the two towers were trained with one activation
    return create_text_encoder(section.clip, pretrained=section.pretrained, quick_gelu=quick_gelu)


def load_start(model: nn.Module, path: Path) -> str:
    """Reads the weights of an earlier run; classes, corpus and head of the model are kept.

    Raises:
        UserError: there is no such file, or it belongs to another model.
    """
    from alt.models.weights import load_weights

    try:
        count = load_weights(model, path, keep_classes=True, keep_corpus=True)
    except FileNotFoundError:
        raise UserError(f"model.init_from: there is no file {path}; train the run it names first.") from None
    except ValueError as error:
        raise UserError(f"model.init_from: {one_line(error, 300)}.") from None
    return f"Started from {path}: {count} tensors."


def export(model: nn.Module, path: Path) -> None:
    """Writes the weights as one safetensors file, whole or not at all."""
    from alt.models.weights import save_model

    with write_errors():
        save_model(model, path)
