"""Which clips make up which step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alt.errors import UserError
from alt.train.sampler import EvenSampler, SampleIndex, StepSampler


def stream(length: int, batch: int, epochs: int, **kwargs: int) -> list[list[SampleIndex]]:
    """The batches of some epochs, as Lightning asks for them."""
    out: list[list[SampleIndex]] = []
    sampler = StepSampler(length, batch, seed=5, start=lambda: len(out) // sampler.accumulate, **kwargs)
    for _ in range(epochs):
        out.extend(list(sampler))
    return out


@given(length=st.integers(1, 40), share=st.integers(1, 4), parts=st.integers(1, 3), world=st.integers(1, 3))
def test_a_step_is_the_same_however_it_is_shared_out(length: int, share: int, parts: int, world: int) -> None:
    batch = share * parts * world
    whole = stream(length, batch, 2)
    ranks = [stream(length, batch, 2, accumulate=parts, rank=rank, world=world) for rank in range(world)]
    for step, expected in enumerate(whole):
        got = [draw for part in range(parts) for rank in range(world) for draw in ranks[rank][step * parts + part]]
        assert got == expected
    assert len(whole) == 2 * max(1, length // batch)


@given(length=st.integers(1, 40), batch=st.integers(1, 12))
def test_clips_come_equally_often(length: int, batch: int) -> None:
    draws = [draw for step in stream(length, batch, 3) for draw in step]
    assert len(set(draws)) == len(draws)  # no clip twice with the same augmentation
    counts = Counter(draw.clip for draw in draws)
    assert max(counts.values()) - min(counts[i] for i in range(length)) <= 1


def test_an_iteration_begins_at_the_step_it_is_told_and_ends_with_its_epoch() -> None:
    whole = stream(10, 3, 2)
    assert list(StepSampler(10, 3, seed=5, start=lambda: 4)) == whole[4:6]
    assert len(StepSampler(10, 3, seed=5, start=lambda: 4)) == 3
    assert stream(10, 3, 1) != list(StepSampler(10, 3, seed=6))


def test_saved_runs_keep_their_order() -> None:
    """Values of the first version; others would change the clips that a resumed run sees."""
    step = next(iter(StepSampler(7, 5, seed=5, start=lambda: 1)))
    assert step == [SampleIndex(*place) for place in [(0, 0), (5, 0), (1, 1), (5, 1), (3, 1)]]


def test_a_batch_that_cannot_be_shared_out_is_said() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size \(8\) must be a multiple of .* \(3\) .* processes \(1\)"):
        StepSampler(10, 8, seed=0, accumulate=3)
    with pytest.raises(UserError, match="no clips"):
        StepSampler(0, 8, seed=0)


@given(length=st.integers(1, 30), batch=st.integers(1, 7), world=st.integers(1, 4))
def test_validation_sees_every_clip_once(length: int, batch: int, world: int) -> None:
    ranks = [list(EvenSampler(length, batch, rank=rank, world=world)) for rank in range(world)]
    assert len({len(one) for one in ranks}) == 1
    seen = [draw.clip for one in ranks for step in one for draw in step if draw.clip >= 0]
    assert sorted(seen) == list(range(length))
