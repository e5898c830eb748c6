"""What is measured of a method, whatever way its clips come: as cached tokens, or as pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alt.data.few_shot import few_shot_indices
from alt.entityworld.world import FAMILIES
from alt.evaluate.linear_probe import Features, ProbeConfig, fit_probe
from alt.models.video_model import VideoModel, VideoOutput

from .token_cache import TokenCache

__all__ = ["FEW_SHOT", "ZERO_SHOT", "Entrant", "evaluate", "few_shot", "grounding", "linear_probe", "name_classes"]

ZERO_SHOT = {
    "transfer-a": ("transfer-a-1", "transfer-a-2", "transfer-a-3"),
    "transfer-b": ("transfer-b-1", "transfer-b-2", "transfer-b-3"),
    "k600": ("k600-1", "k600-2", "k600-3"),
}
FEW_SHOT = ("transfer-a-1", "transfer-b-1")


def name_classes(model: VideoModel, cache: TokenCache, names: Sequence[str], templates: str | None = None) -> None:
    """Sets the classes of a model by their names, in ``templates`` or those of the cache."""
    encoder = None if model.config.head == "linear" else cache.text
    model.name_classes(names, encoder, templates or cache.templates)


class Entrant(ABC):
    """A model, and the way it is shown clips and trained on them."""

    def __init__(self, model: VideoModel, cache: TokenCache, templates: str | None = None) -> None:
        self.model, self.cache, self.templates = model, cache, templates

    @abstractmethod
    def outputs(self, split: str, backwards: bool) -> Iterator[VideoOutput]:
        """Yields the outputs of a split's clips in order; ``backwards``: of the clips played backwards."""

    @abstractmethod
    def on_shots(self, split: str, rows: Sequence[int], seed: int) -> Entrant:
        """Returns a copy with the classes of ``split``, trained further on the clips ``rows`` of its pool."""

    def name_classes(self, split: str) -> None:
        """Sets the classes of a split, embedded as the model embeds its class names."""
        name_classes(self.model, self.cache, self.cache.split(split).split.class_names, self.templates)

    @torch.inference_mode()
    def predict(self, split: str, backwards: bool = False) -> tuple[Tensor, Tensor | None]:
        """Returns the best class ``[N]``, and the entity of every aligned token ``[N, T, n]`` or None."""
        self.model.eval()
        outputs = list(self.outputs(split, backwards))
        chosen = [o.index for o in outputs if o.index is not None]
        return torch.cat([o.logits for o in outputs]).argmax(-1), torch.cat(chosen) if chosen else None

    @torch.inference_mode()
    def embed(self, split: str) -> Tensor:
        """Returns the video vectors ``[N, d]`` of a split."""
        self.model.eval()
        return torch.cat([o.embedding for o in self.outputs(split, False)])

    def accuracy(self, split: str) -> float:
        """Returns top-1 in percent."""
        return percent(self.predict(split)[0] == self.cache.split(split).split.labels)


def percent(right: Tensor) -> float:
    """Returns the share of True in percent."""
    return 100 * float(right.float().mean())


def grounding(index: Tensor, objects: Tensor, count: int) -> tuple[float, float]:
    """Returns the percentages of frames whose entities include the planted object, and a fixed other object.

    The second is the average over all other objects.

    Args:
        index: ``[N, T, n]`` entities of the aligned tokens; objects are the first ``count`` entities of the corpus.
        objects: ``[N]`` the planted ones.
    """
    there = torch.stack([(index == o).any(-1) for o in range(count)], -1).float().mean(1)  # [N, count]
    planted = there.gather(1, objects[:, None])
    others = (there.sum(1, keepdim=True) - planted) / (count - 1)
    return 100 * float(planted.mean()), 100 * float(others.mean())


def evaluate(entrant: Entrant, *, objects: bool = False) -> dict[str, float]:
    """Returns all measures that need no further training, in percent. The model has the seen classes before and after.

    Without class texts there is no zero-shot. ``objects``: the corpus begins with the objects, so that the aligned
    ones can be compared with the planted ones.
    """
    cache, model = entrant.cache, entrant.model
    seen = cache.split("seen-test").split
    best, index = entrant.predict("seen-test")
    backwards = entrant.predict("seen-test", backwards=True)[0]
    right, still = best == seen.labels, backwards == seen.labels
    found = {"seen": percent(right), "reversed": percent(still), "changed by reversal": percent(backwards != best)}
    family = seen.families
    for name in FAMILIES:
        rows = torch.tensor([family[int(label)] == name for label in seen.labels])
        if rows.any():
            found[f"seen {name}"] = percent(right[rows])
            found[f"reversed {name}"] = percent(still[rows])
    if index is not None and objects:
        planted = torch.tensor([spec.object for spec in seen.specs])
        found["planted"], found["wrong"] = grounding(index, planted, cache.world.config.objects)
    if model.config.head == "linear":
        return found
    for group, splits in ZERO_SHOT.items():
        values = []
        for name in splits:
            entrant.name_classes(name)
            values.append(entrant.accuracy(name))
        found[f"zero-shot {group}"] = sum(values) / len(values)
    entrant.name_classes("seen-train")
    return found


def few_shot(entrant: Entrant, *, shots: Sequence[int], seed: int) -> dict[str, float]:
    """Trains further on K clips per transferred class and tests on the first split; returns the mean of A and B."""
    found = {}
    for count in shots:
        values = []
        for name in FEW_SHOT:
            labels = entrant.cache.split(f"{name}-train").split.labels.tolist()
            values.append(entrant.on_shots(name, few_shot_indices(labels, count, seed), seed).accuracy(name))
        found[f"{count}-shot"] = sum(values) / len(values)
    return found


def linear_probe(entrant: Entrant, *, steps: int, seed: int) -> dict[str, float]:
    """Fits a linear layer on the video vectors of the transferred pools; returns the mean of A and B, first split."""
    values = []
    for name in FEW_SHOT:
        train, test = (entrant.cache.split(part).split for part in (f"{name}-train", name))
        config = ProbeConfig(lr=0.1, steps=steps, warmup_steps=min(steps - 1, max(1, steps // 20)), seed=seed)
        layer = fit_probe(Features(entrant.embed(f"{name}-train").clone(), train.labels), len(train.classes), config)
        values.append(percent(layer(entrant.embed(name)).argmax(-1) == test.labels))
    return {"linear probe": sum(values) / len(values)}
