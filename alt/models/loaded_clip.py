"""A CLIP with both towers, its tokenizer, and where its weights come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from .text import TextEncoder, TextSource, fingerprint_text_tower

__all__ = ["LoadedClip", "check_activation"]


class LoadedClip(NamedTuple):
    """clip: a CLIP with both towers, open_clip's or another host's. quick_gelu: its activation. tokenizer: returns its
    tokenizer. templates: prompts for class names, in the style of its training texts. backbone, pretrained: as it was
    asked for; of a file of weights the name. has_weights: they came with the model, and not by ``pretrained``."""

    clip: Any
    quick_gelu: bool
    tokenizer: Callable[[], Any]
    templates: str
    backbone: str
    pretrained: str | None
    has_weights: bool = False

    def text_source(self) -> TextSource | None:
        """Returns which text encoder it has; None for random weights, which nobody has twice."""
        if self.pretrained is None and not self.has_weights:
            return None
        return TextSource(self.backbone, self.pretrained, fingerprint_text_tower(self.clip))

    def text_encoder(self) -> TextEncoder:
        """Returns the encoder of texts, with the weights of ``clip``."""
        return TextEncoder(self.clip, self.tokenizer(), backbone=self.backbone, pretrained=self.pretrained)


def check_activation(
    path: str | os.PathLike[str], trained: bool | None, wanted: bool | None, argument: str = "pretrained"
) -> None:
    """Raises ValueError if weights were trained with another activation than the model is to have; None: not known."""
    if trained is not None and wanted is not None and trained != wanted:
        raise ValueError(
            f"{argument}: {path} was trained with{'' if trained else 'out'} QuickGELU; create the model with "
            f"quick_gelu={trained}"
        )
