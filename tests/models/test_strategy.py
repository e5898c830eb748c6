"""Which parameters each strategy trains, exactly as named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt
from alt.models.strategy import STRATEGIES, apply_strategy, split_parameters

from .test_baselines import build
from .tiny_models import WIDTH, clips, draw, tiny_alt, tiny_visual

TOWER = {f"backbone.visual.{name}" for name, _ in tiny_visual().named_parameters()}


def adapter_names(*parts: str) -> set[str]:
    return {
        f"backbone.visual.transformer.resblocks.{block}.adapter.{part}.{layer}.{leaf}"
        for block in range(2)
        for part in parts
        for layer in ("down", "up")
        for leaf in ("weight", "bias")
    }


INSIDE = {
    "full": set(),
    "frozen": set(),
    "s": adapter_names("spatial"),
    "sm": adapter_names("spatial", "beside"),
    "stm": adapter_names("spatial", "beside", "temporal"),
    "stm-shared": adapter_names("spatial", "beside", "temporal"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tunable_sets(strategy: str) -> None:
    model = tiny_alt(strategy=strategy)
    outside = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert outside  # the adapter of ALT itself
    groups = split_parameters(model)
    assert set(groups.new) == outside | INSIDE[strategy]
    assert set(groups.backbone) == (TOWER if strategy == "full" else set())
    assert set(groups.frozen) == (set() if strategy == "full" else TOWER)
    by_flag = {name for name, p in model.named_parameters() if p.requires_grad}
    assert by_flag == set(groups.new) | set(groups.backbone)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_they_move(strategy: str) -> None:
    model = tiny_alt(strategy=strategy).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    corpus = model.alignment.entities.clone()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):  # zero-initialised outputs hold back what is behind them in the first step
        optimiser.zero_grad()
        output = model(clips(), seed=torch.tensor(step))
        torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1])).backward()
        optimiser.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    groups = split_parameters(model)
    assert moved == set(groups.new) | set(groups.backbone)
    assert torch.equal(model.alignment.entities, corpus)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_start_alike(strategy: str) -> None:
    r = 0 if strategy == "stm-shared" else 3  # what it merges is decided by all frames of a clip
    expected = tiny_alt(random=False, r=r)(clips()).embedding
    assert torch.equal(tiny_alt(random=False, strategy=strategy, r=r)(clips()).embedding, expected)


def test_changing_the_strategy() -> None:
    model = tiny_alt(strategy="sm")
    adapted = model(clips()).embedding
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert apply_strategy(model, "sm") == split_parameters(model)
    assert torch.equal(model(clips()).embedding, adapted)  # the adapters that are there stay
    groups = apply_strategy(model, "frozen")
    assert model.config.strategy == "frozen"
    assert not any("adapter" in name.removeprefix("backbone.") for name in groups.frozen)
    assert not torch.equal(model(clips()).embedding, adapted)
    apply_strategy(model, "full")
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="strategy: expected one of full, frozen, s, sm, stm, stm-shared, got 'half'"):
        apply_strategy(model, "half")


@pytest.mark.parametrize("family", ["clip-mean", "clip-one", "mit", "alt"])
def test_temporal_adapters_in_every_family(family: str) -> None:
    options: dict[str, Any] = {"corpus": draw(5, 48).float()} if family == "alt" else {}
    model = alt.create_model(f"{family}-mini", strategy="stm", r=2, **options).eval()
    x = draw(2, 4, 3, 24, 24).float()
    assert model(x).embedding.shape == (2, 48)


def test_joint_has_no_frames_to_attend_over() -> None:
    from alt.models.baselines import ClipJoint

    assert build(ClipJoint, strategy="sm")(clips()).embedding.shape == (2, WIDTH)
    with pytest.raises(ValueError, match="strategy: 'stm' needs the frames apart"):
        build(ClipJoint, strategy="stm")


def test_totals_at_b16() -> None:
    """Tunable parameters: 37.8 M frozen, and 3.550 M more for each of S, M and T."""
    tunable = {}
    for strategy in STRATEGIES:
        with torch.device("meta"):
            model = alt.create_model("alt-b16", strategy=strategy)
        tunable[strategy] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert tunable == {
        "full": 124_026_368,
        "frozen": 37_833_728,
        "s": 37_833_728 + 3_550_464,
        "sm": 37_833_728 + 2 * 3_550_464,
        "stm": 37_833_728 + 3 * 3_550_464,
        "stm-shared": 37_833_728 + 3 * 3_550_464,
    }


def test_every_token_attends_in_time_where_the_frames_of_a_clip_share_their_matching() -> None:
    """At r = 8 the cost is S and M's and 39.2 GMACs of attention over 8 frames; the class token alone costs little."""
    costs = {}
    for strategy in ("frozen", "sm", "stm", "stm-shared"):
        with torch.device("meta"):
            costs[strategy] = alt.count_macs(alt.create_model("clip-mean-b16", strategy=strategy, r=8)).native_g
    above = {strategy: costs[strategy] - costs["frozen"] for strategy in costs}
    assert above["sm"] == pytest.approx(8.4, abs=0.1)
    assert above["stm-shared"] == pytest.approx(47.6, abs=0.4)  # 157.6 on top of the paper's 110, which prints 163
    assert above["stm"] < 14


def test_a_shared_matching_is_one_plan_per_clip() -> None:
    def plans(strategy: str, x: torch.Tensor) -> list[torch.Tensor]:
        tower = tiny_alt(random=False, strategy=strategy).backbone.tower
        found = alt.get_handle(tower).encode(x.flatten(0, 1))[1].matchings
        return [plan.indices.unflatten(0, (-1, x.shape[1])) for plan in found if plan is not None]

    several, still = clips(), clips()[:, :1].expand_as(clips())
    for indices in (own := plans("stm-shared", several)):
        assert bool((indices == indices[:, :1]).all())
    assert not torch.equal(own[0][0], own[0][1])  # two clips have two plans
    assert not all(bool((indices == indices[:, :1]).all()) for indices in plans("stm", several))
    # frames that are alike are matched as each of them alone
    assert all(torch.equal(a, b) for a, b in zip(plans("stm-shared", still), plans("sm", still), strict=True))
    model = tiny_alt(strategy="stm-shared")
    with pytest.raises(ValueError, match="takes whole clips of 3 frames, got 2 images"):
        alt.get_handle(model.backbone.tower).encode(several[0, :2])
