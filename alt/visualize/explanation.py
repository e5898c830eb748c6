"""Explains a clip in words: its classes, and the text entities that its regions were aligned to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alt.data.pixels import denormalise, normalise
from alt.models.modes import evaluation_mode
from alt.models.video_model import VideoModel

from .regions import region_map

__all__ = ["AlignedEntity", "ClassScore", "Explanation", "as_clip", "explain"]


class AlignedEntity(NamedTuple):
    """An entity that tokens chose.

    Attributes:
        share: of the aligned tokens, each counted as the patches it stands for (the class token as one).
        tokens: how many chose it. similarity: their mean cosine with it, weighted as the share is.
    """

    number: int  # row of the corpus
    unit: str
    category: str
    share: float
    tokens: int
    similarity: float


class ClassScore(NamedTuple):
    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """A clip as a model sees it; made by :func:`explain`. All tensors are on the CPU.

    T counts the frames that the model reads (CLIP-One: one). Where all frames are one sequence (CLIP-Joint) every
    frame has the same tokens, and a region may have patches in several frames.

    Attributes:
        pictures: uint8 ``[T, H, W, 3]``. grid: patches down and across.
        classes: all classes, the most probable first; () where the model has none.
        entities: of the clip, the largest share first; () where the model aligns nothing.
        frames: the same of every frame.
        x: ``[T, n, d]`` tokens in the joint space, 0 the frame's embedding. size: ``[T, n]`` patches of each.
        source: ``[T, 1 + N]`` the token that every patch ended in, after a 0 for the frame.
        index: ``[T, n_aligned]`` the entity of every aligned token, or None.
        units, categories: of the corpus.
    """

    pictures: NDArray[np.uint8]
    grid: tuple[int, int]
    classes: tuple[ClassScore, ...]
    entities: tuple[AlignedEntity, ...]
    frames: tuple[tuple[AlignedEntity, ...], ...]
    x: Tensor
    size: Tensor
    source: Tensor
    index: Tensor | None
    units: tuple[str, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def aligned(self) -> bool:
        """True if the model aligns tokens to entities."""
        return self.index is not None

    def regions(self, frame: int) -> NDArray[np.int64]:
        """Returns the token of every patch ``[h, w]``."""
        return region_map(self.source[frame], self.grid)

    def entity_map(self, frame: int) -> NDArray[np.int64]:
        """Returns the entity of every patch ``[h, w]``, -1 where its token was not aligned."""
        regions = self.regions(frame)
        if self.index is None:
            return np.full_like(regions, -1)
        row = self.index[frame].numpy()
        padded = np.concatenate([row, np.full(self.x.shape[1] - len(row), -1, np.int64)])
        return padded[regions]

    def class_token_entity(self, frame: int) -> int | None:
        """Returns the entity that the class token chose, which stands for the frame as a whole."""
        return None if self.index is None else int(self.index[frame, 0])

    def best_of_categories(self, at_least: float = 0.02) -> list[AlignedEntity]:
        """Returns per category the entity with the largest share if that is ``at_least``; the largest share first."""
        found: dict[str, AlignedEntity] = {}
        for entity in self.entities:
            if entity.share >= at_least or not found:
                found.setdefault(entity.category, entity)
        return list(found.values())

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """Returns plain values for JSON: the ``top`` classes and entities, and every region's entity per frame."""
        return {
            "classes": [score._asdict() for score in self.classes[:top]],
            "entities": [entity._asdict() for entity in self.entities[:top]],
            "frames": [
                {
                    "entities": [entity._asdict() for entity in entities],
                    "class_token": self._unit(self.class_token_entity(t)),
                    "source_map": self.regions(t).tolist(),
                    "entity_of_region": None if self.index is None else [self._unit(i) for i in self.index[t].tolist()],
                }
                for t, entities in enumerate(self.frames)
            ],
        }

    def _unit(self, number: int | None) -> str | None:
        return None if number is None else self.units[number]


