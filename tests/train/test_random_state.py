"""What takes a seed leaves the global random state as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from tests.random_state import global_random_state

from . import jobs

SEEDED = ["lightning run", "linear probe", "head on cached tokens", "fine-tuning", "small CLIP"]


def _actions(folder: str) -> dict[str, Callable[[], object]]:
    from alt.entityworld.fine_tuning import FineTuning, fine_tune, render_split
    from alt.entityworld.method_grid import METHODS, build, train_head
    from alt.entityworld.mini_clip import MiniClipConfig
    from alt.entityworld.mini_clip_training import Pretraining, pretrain
    from alt.entityworld.token_cache import TokenCache
    from alt.entityworld.world import World, WorldConfig
    from alt.evaluate.linear_probe import ProbeConfig, linear_probe
    from tests.evaluate.test_protocols import Toy

    few = {"train_per_class": 1, "test_per_class": 1, "transfer_train_per_class": 1, "transfer_test_per_class": 1}
    world = World(WorldConfig.preset("cpu", **few))
    cache, method = TokenCache(world), METHODS["ALT r=2"]
    cache.tokens("seen-train", 2)
    model, toy = build(method, cache, 0), Toy()
    data = TensorDataset(torch.ones(6, 2, 3, 2, 2), torch.arange(6) % 2)
    names = ["a", "b"]

    def head() -> None:
        train_head(build(method, cache, 1), cache.tokens("seen-train", 2), steps=2, lr=1e-3, seed=1)

    tiny = World(WorldConfig.preset("tiny"))
    return {
        "lightning run": lambda: jobs.train(folder, ["schedule.steps=2", "schedule.warmup_steps=1"]),
        "linear probe": lambda: linear_probe(toy, data, data, names, config=ProbeConfig(epochs=2, warmup_epochs=1)),
        "head on cached tokens": head,
        "fine-tuning": lambda: fine_tune(
            model, render_split(world, "seen-train"), FineTuning(steps=2, batch_size=2, strategy="s"), seed=1
        ),
        "small CLIP": lambda: pretrain(
            tiny, MiniClipConfig.preset("tiny"), Pretraining(images=16, steps=2, batch_size=8, warmup=1)
        ),
    }


def _changes(folder: str) -> list[str]:
    """What each changes of the global state, in words."""
    found = []
    actions = _actions(folder)
    assert list(actions) == SEEDED
    for name, act in actions.items():
        before = global_random_state()
        act()
        after = global_random_state()
        found += [f"{name}: {part}" for part in before if before[part] != after[part]]
    return found


def test_global_random_state_is_left_untouched(tmp_path: Path) -> None:
    assert jobs.run(_changes, str(tmp_path)) == []


def _adapters() -> list[torch.Tensor]:
    """A new adapter's weights after fine-tuning with one seed, the global generator in two states."""
    from alt.data.seeds import seeded
    from alt.entityworld.fine_tuning import FineTuning, fine_tune, render_split
    from alt.entityworld.world import World, WorldConfig
    from alt.models import create_model

    clips = render_split(World(WorldConfig.preset("tiny")), "seen-train")
    kept = []
    for drawn in (0, 5):
        with seeded(3):
            model = create_model("clip-mean-mini", classes=(clips.names, torch.eye(48)[: len(clips.names)]))
        torch.manual_seed(drawn)
        fine_tune(model, clips, FineTuning(steps=1, batch_size=2, strategy="s"), seed=0)
        kept.append(next(p for name, p in model.named_parameters() if "adapter" in name and p.dim() > 1).detach())
    return kept


def test_new_adapters_are_a_function_of_the_seed() -> None:
    first, second = jobs.run(_adapters)
    assert torch.equal(first, second)
