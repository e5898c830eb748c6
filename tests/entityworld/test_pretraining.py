"""The contrastive training of the small CLIP, and that the shipped weights come from it."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from alt.entityworld.measures import grounding
from alt.entityworld.mini_clip import MiniClipConfig, load_mini_clip
from alt.entityworld.mini_clip_training import Pretraining, contrastive_loss, pretrain, region_scores
from alt.entityworld.token_cache import TokenCache
from alt.entityworld.world import World, WorldConfig

TINY = MiniClipConfig.preset("tiny")
QUICK = Pretraining(images=48, steps=4, batch_size=16, warmup=1)


def test_loss_is_info_nce_where_captions_differ() -> None:
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    expected = 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target))
    torch.testing.assert_close(contrastive_loss(scores, torch.tensor([7, 1, 4, 2, 9])), expected)


def test_equal_captions_share_the_target() -> None:
    """Two pictures of one caption and equal scores: half the weight each, so the least loss is log 2."""
    captions = torch.tensor([0, 0, 1, 1])
    same = captions[:, None] == captions
    scores = torch.where(same, 0.0, -1e4)
    assert math.isclose(float(contrastive_loss(scores, captions)), math.log(2), rel_tol=1e-6)
    swapped = contrastive_loss(scores[[1, 0, 2, 3]], captions)
    assert math.isclose(float(swapped), math.log(2), rel_tol=1e-6)


def test_a_text_finds_the_region_that_fits_best() -> None:
    regions = torch.eye(4)[None, :3].repeat(2, 1, 1)
    texts = torch.tensor([[0.0, 0.6, 0.8, 0.0], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(region_scores(regions, texts), torch.tensor([[0.8, 0.0], [0.8, 0.0]]))


@pytest.mark.parametrize("loss", ["regions", "plain"])
def test_training_is_a_function_of_its_seed(loss: str) -> None:
    world = World(WorldConfig.preset("tiny"))
    training = dataclasses.replace(QUICK, loss=loss)
    first, second = (pretrain(world, TINY, training) for _ in range(2))
    ours, theirs = first.clip.state_dict(), second.clip.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = pretrain(world, TINY, dataclasses.replace(training, seed=1))
    assert first.about["first_losses"] != other.about["first_losses"]


def test_losses_differ_and_merging_can_be_learned_with() -> None:
    world = World(WorldConfig.preset("tiny"))
    runs = [QUICK, dataclasses.replace(QUICK, loss="plain"), dataclasses.replace(QUICK, r=(0, 4))]
    losses = [pretrain(world, TINY, training).about["first_losses"] for training in runs]
    assert losses[0][0] != losses[1][0]
    assert losses[0][0] == losses[2][0]  # the first step of both merges nothing
    assert losses[0][1] != losses[2][1]


def test_the_text_tower_waits_then_learns() -> None:
    world = World(WorldConfig.preset("tiny"))
    start = pretrain(world, TINY, dataclasses.replace(QUICK, steps=1, text_start=0.9)).clip.state_dict()
    waits = pretrain(world, TINY, dataclasses.replace(QUICK, text_start=1.0)).clip.state_dict()
    learns = pretrain(world, TINY, dataclasses.replace(QUICK, text_start=0.5)).clip.state_dict()
    assert torch.equal(start["token_embedding.weight"], waits["token_embedding.weight"])
    assert not torch.equal(start["token_embedding.weight"], learns["token_embedding.weight"])
    assert not torch.equal(start["visual.proj"], waits["visual.proj"])


def test_it_learns() -> None:
    losses: list[float] = []
    training = Pretraining(images=256, steps=60, batch_size=32, warmup=10, text_start=0.2)
    pretrain(World(WorldConfig.preset("tiny")), TINY, training, report=lambda _, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize(
    ("change", "word"),
    [({"loss": "triplet"}, "loss"), ({"images": 4}, "images"), ({"steps": 0}, "steps"), ({"r": ()}, "r:")],
)
def test_bad_training(change: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(QUICK, **change)


def test_another_picture_size_is_told() -> None:
    with pytest.raises(ValueError, match="32"):
        pretrain(World(WorldConfig.preset("tiny")), MiniClipConfig(image_size=32), QUICK)


def test_first_steps_of_the_training_give_the_losses_in_the_shipped_file() -> None:
    """The shipped file names its training. The first steps of that training give the losses that the file records.

    The tolerance leaves room for another order of summation over the steps.
    """
    shipped = load_mini_clip()
    recorded = dict(shipped.about["training"])
    training = Pretraining(**{**recorded, "r": tuple(recorded["r"])})
    world = World(WorldConfig.preset("cpu"))
    assert json.loads(json.dumps(dataclasses.asdict(world.config))) == shipped.about["world"], "the world has changed"
    losses: list[float] = []

    class Enough(Exception):
        pass

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step == 4:
            raise Enough

    with pytest.raises(Enough):
        pretrain(world, shipped.config, training, report=report)
    assert losses == pytest.approx(shipped.about["first_losses"][:5], abs=2e-3)
    assert shipped.about["command"].startswith("python -m alt.entityworld.mini_clip_training")


def test_shipped_regions_name_the_object_that_is_there() -> None:
    """Grounding (F37): the target object is among a frame's entities, others are seldom."""
    few = {"test_per_class": 2, "train_per_class": 1, "transfer_train_per_class": 1, "transfer_test_per_class": 1}
    cache = TokenCache(World(WorldConfig.preset("cpu", **few)))
    split = cache.split("seen-test").split
    objects = torch.tensor([spec.object for spec in split.specs])
    entities = cache.corpus.embeddings
    assert entities is not None
    for r in (0, 4):
        x = F.normalize(cache.tokens("seen-test", r).x, dim=-1)
        planted, wrong = grounding((x @ entities.T).argmax(-1), objects, 12)
        assert planted > 80
        assert planted > 5 * wrong
