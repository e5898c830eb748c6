"""Methods whose towers are trained: whole models on clips, with labels or with bags of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch

from alt.data.seeds import derive_seed
from alt.entityworld.world import normalise
from alt.models.video_model import VideoModel, VideoOutput

from .fine_tuning import FineTuning, RenderedSplit, fine_tune
from .measures import Entrant, evaluate, few_shot, linear_probe, name_classes
from .method_grid import build
from .methods import Method, Plan
from .token_cache import TokenCache
from .unlabelled import match_clips

__all__ = ["ClipEntrant", "run_whole"]


class ClipEntrant(Entrant):
    """A model that gets clips, and is trained as a whole by its method's strategy."""

    def __init__(
        self, model: VideoModel, cache: TokenCache, few_shot: FineTuning, templates: str | None = None
    ) -> None:
        super().__init__(model, cache, templates)
        self.few_shot = few_shot

    def outputs(self, split: str, backwards: bool) -> Iterator[VideoOutput]:
        parts = self.cache.frames(split).split(64)
        return (self.model(normalise(part.flip(1) if backwards else part)) for part in parts)

    def on_shots(self, split: str, rows: Sequence[int], seed: int) -> ClipEntrant:
        copy = ClipEntrant(deepcopy(self.model), self.cache, self.few_shot, self.templates)
        copy.name_classes(split)
        fine_tune(copy.model, take(self.cache, f"{split}-train", rows), self.few_shot, seed=seed)
        return copy


def take(cache: TokenCache, split: str, rows: Sequence[int] | None = None) -> RenderedSplit:
    """Returns the clips ``rows`` of a split, None: all, as :func:`fine_tune` reads them."""
    whole = cache.split(split).split
    chosen = torch.arange(len(whole.labels)) if rows is None else torch.as_tensor(rows)
    return RenderedSplit(cache.frames(split)[chosen], whole.labels[chosen], whole.class_names, whole.families)


def run_whole(method: Method, cache: TokenCache, *, seed: int, plan: Plan | None = None) -> dict[str, float]:
    """Trains one whole model with one seed on the clips of the seen classes and returns its measures in percent.

    Without labels it also returns how many matched names are right, for several shares of clips that are kept.
    """
    plan = plan or Plan()
    model = build(method, cache, seed)
    strategy = model.config.strategy
    found: dict[str, float] = {}
    if method.training == "clips":
        fine_tune(model, take(cache, "seen-train"), dataclasses.replace(plan.clips, strategy=strategy), seed=seed)
    else:
        matched = match_clips(model, cache, method, seed=derive_seed("corpus", seed=seed))
        found |= matched.accuracies
        clips = take(cache, "seen-train", matched.rows.tolist())
        clips = clips._replace(labels=matched.names, names=matched.dictionary)
        if method.training == "labels":
            name_classes(model, cache, matched.dictionary, method.templates)
        objective = matched.bags(cache) if method.training == "bags" else None
        fine_tune(model, clips, plan.bags, seed=seed, objective=objective)
    few = dataclasses.replace(plan.few_shot, strategy=strategy)
    entrant = ClipEntrant(model.eval(), cache, few, method.templates)
    if method.training != "clips":  # those have the seen classes, and a linear head would begin anew
        entrant.name_classes("seen-train")
    found |= evaluate(entrant, objects=method.corpus == "all")
    if method.few_shot:
        found |= few_shot(entrant, shots=plan.shots, seed=seed)
        found |= linear_probe(entrant, steps=plan.probe_steps, seed=seed)
    return found
