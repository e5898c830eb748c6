"""A plan made by hand cannot make a kernel read or write outside its tensors: bad values raise a sentence.

The forwards go through the contracts, in both implementations with one wording. The compiled backwards are called
as ops: autograd only reaches them with a plan that the forward accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alt_kernels import merge_layer_norm, testing, unmerge, weighted_merge
from alt_kernels.types import Matching

B, N, R, C = 2, 9, 3, 5
LEFT = N - R
OPS = torch.ops.alt_kernels

HUGE, LOWEST = 2**31 - 1, -(2**31)
BAD = [
    ("indices", (1, 2), -1, "matching.indices: expected values from 0 to 8, got -1"),
    ("indices", (0, 8), N, "matching.indices: expected values from 0 to 8, got 9"),
    ("indices", (1, 8), LOWEST, f"matching.indices: expected values from 0 to 8, got {LOWEST}"),
    ("output_row", (0, 0), -1, "matching.output_row: expected values from 0 to 5, got -1"),
    ("output_row", (1, 8), LEFT, "matching.output_row: expected values from 0 to 5, got 6"),
    ("output_row", (0, 4), HUGE, f"matching.output_row: expected values from 0 to 5, got {HUGE}"),
    ("offsets", (0, 0), 1, "matching.offsets: expected values that rise strictly from 0 to 9"),
    ("offsets", (1, LEFT), N + 1, "matching.offsets: expected values that rise strictly from 0 to 9"),
    ("offsets", (0, 3), 0, "matching.offsets: expected values that rise strictly from 0 to 9"),
    ("offsets", (1, 3), HUGE, "matching.offsets: expected values that rise strictly from 0 to 9"),
    ("offsets", (0, 2), LOWEST, "matching.offsets: expected values that rise strictly from 0 to 9"),
]


def _broken(field: str, place: tuple[int, int], value: int) -> Matching:
    plan = testing.random_plan(B, N, R, 0)
    changed = getattr(plan, field).clone()
    changed[place] = value
    return plan._replace(**{field: changed})


def _rows(count: int) -> Tensor:
    return torch.randn(B, count, C, generator=testing.generator(1))


FORWARDS: dict[str, Callable[[Matching, str], Any]] = {
    "weighted_merge": lambda plan, impl: weighted_merge(_rows(N), plan, impl=impl),
    "unmerge": lambda plan, impl: unmerge(_rows(LEFT), plan, impl=impl),
    "merge_layer_norm": lambda plan, impl: merge_layer_norm(_rows(N), _rows(N), plan, None, None, None, impl=impl),
}
SIZES = torch.ones(B, LEFT)
BACKWARDS: dict[str, Callable[[Matching], Any]] = {
    "unmerge_backward": lambda p: OPS.unmerge_backward(_rows(N), *p),
    "weighted_merge_backward": lambda p: OPS.weighted_merge_backward(_rows(LEFT), None, SIZES, *p),
    "merge_layer_norm_backward": lambda p: OPS.merge_layer_norm_backward(
        _rows(LEFT), _rows(LEFT), _rows(LEFT), SIZES, SIZES, None, True, None, SIZES, *p
    ),
}


@pytest.fixture
def compiled() -> None:
    reason = testing.unavailable("cpp")
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("field", "place", "value", "sentence"), BAD)
@pytest.mark.parametrize("name", FORWARDS)
def test_bad_values_raise_the_same_sentence_in_every_implementation(
    name: str, field: str, place: tuple[int, int], value: int, sentence: str, impl: str
) -> None:
    with pytest.raises(ValueError) as raised:
        FORWARDS[name](_broken(field, place, value), impl)
    assert str(raised.value).startswith(sentence)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("field", "place", "value", "sentence"), BAD)
@pytest.mark.parametrize("name", BACKWARDS)
def test_bad_values_raise_in_the_compiled_backwards(
    name: str, field: str, place: tuple[int, int], value: int, sentence: str
) -> None:
    with pytest.raises(ValueError) as raised:
        BACKWARDS[name](_broken(field, place, value))
    assert str(raised.value).startswith(sentence)


@pytest.mark.usefixtures("compiled")
def test_norm_backward_refuses_rows_that_do_not_fit_offsets() -> None:
    """It lists every row's tokens from output_row, in the places that offsets names: the two must agree."""
    plan = testing.random_plan(B, N, R, 0)
    plan = plan._replace(output_row=torch.zeros_like(plan.output_row))
    with pytest.raises(ValueError, match="expected output_row to have as many tokens in every row as offsets has"):
        BACKWARDS["merge_layer_norm_backward"](plan)
