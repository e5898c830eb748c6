"""The encoder and templates of new class names: those with which a checkpoint's own classes were embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alt.errors import UserError, one_line
from alt.models.clip import has_own_weights, list_tags, takes_any_words
from alt.models.registry import create_text_encoder
from alt.models.video_model import VideoModel
from alt.train.build import RandomTextEncoder, text_encoder
from alt.train.config import ModelSection

__all__ = ["ClassTexts", "open_class_texts"]


class ClassTexts(NamedTuple):
    """encoder: of texts. templates: a set's name, or the prompts themselves."""

    encoder: Any
    templates: str | Sequence[str]

    def name_classes(self, model: VideoModel, names: Sequence[str], where: str) -> None:
        """Gives the model new classes. ``where`` names their origin in the message of an error.

        Raises:
            UserError: two names have the same tokens, so the tower cannot tell them apart.
        """
        try:
            model.name_classes(names, self.encoder, self.templates)
        except ValueError as error:
            raise UserError(f"The class names of {where} cannot be embedded: {one_line(error)}.") from None


def open_class_texts(model: VideoModel, section: ModelSection, warn: Callable[[str], None]) -> ClassTexts:
    """Opens the encoder that the checkpoint of ``model`` records, and takes the templates that it records.

    The record names published weights by their tag; for the small CLIP, ``section.pretrained`` may ask for the same
    tower with a tokenizer that takes any words. Anything else in it is no reason to read or download a file:
    weights from a file are those of ``section.pretrained``, and those of a folder of transformers ``section.backbone``.
    Either way the tower must have the recorded fingerprint.
    A checkpoint without a record (format 1) takes encoder and templates of ``section``, which is told.

    Raises:
        UserError: the head reads no texts, or the encoder is not the recorded one.
    """
    if model.config.head == "linear":
        raise UserError("evaluation.protocol: zero-shot needs a head with texts, and the checkpoint's is linear.")
    source = model.class_text_source
    if source is None:
        warn(
            "The checkpoint does not record how its class names were embedded: model.pretrained "
            f"({section.pretrained}) and model.templates ({section.templates}) are used."
        )
        return ClassTexts(text_encoder(section, model.width), section.templates)
    if source.backbone == "random":
        return ClassTexts(RandomTextEncoder(model.width), ())
    backbone, pretrained = model.config.backbone, source.pretrained
    if section.backbone is not None and has_own_weights(section.backbone):
        backbone, pretrained = section.backbone, None
    elif pretrained is None and ":" in backbone:
        raise UserError(
            f"The checkpoint's class names were embedded by {source}: name its folder with model.backbone=hf:PATH."
        )
    elif (
        source.backbone != backbone
        or pretrained not in list_tags(backbone)
        or takes_any_words(backbone, section.pretrained)
    ):
        pretrained = section.pretrained
    if pretrained is None and not has_own_weights(backbone):
        raise UserError(f"The checkpoint's class names were embedded by {source}: name the file with model.pretrained.")
    try:
        encoder = create_text_encoder(backbone, pretrained=pretrained, quick_gelu=model.config.quick_gelu)
    except ValueError as error:
        raise UserError(f"model.{one_line(error, 300)}.") from None
    if encoder.fingerprint() != source.sha256:
        raise UserError(
            f"The checkpoint's class names were embedded by {source}, and {pretrained or backbone} is another text "
            f"tower: name the right weights with model.{'pretrained' if pretrained else 'backbone'}."
        )
    return ClassTexts(encoder, source.templates)
