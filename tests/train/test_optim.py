"""Parameter groups and the schedule of the learning rate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from alt.train.config import OptimSection
from alt.train.optim import (
    build_optimizer,
    build_schedule,
    describe_groups,
    learning_rate_factor,
    parameter_groups,
)
from tests.models.tiny_models import tiny_alt


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(5, 4))

    def no_decay(self) -> list[nn.Parameter]:
        return [self.places]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Tower()
        self.backbone.class_embedding = nn.Parameter(torch.zeros(4))
        self.backbone.norm = nn.LayerNorm(4)
        self.backbone.linear = nn.Linear(4, 4)
        self.backbone.down_adapter = nn.Linear(4, 2)
        self.temporal_pos = nn.Parameter(torch.zeros(3, 4))
        self.position_mlp = nn.Parameter(torch.zeros(4, 4))  # its name says nothing
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def is_backbone_parameter(self, name: str) -> bool:
        return name.startswith("backbone.") and "adapter" not in name


def test_membership_and_rates() -> None:
    optim = OptimSection(lr=8e-6, few_shot_multiplier=10)
    small = Small()
    groups = {group["name"]: group for group in parameter_groups(small, optim, no_decay=[small.temporal_pos])}
    members = {name: set(group["members"]) for name, group in groups.items()}
    assert members == {
        "backbone/decay": {"backbone.linear.weight"},
        "backbone/no_decay": {
            "backbone.places",
            "backbone.class_embedding",
            "backbone.norm.weight",
            "backbone.norm.bias",
            "backbone.linear.bias",
        },
        "new/decay": {"position_mlp", "backbone.down_adapter.weight"},
        "new/no_decay": {"temporal_pos", "backbone.down_adapter.bias"},
    }
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "backbone/decay": (8e-6, 1e-3),
        "backbone/no_decay": (8e-6, 0),
        "new/decay": (pytest.approx(8e-4), 1e-3),
        "new/no_decay": (pytest.approx(8e-4), 0),
    }
    lines = list(describe_groups(list(groups.values())))
    assert len(lines) == 4
    assert "1 tensors" in lines[0]
    assert "16 parameters" in lines[0]
    assert "lr 8e-06" in lines[0]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("alt-mini", {"temporal_pos": True}, {"adapter.temporal_pos"}),
        ("alt-mini", {"strategy": "stm"}, set()),
        ("mit-mini", {}, {"integration.positions"}),
        ("clip-joint-mini", {}, set()),
    ],
)
def test_learned_positions_do_not_decay(name: str, options: dict[str, object], expected: set[str]) -> None:
    from alt.models import create_model

    model = create_model(name, **{"strategy": "full", **options})  # type: ignore[arg-type]
    matrices = {n for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    decayed = {n for g in parameter_groups(model, OptimSection()) if g["weight_decay"] for n in g["members"]}
    towers = {"backbone.visual.positional_embedding"} if "strategy" not in options else set()
    assert matrices - decayed == expected | towers


def test_learned_positions_of_both_towers_do_not_decay() -> None:
    from alt.entityworld.mini_clip import load_mini_clip
    from alt.hosts import find_host

    clip = load_mini_clip().clip
    groups = parameter_groups(
        clip, OptimSection(), is_backbone=lambda name: False, no_decay=find_host(clip).no_decay(clip)
    )
    members = next(set(group["members"]) for group in groups if group["name"] == "new/no_decay")
    matrices = {name for name, parameter in clip.named_parameters() if parameter.ndim > 1 and name in members}
    assert matrices == {"positional_embedding", "visual.positional_embedding"}


def test_groups_of_the_models() -> None:
    from alt.models import create_model

    model = create_model("alt-mini", strategy="full", temporal_pos=True)
    groups = parameter_groups(model, OptimSection())
    counted = [name for group in groups for name in group["members"]]
    assert sorted(counted) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    for group in groups:
        for name, parameter in zip(group["members"], group["params"], strict=True):
            assert name.startswith("backbone.") == group["name"].startswith("backbone")
            assert (parameter.ndim > 1 and "pos" not in name) == group["name"].endswith("/decay"), name
    frozen = parameter_groups(create_model("alt-mini", strategy="frozen"), OptimSection())
    assert {group["name"].split("/")[0] for group in frozen} == {"new"}


def test_schedule_values() -> None:
    assert learning_rate_factor(0, 100, 10) == 0
    assert learning_rate_factor(5, 100, 10) == 0.5
    assert learning_rate_factor(10, 100, 10) == 1
    assert learning_rate_factor(55, 100, 10) == pytest.approx(0.505)  # half way down
    assert learning_rate_factor(100, 100, 10) == pytest.approx(0.01)
    assert learning_rate_factor(200, 100, 10) == pytest.approx(0.01)
    assert learning_rate_factor(0, 100, 0) == 1
    values = [learning_rate_factor(step, 100, 10) for step in range(10, 101)]
    assert all(a > b for a, b in itertools.pairwise(values))


def test_optimizer_and_schedule_together() -> None:
    optim = OptimSection()
    optimizer = build_optimizer(parameter_groups(Small(), optim), optim)
    assert optimizer.defaults["betas"] == (0.9, 0.98)
    assert optimizer.defaults["eps"] == 1e-8
    schedule = build_schedule(optimizer, 20, 4, 0.01)
    rates = []
    for _ in range(21):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    first, top, end = rates[0], rates[4], rates[20]
    assert first == [0, 0, 0, 0]
    assert top == pytest.approx([8e-6, 8e-6, 8e-5, 8e-5])
    assert end == pytest.approx([8e-8, 8e-8, 8e-7, 8e-7])
    assert math.isclose(rates[2][2], 4e-5)
    assert "members" not in optimizer.state_dict()["param_groups"][0]


def test_few_shot_runs_train_the_video_adapter_faster() -> None:
    """As the paper prints it: the adapter of ALT alone, or every new parameter where that is asked for."""
    model = tiny_alt(keys="mlp_tokens", strategy="s")
    few = parameter_groups(model, OptimSection(lr=8e-6, few_shot_multiplier=10))
    rates = {name: round(group["lr"], 12) for group in few for name in group["members"]}
    assert {lr for name, lr in rates.items() if name.startswith("adapter.")} == {8e-4}
    others = {name: lr for name, lr in rates.items() if not name.startswith("adapter.")}
    assert {name.split(".")[0] for name in others} == {"key_mlp", "output_mlp", "alignment", "backbone"}
    assert set(others.values()) == {8e-5}  # adapters in the tower are new, and not the video adapter
    every = parameter_groups(model, OptimSection(lr=8e-6, few_shot_multiplier=10, few_shot_scope="new"))
    assert {round(group["lr"], 12) for group in every} == {8e-4}
    once = parameter_groups(model, OptimSection(lr=8e-6))
    assert {group["name"].split("/")[0] for group in once} == {"new"}
