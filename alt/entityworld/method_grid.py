"""The grid of methods on cached tokens: their training and their measurements.

Every method is a model of ``alt.create_model``; its ``forward_tokens`` is trained and tested on tokens that the frozen
tower made once (the paper's strategy "Frozen").
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alt.cost import count_macs
from alt.data.few_shot import few_shot_indices
from alt.data.seeds import seeded
from alt.entityworld.world import FAMILIES
from alt.hosts import find_tower
from alt.models.blocks import Mlp
from alt.models.clip import build_clip
from alt.models.config import BaselineConfig
from alt.models.registry import create_model
from alt.models.video_model import Tokens, VideoModel
from alt.train.head_fitting import HeadRecipe, fit_head

from .token_cache import TokenCache, VideoTokens

__all__ = [
    "METHODS",
    "Budget",
    "ClipMlp",
    "Method",
    "build",
    "evaluate",
    "few_shot",
    "run_grid",
    "run_method",
    "train_head",
]


@dataclass(frozen=True)
class Method:
    """A row of the grid: a name of ``alt.create_model`` (or "mlp"), r and options."""

    name: str
    model: str = "alt-mini"
    r: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    corpus: str | None = "all"  # a category, "all", or None

    @property
    def trained(self) -> bool:
        """Returns True if the method has something to train: CLIP-Mean has not while the tower is frozen."""
        return self.model != "clip-mean-mini"


@dataclass(frozen=True)
class Budget:
    """Steps of AdamW on the seen classes and on K shots; learning rate, batch, weight decay."""

    steps: int = 1500
    few_shot_steps: int = 100
    batch_size: int = 32
    lr: float = 3e-3
    few_shot_lr: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.05
    label_smoothing: float = 0.1


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


def _alt(name: str, r: int = 2, corpus: str | None = "all", **options: Any) -> Method:
    return Method(name, r=r, options=options, corpus=corpus)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("CLIP-Mean", "clip-mean-mini", 0, corpus=None),
        Method("MLP", "mlp", 0, corpus=None),
        Method("MIT", "mit-mini", 0, corpus=None),
        _alt("ALT r=0 cls", 0, align_tokens="cls"),
        _alt("ALT r=0", 0),
        _alt("ALT r=2", 2),
        _alt("ALT r=4", 4),
        _alt("ALT r=6", 6),
        _alt("ALT cls only", align_tokens="cls"),
        _alt("ALT random queries", queries="random", corpus=None),
        _alt("ALT no conv", convolution=False),
        _alt("ALT no SA", self_attention=False),
        _alt("ALT no SA no conv", self_attention=False, convolution=False),
        _alt("ALT scale 1", sim_scale=1.0),
        _alt("ALT scale 10", sim_scale=10.0),
        _alt("ALT scale 100", sim_scale=100.0),
        _alt("ALT literal init", init="literal"),
        _alt("ALT objects", corpus="object"),
        _alt("ALT body parts", corpus="body_part"),
        _alt("ALT scenes", corpus="scene"),
        _alt("ALT motions", corpus="motion"),
    )
}
"""Name -> method. "ALT r=2" is the model as it comes."""


def build(method: Method, cache: TokenCache, seed: int) -> VideoModel:
    """Builds the method's model: an adapter drawn by ``seed`` on the cache's tower, with corpus and seen classes."""
    seen = cache.split("seen-train")
    frames, options = cache.world.config.frames, {"strategy": "frozen", **method.options}
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
    model.set_classes(seen.split.class_names, seen.texts)
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
def predict(model: VideoModel, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the best class ``[N]`` of cached tokens, and the entity of every aligned token ``[N, T, n]`` or None."""
    model.eval()
    outputs = [model.forward_tokens(part) for part in x.split(256)]
    chosen = [o.index for o in outputs if o.index is not None]
    index = torch.cat(chosen) if chosen else None
    return torch.cat([o.logits for o in outputs]).argmax(-1), index


def accuracy(model: VideoModel, tokens: VideoTokens) -> float:
    """Returns top-1 in percent."""
    return 100 * float((predict(model, tokens.x)[0] == tokens.labels).float().mean())


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


