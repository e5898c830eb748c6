"""Seeds and generators from named integers."""

from __future__ import annotations

import itertools

import pytest
import torch

from alt.data.seeds import derive_seed, make_generator, make_numpy_generator, seeded
from tests.random_state import global_random_state


def test_seeds_of_near_numbers_are_unrelated() -> None:
    named = [{"seed": s, "epoch": e, "clip": c} for s, e, c in itertools.product((0, 1, 2**63), (0, 1), (0, 1))]
    seeds = {derive_seed("order", **numbers) for numbers in named} | {derive_seed("mix", seed=0, epoch=0, clip=0)}
    assert len(seeds) == len(named) + 1
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_names_decide_and_not_their_order() -> None:
    assert derive_seed("step", seed=1, step=2, part=3) == derive_seed("step", part=3, step=2, seed=1)
    assert derive_seed("step", seed=1, step=2) != derive_seed("step", seed=2, step=1)
    with pytest.raises(ValueError, match="purpose: expected one of order"):
        derive_seed("ordr", seed=1)
    with pytest.raises(ValueError, match="numbers: expected names among seed"):
        derive_seed("order", seeds=1)


def test_saved_runs_keep_their_data_order() -> None:
    """Values of the first version: splitmix64 over (seed, epoch, 0x0DE5) and the like."""
    assert derive_seed("order", seed=5, epoch=2) == 3241497473393712599
    assert derive_seed("augmentation", seed=5, epoch=2, clip=7) == 5879160960724276699
    assert derive_seed("step", seed=5, step=9, part=1, rank=3) == 1273340474240659481


def test_no_global_generator_is_read_or_advanced() -> None:
    before = global_random_state()
    make_generator("order", seed=0).initial_seed()
    make_numpy_generator(3, 4).random()
    with seeded(7):
        inside = torch.rand(2)
    assert torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(7)))
    assert global_random_state() == before