def explain(model: VideoModel, clip: Tensor) -> Explanation:
    """Runs ``model`` on one clip and says what each region was aligned to.

    Works for every video model. Those that align nothing (the baselines, ``queries="random"``) have no entities. The
    model runs in evaluation mode, without noise, and is left in the mode it was in.

    Args:
        model: with a corpus, if it aligns. clip: frames uint8 ``[T, 3, H, W]``, or floats ``[T, 3, H, W]`` that are
            CLIP-normalised; T = ``model.config.frames``.

    Raises:
        TypeError: ``model`` is no video model. ValueError: the clip has another number of frames or another image
            size, or the model has no corpus.
    """
    clips = as_clip(model, clip)
    with evaluation_mode(model), torch.no_grad():
        tokens = model.encode(clips, trace=True)
        output = model.forward_tokens(tokens)
    assert tokens.source is not None
    assert tokens.size is not None
    x, size, source = tokens.x[0].float().cpu(), tokens.size[0].float().cpu(), tokens.source[0].cpu()
    index = None if output.index is None else output.index[0].cpu()
    shown = clips[0].cpu()
    grid = model.backbone.grid
    if model.tower_frames is None:  # one sequence: every frame has all tokens and its own patches
        patches = source[0, 1:].unflatten(0, (len(shown), -1))
        source = torch.cat([source[:, :1].expand(len(shown), 1), patches], 1)
        x, size = x.expand(len(shown), -1, -1), size.expand(len(shown), -1)
    elif model.tower_frames == 1:
        shown = shown[len(shown) // 2 :][:1]
    units, categories = _names(model, 0 if index is None else int(index.max()) + 1)
    frames: tuple[tuple[AlignedEntity, ...], ...] = tuple(() for _ in shown)
    entities: tuple[AlignedEntity, ...] = ()
    if index is not None:
        alignment: Any = model.alignment
        entity_rows = F.normalize(alignment.entities.float().cpu(), dim=-1)
        cosine = (F.normalize(x[:, : index.shape[1]], dim=-1) * entity_rows[index]).sum(-1)
        weight = size[:, : index.shape[1]]
        frames = tuple(_rank(i, w, c, units, categories) for i, w, c in zip(index, weight, cosine, strict=True))
        entities = _rank(index.flatten(), weight.flatten(), cosine.flatten(), units, categories)
    order = output.logits[0].float().softmax(-1).sort(descending=True, stable=True)
    classes = tuple(ClassScore(model.classes[i], float(p)) for p, i in zip(order.values, order.indices, strict=True))
    pictures = denormalise(shown).permute(0, 2, 3, 1).contiguous().numpy()
    return Explanation(pictures, grid, classes, entities, frames, x, size, source, index, units, categories)


def as_clip(model: Any, clip: Any) -> Tensor:
    """Returns a clip as the model takes it: ``[1, T, 3, H, W]``, normalised, on its device."""
    if not isinstance(model, VideoModel):
        raise TypeError(f"model: expected a video model of this package, got {type(model).__name__}")
    if not isinstance(clip, Tensor):
        raise TypeError(f"clip: expected a tensor of frames [T, 3, H, W], got {type(clip).__name__}")
    if clip.dim() == 5 and clip.shape[0] == 1:
        clip = clip[0]
    expected = [model.config.frames, 3, *model.backbone.image_size]
    if list(clip.shape) != expected:
        raise ValueError(f"clip: expected frames {expected} for this model, got {list(clip.shape)}")
    if not clip.is_floating_point():
        if clip.dtype != torch.uint8:
            raise TypeError(f"clip: expected uint8 frames or CLIP-normalised floats, got {clip.dtype}")
        clip = normalise(clip)
    scale = model.logit_scale
    return clip[None].to(scale.device, scale.dtype)


def _rank(
    index: Tensor, weight: Tensor, cosine: Tensor, units: tuple[str, ...], categories: tuple[str, ...]
) -> tuple[AlignedEntity, ...]:
    """Ranks entities by share; equal shares by similarity, then by their place in the corpus."""
    found = []
    for number in index.unique().tolist():
        chosen = index == number
        mass = weight[chosen].sum()
        similarity = (weight[chosen] * cosine[chosen]).sum() / mass
        share = float(mass / weight.sum())
        found.append(
            AlignedEntity(number, units[number], categories[number], share, int(chosen.sum()), float(similarity))
        )
    return tuple(sorted(found, key=lambda e: (-e.share, -e.similarity, e.number)))


def _names(model: Any, at_least: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    corpus = getattr(model, "corpus", None)
    if corpus is not None:
        return tuple(corpus.units), tuple(corpus.categories)
    alignment = getattr(model, "alignment", None)
    count = max(at_least, 0 if alignment is None else len(alignment.entities))
    return tuple(f"entity {i}" for i in range(count)), ("entity",) * count
