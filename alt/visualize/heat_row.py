"""Heat maps of a clip for a page: their texts, names and titles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alt.models.video_model import VideoModel

from .explanation import Explanation
from .heat_maps import gradient_heat_map, text_heat_map, text_of

__all__ = ["HeatRow", "file_name", "heat_rows"]

_KINDS = {
    "cosine": "cosine of every region with the text",
    "gradient": "gradient of the text’s score, largest = 1",
}


class HeatRow(NamedTuple):
    """One heat map of every frame. kind: "cosine" or "gradient"; name: of the file; title: what it shows."""

    kind: str
    name: str
    title: str
    heat: NDArray[np.float32]  # [T, h, w]

    @property
    def scale(self) -> tuple[float, float]:
        """Returns the values at the ends of the colours, the same for all frames."""
        return (0.0, 1.0) if self.kind == "gradient" else (float(self.heat.min()), float(self.heat.max()))

    @property
    def kind_in_words(self) -> str:
        return _KINDS[self.kind]


def heat_rows(
    model: VideoModel, clip: Tensor, explanation: Explanation, texts: Sequence[str] | None = None
) -> list[HeatRow]:
    """Returns the cosine map and the gradient map of every text.

    Args:
        model: that explained the clip.
        clip: as given to :func:`explain`.
        explanation: the result of :func:`explain`.
        texts: entities or classes; None: the most probable class, and the entity with the largest share per category.

    Raises:
        ValueError: a text is neither an entity nor a class of the model.
    """
    if texts is None:
        texts = [entity.unit for entity in explanation.best_of_categories()]
        if explanation.classes and getattr(model.head, "kind", "") != "linear":
            texts = [explanation.classes[0].name, *texts]
    rows = []
    for text in dict.fromkeys(texts):
        embedding = text_of(model, text)
        name = file_name(text)
        rows.append(HeatRow("cosine", name, f"likeness to “{text}”", text_heat_map(explanation, embedding)))
        rows.append(HeatRow("gradient", name, f"where “{text}” comes from", gradient_heat_map(model, clip, embedding)))
    return rows


def file_name(text: str) -> str:
    """Returns what the file of a text's heat map is called, without its suffix."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:60] or "text"
