"""Methods on cached tokens: the frozen tower runs once, and everything after it is trained and tested on its tokens.

Every method is a model of ``alt.create_model``; its ``forward_tokens`` is trained (the paper's strategy "Frozen").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alt.data.seeds import seeded
from alt.hosts import find_tower
from alt.models.blocks import Mlp
from alt.models.clip import build_clip
from alt.models.config import BaselineConfig
from alt.models.registry import create_model
from alt.models.video_model import Tokens, VideoModel, VideoOutput
from alt.train.head_fitting import HeadRecipe, fit_head

from .measures import Entrant, evaluate, few_shot, linear_probe, name_classes, percent
from .methods import METHODS, Budget, Method, Plan
from .token_cache import TokenCache, VideoTokens

__all__ = ["METHODS", "Budget", "ClipMlp", "Method", "TokenEntrant", "build", "run_method", "train_head"]


class ClipMlp(VideoModel):
    """The mean of the frames followed by a residual MLP: a head that cannot see the order of frames."""

    config_class = BaselineConfig
    rows = "class"

    def __init__(self, config: Any, visual: Any, logit_scale: Tensor | float = 100.0) -> None:
        super().__init__(config, visual, logit_scale)
        self.mlp = Mlp(self.width, zero_output=True)

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z = tokens.frame.mean(1)
        return z + self.mlp(z), None


def build(method: Method, cache: TokenCache, seed: int) -> VideoModel:
    """Builds the method's model on the cache's small CLIP, with corpus and seen classes; ``seed`` draws what is new."""
    seen = cache.split("seen-train")
    default = {"strategy": "frozen"} if method.training == "tokens" else {}
    frames, options = cache.world.config.frames, {**default, **method.options}
    with seeded(seed):
        model: VideoModel
        if method.model == "mlp":
            clip = build_clip("mini", cache.pretrained).clip
            config = BaselineConfig(backbone="mini", frames=frames, r=method.r, **options)
            model = ClipMlp(config, find_tower(clip)[1], clip.logit_scale.detach().exp())
        else:
            if method.corpus is not None:
                options["corpus"] = cache.corpus if method.corpus == "all" else cache.corpus.subset(method.corpus)
            model = create_model(method.model, pretrained=cache.pretrained, frames=frames, r=method.r, **options)
        name_classes(model, cache, seen.split.class_names, method.templates)
    return model


def train_head(
    model: VideoModel, tokens: VideoTokens, *, steps: int, lr: float, seed: int, budget: Budget | None = None
) -> float:
    """Trains all but the tower on cached tokens; returns the mean loss of the last tenth of the steps.

    Raises:
        ValueError: the model has nothing to train while its tower is frozen.
    """
    budget = budget or Budget()

    def loss(rows: Tensor, noise: Tensor) -> Tensor:
        logits = model.forward_tokens(tokens.x[rows], seed=noise).logits
        return F.cross_entropy(logits, tokens.labels[rows], label_smoothing=budget.label_smoothing)

    recipe = HeadRecipe(
        lr=lr,
        steps=steps,
        warmup_steps=min(max(1, round(budget.warmup * steps)), steps - 1),
        batch_size=budget.batch_size,
        weight_decay=budget.weight_decay,
        clip_norm=1.0,
    )
    model.train()
    try:
        return fit_head(model, loss, len(tokens.labels), recipe, seed=seed)
    finally:
        model.eval()


@torch.inference_mode()
def accuracy(model: VideoModel, tokens: VideoTokens) -> float:
    """Returns top-1 in percent."""
    model.eval()
    best = torch.cat([model.forward_tokens(part).logits.argmax(-1) for part in tokens.x.split(256)])
    return percent(best == tokens.labels)


class TokenEntrant(Entrant):
    """A model that gets cached tokens of its method's r."""

    def __init__(self, model: VideoModel, cache: TokenCache, method: Method, budget: Budget) -> None:
        super().__init__(model, cache, method.templates)
        self.method, self.budget = method, budget

    def outputs(self, split: str, backwards: bool) -> Iterator[VideoOutput]:
        tokens = self.cache.tokens(split, self.method.r)
        return map(self.model.forward_tokens, (tokens.reversed() if backwards else tokens).x.split(256))

    def on_shots(self, split: str, rows: Sequence[int], seed: int) -> TokenEntrant:
        copy = TokenEntrant(deepcopy(self.model), self.cache, self.method, self.budget)
        copy.name_classes(split)
        if self.method.trained:
            pool = self.cache.tokens(f"{split}-train", self.method.r)
            steps, lr = self.budget.few_shot_steps, self.budget.few_shot_lr
            train_head(copy.model, pool.take(rows), steps=steps, lr=lr, seed=seed, budget=self.budget)
        return copy


def run_method(method: Method, cache: TokenCache, *, seed: int, plan: Plan | None = None) -> dict[str, float]:
    """Trains one method with one seed on the seen classes and returns all its measures in percent."""
    plan = plan or Plan()
    model = build(method, cache, seed)
    found: dict[str, float] = {}
    if method.trained:
        train, budget = cache.tokens("seen-train", method.r), plan.tokens
        found["loss"] = train_head(model, train, steps=budget.steps, lr=budget.lr, seed=seed, budget=budget)
    entrant = TokenEntrant(model.eval(), cache, method, plan.tokens)
    found |= evaluate(entrant, objects=method.corpus in ("all", "object"))
    found |= few_shot(entrant, shots=plan.shots, seed=seed)
    return found | linear_probe(entrant, steps=plan.probe_steps, seed=seed)
