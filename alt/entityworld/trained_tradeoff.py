"""The trade-off across r on EntityWorld: ALT trained on cached tokens, with merging or without.

In training: train and test on tokens of one r. Off-the-shelf: train on unmerged tokens, test on merged ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch

from alt.evaluate.tradeoff import Point, Tradeoff, rows_of
from alt.models.video_model import VideoModel
from alt.patch.schedule import tilt

from .method_grid import Budget, Method, accuracy, build, train_head
from .token_cache import TokenCache

__all__ = ["train_tradeoff"]


def train_tradeoff(
    cache: TokenCache,
    *,
    r: Sequence[int] = (0, 2, 4, 6),
    inflections: Sequence[float] = (0.0, -1.0),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    budget: Budget | None = None,
    in_training: bool = True,
    measure: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Tradeoff:
    """Tests ALT on the seen classes' test clips, at every r and schedule, over seeds.

    Args:
        cache: the world and its tower.
        r: tokens merged per block, always with 0. inflections: 0 for a constant schedule, -1 for a decreasing one.
        seeds: one training each. budget: of the training.
        in_training: also train with merging, at the constant schedule.
        measure: also measure throughput and peak memory.
        say: receives progress lines.
    """
    budget = budget or Budget()
    merged = sorted({value for value in r if value > 0})
    method = Method("ALT", r=0)
    points = [Point("ALT", 0)]
    points += [Point("ALT", value, slope, 0) for slope in inflections for value in merged]
    if in_training:
        points += [Point("ALT", value, 0.0, value) for value in merged]
    found: dict[Point, list[float]] = {point: [] for point in points}
    for number, seed in enumerate(seeds):
        say(f"trade-off, seed {number + 1} of {len(seeds)}")
        plain = _train_adapter(cache, method, 0, seed, budget)
        for point in points:
            model = plain if point.trained_r == 0 else _train_adapter(cache, method, point.r, seed, budget)
            found[point].append(accuracy(model, cache.tokens("seen-test", _schedule(cache, point))))
    whole = build(method, cache, 0).eval()

    def model_at(point: Point) -> VideoModel:
        model = deepcopy(whole)
        model.r = _schedule(cache, point)
        return model

    with torch.random.fork_rng(devices=[]):
        rows = rows_of(found, model_at, measure=measure)
    config = cache.world.config
    setting: dict[str, Any] = {
        "data": f"EntityWorld, {len(whole.classes)} seen classes, {config.frames} frames of {config.size} px",
        "chance": 100 / len(whole.classes),
        "training": f"adapter on cached tokens of the frozen tower, {budget.steps} steps",
        "seeds": list(seeds),
        "threads": torch.get_num_threads(),
        "measured": "frames/s: median over interleaved rounds; peak memory: one forward of 8 clips, fresh process",
    }
    return Tradeoff(tuple(rows), setting)


def _schedule(cache: TokenCache, point: Point) -> int | tuple[int, ...]:
    if point.inflection == 0:
        return point.r
    return tilt(point.r, point.inflection, cache.num_blocks)


def _train_adapter(cache: TokenCache, method: Method, r: int, seed: int, budget: Budget) -> VideoModel:
    model = build(method, cache, seed)
    train_head(model, cache.tokens("seen-train", r), steps=budget.steps, lr=budget.lr, seed=seed, budget=budget)
    return model.eval()
