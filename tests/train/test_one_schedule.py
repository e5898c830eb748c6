"""Every training takes the same warm-up and cosine: step s of w has the factor s / w, then a cosine to a floor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from alt.train.optim import learning_rate_factor

from . import jobs

STEPS = 6
# path -> (largest learning rate of the fastest group, warm-up steps, floor)
PATHS = {
    "alt train": (1e-2, 2, 0.01),
    "head on cached tokens": (3e-3, 2, 0.01),
    "linear probe": (4e-4, 2, 0.01),
    "fine-tuning": (1e-3, 2, 0.01),
    "small CLIP": (2e-3, 2, 0.0),
}


def _actions(folder: str) -> dict[str, Callable[[], object]]:
    from alt.entityworld.fine_tuning import FineTuning, fine_tune, render_split
    from alt.entityworld.method_grid import METHODS, Budget, build, train_head
    from alt.entityworld.mini_clip import MiniClipConfig
    from alt.entityworld.mini_clip_training import Pretraining, pretrain
    from alt.entityworld.token_cache import TokenCache
    from alt.entityworld.world import World, WorldConfig
    from alt.evaluate.linear_probe import Features, ProbeConfig, fit_probe

    few = {"train_per_class": 1, "test_per_class": 1, "transfer_train_per_class": 1, "transfer_test_per_class": 1}
    world, tiny = World(WorldConfig.preset("cpu", **few)), World(WorldConfig.preset("tiny"))
    cache = TokenCache(world)
    head, whole = (build(METHODS["MIT"], cache, 0) for _ in range(2))
    tokens, clips = cache.tokens("seen-train", 0), render_split(world, "seen-train")
    share = 2 / STEPS
    fine = FineTuning(steps=STEPS, batch_size=2, warmup=share)
    probe = ProbeConfig(epochs=3, warmup_epochs=1, batch_size=4)
    features = Features(torch.eye(8), torch.arange(8) % 2)
    small = Pretraining(images=16, steps=STEPS, batch_size=4, warmup=2, text_start=0.0)
    return {
        "alt train": lambda: jobs.train(folder, [f"schedule.steps={STEPS}", "schedule.warmup_steps=2"]),
        "head on cached tokens": lambda: train_head(
            head, tokens, steps=STEPS, lr=3e-3, seed=0, budget=Budget(warmup=share)
        ),
        "linear probe": lambda: fit_probe(features, 2, probe),
        "fine-tuning": lambda: fine_tune(whole, clips, fine, seed=0),
        "small CLIP": lambda: pretrain(tiny, MiniClipConfig.preset("tiny"), small),
    }


def _rates(folder: str) -> dict[str, list[float]]:
    """Largest learning rate of any group when the optimiser takes each step."""
    seen: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append(max(group["lr"] for group in optimizer.param_groups))

    handle = register_optimizer_step_pre_hook(look)
    found = {}
    for name, act in _actions(folder).items():
        seen.clear()
        act()
        found[name] = list(seen)
    handle.remove()
    return found


def test_the_same_schedule_from_every_path(tmp_path: Path) -> None:
    found = jobs.run(_rates, str(tmp_path))
    assert list(found) == list(PATHS)
    for name, (lr, warmup, floor) in PATHS.items():
        expected = [lr * learning_rate_factor(step, STEPS, warmup, floor) for step in range(STEPS)]
        assert found[name] == pytest.approx(expected), name