def evaluate(model: VideoModel, method: Method, cache: TokenCache) -> dict[str, float]:
    """Returns all measures that need no further training, in percent."""
    world, seen = cache.world, cache.split("seen-test")
    tokens = cache.tokens("seen-test", method.r)
    best, index = predict(model, tokens.x)
    right = best == tokens.labels
    found = {"seen": 100 * float(right.float().mean())}
    played_backwards = predict(model, tokens.reversed().x)[0]
    backwards = played_backwards == tokens.labels
    found["reversed"] = 100 * float(backwards.float().mean())
    found["changed by reversal"] = 100 * float((played_backwards != best).float().mean())
    family = seen.split.families
    for name in FAMILIES:
        rows = torch.tensor([family[int(label)] == name for label in tokens.labels])
        if rows.any():
            found[f"seen {name}"] = 100 * float(right[rows].float().mean())
            found[f"reversed {name}"] = 100 * float(backwards[rows].float().mean())
    if index is not None and method.corpus in ("all", "object"):
        objects = torch.tensor([spec.object for spec in seen.split.specs])
        found["planted"], found["wrong"] = grounding(index, objects, world.config.objects)
    classes, names = model.head, list(model.classes)
    kept = classes.embeddings.clone()
    for group, splits in ZERO_SHOT.items():
        values = []
        for name in splits:
            other = cache.split(name)
            model.set_classes(other.split.class_names, other.texts)
            values.append(accuracy(model, cache.tokens(name, method.r)))
        found[f"zero-shot {group}"] = sum(values) / len(values)
    model.set_classes(names, kept)
    return found


ZERO_SHOT = {
    "transfer-a": ("transfer-a-1", "transfer-a-2", "transfer-a-3"),
    "transfer-b": ("transfer-b-1", "transfer-b-2", "transfer-b-3"),
    "k600": ("k600-1", "k600-2", "k600-3"),
}
FEW_SHOT = ("transfer-a-1", "transfer-b-1")


def few_shot(
    model: VideoModel, method: Method, cache: TokenCache, *, shots: Sequence[int], seed: int, budget: Budget
) -> dict[str, float]:
    """Trains further on K clips per transferred class and tests on the first split; returns the mean of A and B."""
    found = {}
    for count in shots:
        values = []
        for name in FEW_SHOT:
            other = cache.split(name)
            pool = cache.tokens(f"{name}-train", method.r)
            copy = deepcopy(model)
            copy.set_classes(other.split.class_names, other.texts)
            if method.trained:
                rows = few_shot_indices(pool.labels.tolist(), count, seed)
                train_head(
                    copy,
                    pool.take(rows),
                    steps=budget.few_shot_steps,
                    lr=budget.few_shot_lr,
                    seed=seed,
                    budget=budget,
                )
            values.append(accuracy(copy, cache.tokens(name, method.r)))
        found[f"{count}-shot"] = sum(values) / len(values)
    return found


def run_method(
    method: Method,
    cache: TokenCache,
    *,
    seed: int,
    budget: Budget | None = None,
    shots: Sequence[int] = (2, 16),
) -> dict[str, float]:
    """Trains one method with one seed on the seen classes and returns all its measures in percent."""
    budget = budget or Budget()
    start = time.perf_counter()
    model = build(method, cache, seed)
    found: dict[str, float] = {}
    if method.trained:
        train = cache.tokens("seen-train", method.r)
        found["loss"] = train_head(model, train, steps=budget.steps, lr=budget.lr, seed=seed, budget=budget)
    model.eval()
    found |= evaluate(model, method, cache)
    found |= few_shot(model, method, cache, shots=shots, seed=seed, budget=budget)
    found["seconds"] = time.perf_counter() - start
    return found


def run_grid(
    cache: TokenCache,
    methods: Sequence[Method],
    *,
    seeds: Sequence[int],
    budget: Budget | None = None,
    shots: Sequence[int] = (2, 16),
    say: Callable[[str], None] = lambda line: None,
    done: Callable[[dict[str, list[dict[str, float]]]], None] = lambda results: None,
) -> dict[str, list[dict[str, float]]]:
    """Runs every method with every seed: method -> results of :func:`run_method`, one per seed, with GMACs per clip.

    Args:
        methods: run in the order of their r, so that the tokens of only one r are held at a time.
        say: receives a line per finished run. done: called with all results so far after every method.
    """
    results: dict[str, list[dict[str, float]]] = {}
    for r, group in itertools.groupby(sorted(methods, key=lambda method: method.r), key=lambda method: method.r):
        for method in group:
            gmacs = count_macs(build(method, cache, seeds[0])).native_g
            runs = results.setdefault(method.name, [])
            for seed in seeds:
                runs.append({**run_method(method, cache, seed=seed, budget=budget, shots=shots), "gmacs": gmacs})
                say(f"{method.name}, seed {seed}: {runs[-1]['seen']:.1f} % in {runs[-1]['seconds']:.0f} s")
            done(results)
        cache.forget(r)
    return {method.name: results[method.name] for method in methods}
