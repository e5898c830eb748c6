"""Cached tokens, the grid of methods and what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alt.entityworld.comparison import run_cells
from alt.entityworld.measures import few_shot, grounding
from alt.entityworld.method_grid import METHODS, TokenEntrant, accuracy, build, run_method, train_head
from alt.entityworld.methods import Budget, Plan
from alt.entityworld.token_cache import TokenCache
from alt.entityworld.world import World, WorldConfig

FEW = {"train_per_class": 2, "test_per_class": 1, "transfer_train_per_class": 2, "transfer_test_per_class": 1}
QUICK = Budget(steps=6, few_shot_steps=2)
FAST = Plan(Budget(steps=1, few_shot_steps=1), shots=(2,), probe_steps=3)


@pytest.fixture(scope="module")
def cache() -> TokenCache:
    return TokenCache(World(WorldConfig.preset("cpu", **FEW)))


@pytest.mark.parametrize("name", ["CLIP-Mean", "MLP", "MIT", "ALT r=2", "ALT r=6", "ALT cls only"])
def test_cached_tokens_are_what_the_whole_model_sees(cache: TokenCache, name: str) -> None:
    """The grid trains the models that ``alt.create_model`` makes; on clips they give the same logits."""
    method = METHODS[name]
    model = build(method, cache, 0).eval()
    clips = cache.clips("seen-test", slice(0, 3))
    with torch.inference_mode():
        whole = model(clips).logits
        cached = model.forward_tokens(cache.tokens("seen-test", method.r).x[:3]).logits
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-4)


def test_backwards_is_another_clip_with_the_same_tokens(cache: TokenCache) -> None:
    model = build(METHODS["MIT"], cache, 0).eval()
    backwards = cache.tokens("seen-test", 0).reversed().x[:3]
    with torch.inference_mode():
        whole = model(cache.clips("seen-test", slice(0, 3)).flip(1)).logits
        torch.testing.assert_close(model.forward_tokens(backwards).logits, whole, rtol=1e-4, atol=1e-4)


def test_without_convolution_order_is_not_seen_with_it_is(cache: TokenCache) -> None:
    tokens = cache.tokens("seen-train", 2)
    changed = {}
    for name in ("ALT no conv", "ALT r=2"):
        model = build(METHODS[name], cache, 0)
        train_head(model, tokens, steps=60, lr=3e-3, seed=0)
        with torch.inference_mode():
            forward, backward = (model.forward_tokens(t.x).embedding for t in (tokens, tokens.reversed()))
        changed[name] = float((forward - backward).abs().max() / forward.abs().max())
    assert changed["ALT no conv"] < 2e-6
    assert changed["ALT r=2"] > 20 * changed["ALT no conv"]


def test_the_tower_is_not_trained_and_a_seed_is_a_run(cache: TokenCache) -> None:
    tokens = cache.tokens("seen-train", 2)
    states = []
    for seed in (0, 0, 1):
        model = build(METHODS["ALT r=2"], cache, seed)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_head(model, tokens, steps=3, lr=1e-3, seed=seed)
        after = model.state_dict()
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        assert moved
        assert not any(name.startswith(("backbone.", "head.")) for name in moved)
        states.append(after)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_training_helps(cache: TokenCache) -> None:
    tokens = cache.tokens("seen-train", 2)
    model = build(METHODS["ALT r=2"], cache, 0)
    before = accuracy(model, tokens)
    train_head(model, tokens, steps=80, lr=2e-3, seed=0)
    assert accuracy(model, tokens) > before + 10


def test_clip_mean_has_nothing_to_train(cache: TokenCache) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        train_head(build(METHODS["CLIP-Mean"], cache, 0), cache.tokens("seen-train", 0), steps=1, lr=1e-3, seed=0)


def test_methods_report_the_same_things(cache: TokenCache, tmp_path: Path) -> None:
    said: list[str] = []
    names = ("CLIP-Mean", "MIT", "ALT r=2", "ALT no conv", "ALT random queries", "ALT motions", "ALT literal init")
    methods = [METHODS[name] for name in names]
    results = run_cells(tmp_path, methods, cache, seeds=(0,), plan=FAST, say=said.append)
    assert tuple(results) == names
    assert len(said) == len(names)
    common = {"seen", "reversed", "changed by reversal", "seen motion", "zero-shot transfer-a", "2-shot", "gmacs"}
    common |= {"linear probe", "parameters", "trained parameters"}
    for name, runs in results.items():
        assert common <= runs[0].keys(), name
        assert all(0 <= runs[0][measure] <= 100 for measure in common), name
        assert ("planted" in runs[0]) == (name.startswith("ALT") and METHODS[name].corpus in ("all", "object"))
    assert results["ALT no conv"][0]["changed by reversal"] == 0


def test_few_shot_leaves_the_model_as_it_was(cache: TokenCache) -> None:
    model = build(METHODS["ALT r=2"], cache, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    few_shot(TokenEntrant(model, cache, METHODS["ALT r=2"], QUICK), shots=(2,), seed=0)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_zero_shot_gives_the_seen_classes_back(cache: TokenCache) -> None:
    found = run_method(METHODS["CLIP-Mean"], cache, seed=0, plan=FAST)
    model = build(METHODS["CLIP-Mean"], cache, 0)
    assert found["seen"] == pytest.approx(accuracy(model, cache.tokens("seen-test", 0)))


def test_grounding_counts_frames() -> None:
    """Two clips of two frames with three tokens; objects are entities 0 to 2."""
    index = torch.tensor([[[0, 5, 0], [1, 5, 5]], [[2, 2, 2], [2, 0, 9]]])
    planted, wrong = grounding(index, torch.tensor([0, 2]), 3)
    assert planted == pytest.approx(75)  # 1 of 2 frames, 2 of 2
    assert wrong == pytest.approx(
        100 * (0.25 + 0.25) / 2
    )  # clip 0: object 1 in half, 2 never; clip 1: 0 in half, 1 never


def test_another_picture_size_is_told() -> None:
    with pytest.raises(ValueError, match="24 px, the world draws 32"):
        TokenCache(World(WorldConfig.preset("cpu", size=32)))


def test_tokens_are_kept_until_they_are_forgotten(cache: TokenCache) -> None:
    first = cache.tokens("seen-test", 3)
    assert cache.tokens("seen-test", 3) is first
    cache.forget(3)
    again = cache.tokens("seen-test", 3)
    assert again is not first
    assert torch.equal(again.x, first.x)
