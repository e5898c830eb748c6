"""Exactly K of every class, nested, seeded, independent between classes, disjoint from the test."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alt.data.few_shot import few_shot_indices
from alt.entityworld.world import World
from tests.philox import shuffle_by_hand


def labels(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 7, (400,), generator=torch.Generator().manual_seed(seed))


def test_the_draw_stays_what_it_is() -> None:
    """Other numbers would change the clips of every few-shot run that is resumed."""
    assert few_shot_indices([0] * 9 + [1] * 9, 2, seed=3) == [6, 7, 9, 17]


@pytest.mark.parametrize(("seed", "shots", "classes"), [(0, 2, 3), (7, 16, 2), (2**63, 1, 5)])
def test_the_draw_by_hand(seed: int, shots: int, classes: int) -> None:
    """The rule in integers, so that another program can draw the same clips."""
    pool = [number for number in range(classes) for _ in range(17 + 3 * number)]
    expected = []
    for number in range(classes):
        members = [i for i, label in enumerate(pool) if label == number]
        expected += [members[place] for place in shuffle_by_hand(len(members), seed, number)[:shots]]
    assert few_shot_indices(pool, shots, seed) == sorted(expected)


@pytest.mark.parametrize("shots", [2, 4])
def test_training_the_protocol_and_the_comparison_draw_the_same_clips(shots: int) -> None:
    from alt.entityworld.measures import few_shot as compare_few_shot
    from alt.evaluate.protocols import few_shot
    from alt.train.config import load_config
    from alt.train.sources import choose_clips

    pool = labels()
    expected = few_shot_indices(pool, shots, seed=3)
    overrides = [f"data.shots={shots}", "data.shots_seed=3", "data.limit=null"]
    assert choose_clips(load_config("entity-world-cpu", overrides), pool).tolist() == expected

    rows: list[list[int]] = []

    def keep(chosen: list[int], *_: int) -> float:
        rows.append(list(chosen))
        return 0.0

    few_shot(pool.tolist(), keep, shots=(shots,), seeds=(3,))
    split = SimpleNamespace(split=SimpleNamespace(labels=pool))
    trained = SimpleNamespace(accuracy=lambda name: 0.0)
    entrant: Any = SimpleNamespace(
        cache=SimpleNamespace(split=lambda name: split),
        on_shots=lambda name, chosen, seed: trained if keep(chosen) == 0 else None,
    )
    compare_few_shot(entrant, shots=(shots,), seed=3)
    assert rows == [expected] * 3  # once by the protocol, once per transfer set


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_exactly_k_of_every_class(shots: int) -> None:
    chosen = few_shot_indices(labels(), shots, seed=3)
    assert len(set(chosen)) == len(chosen) == 7 * shots
    assert torch.bincount(labels()[chosen]).tolist() == [shots] * 7
    assert chosen == few_shot_indices(labels().tolist(), shots, seed=3)


def test_nested_in_shots_and_different_between_seeds() -> None:
    sets = [set(few_shot_indices(labels(), k, seed=1)) for k in (2, 4, 8, 16)]
    assert all(small < large for small, large in itertools.pairwise(sets))
    assert sets[3] != set(few_shot_indices(labels(), 16, seed=2))


def test_every_sample_is_as_likely() -> None:
    found = torch.zeros(20)
    for seed in range(600):
        found[few_shot_indices([0] * 20, 5, seed)] += 1
    assert float((found - 150).abs().max()) < 3.5 * (600 * 0.25 * 0.75) ** 0.5


def test_a_class_does_not_depend_on_the_others() -> None:
    some = labels()
    chosen = [i for i in few_shot_indices(some, 4) if some[i] == 2]
    other = some.clone()
    other[some == 5] = 6
    assert chosen == [i for i in few_shot_indices(other, 4) if other[i] == 2]


def test_disjoint_from_the_tests_of_the_world() -> None:
    """Pools and tests of the transfer sets share no clip, so neither do samples of the pool."""
    world = World("tiny")
    for x in "ab":
        pool = world.split(f"transfer-{x}-1-train")
        keys = {pool[i].key for i in few_shot_indices(pool.labels, 2)}
        assert len(keys) == 2 * len(pool.classes)
        for i in (1, 2, 3):
            assert not keys & {spec.key for spec in world.split(f"transfer-{x}-{i}")}


def test_too_few_are_named() -> None:
    with pytest.raises(ValueError, match="shots: expected 3 samples of every class, class 1 has 2"):
        few_shot_indices([0, 0, 0, 1, 1], 3)
    with pytest.raises(ValueError, match="class 2 has 0"):
        few_shot_indices([0, 0, 1, 1], 1, classes=3)
    with pytest.raises(ValueError, match=r"^shots: "):
        few_shot_indices([0], 0)
    with pytest.raises(ValueError, match=r"^labels: "):
        few_shot_indices([], 1)
