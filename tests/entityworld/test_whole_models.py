"""Whole models and clips without labels in the comparison, and its cells on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from alt.entityworld.comparison import cell_file, count_costs, measure_speed, run_cells
from alt.entityworld.fine_tuning import FineTuning, fine_tune, top1
from alt.entityworld.measures import evaluate
from alt.entityworld.method_grid import build
from alt.entityworld.methods import GROUPS, METHODS, Budget, Plan
from alt.entityworld.token_cache import TokenCache
from alt.entityworld.unlabelled import match_clips, wrong_names
from alt.entityworld.whole_models import ClipEntrant, run_whole, take
from alt.entityworld.world import World, WorldConfig, normalise
from alt.entityworld.world.captions import phrases
from alt.errors import UserError

FEW = {"train_per_class": 1, "test_per_class": 1, "transfer_train_per_class": 2, "transfer_test_per_class": 1}
STEP = FineTuning(steps=1, batch_size=2)
FAST = Plan(Budget(steps=1, few_shot_steps=1), STEP, STEP, STEP, (2,), 2)


@pytest.fixture(scope="module")
def cache() -> TokenCache:
    return TokenCache(World(WorldConfig.preset("cpu", **FEW)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.training != "tokens"])
def test_every_whole_model_runs(cache: TokenCache, name: str) -> None:
    found = run_whole(METHODS[name], cache, seed=0, plan=FAST)
    assert 0 <= found["seen"] <= 100
    assert ("2-shot" in found) == ("linear probe" in found) == METHODS[name].few_shot
    assert ("zero-shot k600" in found) == (name != "tuned CLIP-Mean no texts")
    assert ("match p=0.9" in found) == (METHODS[name].training in ("bags", "labels"))
    assert ("planted" in found) == (METHODS[name].model == "alt-mini")


def test_an_untrained_model_measures_the_same_on_clips_and_on_tokens(cache: TokenCache, tmp_path: Path) -> None:
    """CLIP-Mean with nothing trained: the tower on pixels has the measures of the tokens that it made once."""
    method = METHODS["CLIP-Mean"]
    on_tokens = run_cells(tmp_path, [method], cache, seeds=(0,), plan=FAST)["CLIP-Mean"][0]
    on_clips = evaluate(ClipEntrant(build(method, cache, 0), cache, STEP))
    assert {name: on_tokens[name] for name in on_clips} == pytest.approx(on_clips)


def test_few_shots_train_a_copy_on_these_clips_alone(cache: TokenCache) -> None:
    entrant = ClipEntrant(build(METHODS["tuned X-CLIP"], cache, 0), cache, STEP)
    before = {name: value.clone() for name, value in entrant.model.state_dict().items()}
    other = entrant.on_shots("transfer-a-1", [0, 1], 0)
    assert all(torch.equal(before[name], value) for name, value in entrant.model.state_dict().items())
    assert other.model.classes == cache.split("transfer-a-1").split.class_names
    moved = [name for name, p in other.model.named_parameters() if not torch.equal(before[name], p)]
    assert any(name.startswith("backbone.") for name in moved)


def test_a_linear_head_is_tested_as_it_was_trained(cache: TokenCache) -> None:
    method = METHODS["tuned CLIP-Mean no texts"]
    training = FineTuning(steps=6, batch_size=32, new_multiplier=300)
    model = build(method, cache, 0)
    fine_tune(model, take(cache, "seen-train"), training, seed=0)
    found = run_whole(method, cache, seed=0, plan=dataclasses.replace(FAST, clips=training))
    assert found["seen"] == pytest.approx(top1(model, take(cache, "seen-test"))["all"])
    assert found["seen"] > 10  # of a new head: 1.7


def test_wrong_names_are_of_no_class(cache: TokenCache) -> None:
    """Neither a seen nor an unseen class, nor by a synonym; drawn by the seed, each once."""
    names = [action.name for action in wrong_names(cache.world, 60, 0)]
    assert len(set(names)) == 60
    texts = {text for action in cache.world.classes for text in (action.name, *phrases(action))}
    assert not texts & set(names)
    assert names == [action.name for action in wrong_names(cache.world, 60, 0)]
    assert names[:30] != [action.name for action in wrong_names(cache.world, 30, 1)]
    with pytest.raises(ValueError, match="count: expected at most 68 names"):
        wrong_names(cache.world, 69, 0)


def test_clips_are_matched_by_the_model_as_it_is(cache: TokenCache) -> None:
    model = build(METHODS["MAXI"], cache, 0)
    matched = match_clips(model, cache, METHODS["MAXI 50 % wrong names"], seed=0)
    labels = cache.split("seen-train").split.labels
    assert len(matched.dictionary) == 90
    assert matched.dictionary[:60] == cache.split("seen-train").split.class_names == model.classes
    assert len(matched.rows) == 30
    right = 100 * float((matched.names == labels[matched.rows]).float().mean())
    assert matched.accuracies["match p=0.5"] == pytest.approx(right)
    model.name_classes(matched.dictionary, cache.text, "photo")
    with torch.no_grad():
        best = model.eval()(normalise(cache.frames("seen-train"))).logits.argmax(-1)
    assert torch.equal(best[matched.rows], matched.names)


def test_a_bag_holds_what_fits_the_text_tower(cache: TokenCache) -> None:
    model = build(METHODS["MAXI"], cache, 0)
    matched = match_clips(model, cache, METHODS["MAXI"], seed=0)
    bags = matched.bags(cache)
    texts = [cache.mini.tokenizer.decode(ids) for ids in bags.ids]
    assert all(2 <= len(bag) <= 6 for bag in texts)
    for number, bag in zip(matched.names.tolist(), texts, strict=True):
        name = matched.dictionary[number]
        assert all(text.startswith(f"a photo of a {name} ") for text in bag)
        assert f"a photo of a {name} {name}" not in bag


def test_cells_are_kept_and_other_settings_refused(cache: TokenCache, tmp_path: Path) -> None:
    said: list[str] = []
    methods = [METHODS["CLIP-Mean"], METHODS["MIT"]]
    first = run_cells(tmp_path, methods, cache, seeds=(0, 1), plan=FAST, say=said.append)
    cell_file(tmp_path, "MIT", 1).unlink()
    again = run_cells(tmp_path, methods, cache, seeds=(0, 1), plan=FAST, say=said.append)
    assert [line.endswith("kept") for line in said] == [False] * 4 + [True] * 3 + [False]
    timeless = [
        {name: [{k: v for k, v in run.items() if k != "seconds"} for run in runs] for name, runs in found.items()}
        for found in (first, again)
    ]
    assert timeless[0] == timeless[1]
    other = dataclasses.replace(FAST, tokens=dataclasses.replace(FAST.tokens, steps=9))
    with pytest.raises(UserError, match=r"clip-mean.0.json was run with plan.tokens.steps 1 instead of 9"):
        run_cells(tmp_path, methods, cache, seeds=(0,), plan=other)


def test_cells_have_different_files() -> None:
    paths = [cell_file(Path(), name, 0).name for name in METHODS]
    assert len(set(paths)) == len(paths)
    assert "tuned-x-clip-r-2.0.json" in paths


def test_groups_cover_the_methods() -> None:
    assert [name for names in GROUPS.values() for name in names] == list(METHODS)


def test_costs_of_a_model_in_training(cache: TokenCache) -> None:
    """A text tower that is trained counts as parameters and not as cost, whatever mode the model is in."""
    model = build(METHODS["tuned ViFi-CLIP"], cache, 0)
    mean = count_costs(build(METHODS["CLIP-Mean"], cache, 0))
    training, still = count_costs(model), count_costs(model.eval())
    assert training == still
    assert training["gmacs"] == mean["gmacs"]
    assert training["parameters"] == training["trained parameters"] > mean["parameters"]
    assert mean["trained parameters"] == 0


@pytest.mark.slow
def test_speed_is_measured_once(cache: TokenCache, tmp_path: Path) -> None:
    methods = [METHODS["tuned CLIP-Mean"], METHODS["tuned X-CLIP"]]
    first = measure_speed(tmp_path / "speed.json", methods, cache)
    assert first["tuned X-CLIP"]["frames/s"] < first["tuned CLIP-Mean"]["frames/s"]  # type: ignore[operator]
    assert measure_speed(tmp_path / "speed.json", methods, cache) == first
    assert measure_speed(tmp_path / "speed.json", methods[1:], cache) == {"tuned X-CLIP": first["tuned X-CLIP"]}
    assert first["tuned X-CLIP"]["gmacs"] == count_costs(build(methods[1], cache, 0))["gmacs"]
