"""Plans made by hand, and borderline input whose result is documented: empty, strided, protected, odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alt_kernels import (
    Matching,
    bipartite_soft_matching,
    bipartite_soft_matching_from_keys,
    cosine_gumbel_assign,
    merge_layer_norm,
    proportional_attention,
    source_map,
    testing,
    unmerge,
    weighted_merge,
)

from .small_calls import LEFT, B, C, N, R, make_plan, make_size, make_x, replace_field


def _at(field: str, value: int, column: int = 1) -> Matching:
    def change(t: Tensor) -> Tensor:
        t[-1, column] = value
        return t

    return replace_field(field, change)


OUT_OF_RANGE = {
    "negative index": _at("indices", -1, 0),
    "index N": _at("indices", N, 0),
    "huge index": _at("indices", 2**31 - 1, 0),
    "negative row": _at("output_row", -1),
    "row N'": _at("output_row", LEFT),
    "huge row": _at("output_row", -(2**31)),
    "offset beyond N": _at("offsets", N + 1),
    "negative offset": _at("offsets", -5),
}
# In range, yet no plan.
NO_PLAN = {
    "falling offsets": replace_field("offsets", lambda t: t.flip(1)),
    "empty row": _at("offsets", 0),
    "first offset 1": _at("offsets", 1, 0),
    "last offset short": _at("offsets", N - 1, LEFT),
}


def _norm(plan: Matching, impl: str) -> Any:
    return merge_layer_norm(make_x(), make_x(), plan, None, None, None, impl=impl)


CARRY_OUT: dict[str, Callable[..., Any]] = {
    "merge": lambda plan, impl: weighted_merge(make_x(), plan, make_size(), impl=impl),
    "unmerge": lambda plan, impl: unmerge(make_x(B, LEFT, C), plan, impl=impl),
    "norm": _norm,
    "merge with grad": lambda plan, impl: weighted_merge(make_x().requires_grad_(), plan, impl=impl),
    "unmerge with grad": lambda plan, impl: unmerge(make_x(B, LEFT, C).requires_grad_(), plan, impl=impl),
}


@pytest.mark.parametrize("operation", CARRY_OUT)
@pytest.mark.parametrize("broken", [*OUT_OF_RANGE, *NO_PLAN])
def test_a_plan_made_by_hand_raises(operation: str, broken: str, impl: str) -> None:
    """ValueError (or torch's RuntimeError), never a crash, and the field that is wrong is named."""
    plan = (OUT_OF_RANGE | NO_PLAN)[broken]
    field = next(f for f, a, b in zip(plan._fields, plan, make_plan(), strict=True) if not torch.equal(a, b))
    with pytest.raises((ValueError, RuntimeError), match=field) as caught:
        CARRY_OUT[operation](plan, impl)
    assert "\n" not in str(caught.value).strip()


# Borderline input whose result is documented.


def test_empty_batch(impl: str) -> None:
    plan = bipartite_soft_matching(make_x(0, N, C), R, impl=impl)
    testing.assert_valid_plan(plan, 0, N, R, 1)
    x = make_x(0, N, C).requires_grad_()
    merged = weighted_merge(x, plan, torch.ones(0, N), impl=impl)
    assert (merged.x.shape, merged.size.shape) == ((0, LEFT, C), (0, LEFT))
    assert unmerge(merged.x, plan, impl=impl).shape == (0, N, C)
    weight = torch.ones(C, requires_grad=True)
    normed = merge_layer_norm(x, x.detach(), plan, None, weight, None, impl=impl).normed
    assert normed.shape == (0, LEFT, C)
    normed.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(C))
    q = make_x(0, 2, N, C)
    assert proportional_attention(q, q, q, impl=impl).shape == q.shape
    assert source_map([plan]).shape == (0, N)


def test_zero_tokens(impl: str) -> None:
    plan = bipartite_soft_matching(make_x(B, 0, C), 0, num_protected=0, impl=impl)
    assert [tuple(t.shape) for t in plan] == [(B, 0), (B, 1), (B, 0)]
    assert torch.equal(plan.offsets, torch.zeros(B, 1, dtype=torch.int32))
    merged = weighted_merge(make_x(B, 0, C), plan, torch.ones(B, 0), impl=impl)
    assert (merged.x.shape, merged.size.shape) == ((B, 0, C), (B, 0))
    assert unmerge(merged.x, plan, impl=impl).shape == (B, 0, C)
    assert merge_layer_norm(make_x(B, 0, C), make_x(B, 0, C), plan, None, None, None, impl=impl).normed.shape == (
        B,
        0,
        C,
    )
    # No queries: nothing. No keys: every row is without a key, which gives zeros.
    empty, full = make_x(B, 2, 0, C), make_x(B, 2, N, C)
    assert proportional_attention(empty, full, full, impl=impl).shape == empty.shape
    assert torch.equal(proportional_attention(full, empty, empty, impl=impl), torch.zeros_like(full))


def test_no_channels(impl: str) -> None:
    """Nothing to compare, so matching refuses them; merging them is fine."""
    merged = weighted_merge(make_x(B, N, 0), make_plan(), make_size(), impl=impl)
    assert merged.x.shape == (B, LEFT, 0)
    torch.testing.assert_close(merged.size.sum(1), make_size().sum(1))
    assert unmerge(merged.x, make_plan(), impl=impl).shape == (B, N, 0)


def test_everything_protected_is_the_identity(impl: str) -> None:
    plan = bipartite_soft_matching(make_x(), 0, num_protected=N, impl=impl)
    testing.assert_same_plan(plan, testing.identity_plan(B, N))


def test_sizes_are_not_checked(impl: str) -> None:
    """A negative, zero or non-finite size enters the equation as it is: no synchronisation for values."""
    plan, x = make_plan(), make_x()
    size = make_size()
    size[0] = -size[0]
    negative = weighted_merge(x, plan, size, impl=impl)
    positive = weighted_merge(x, plan, size.abs(), impl=impl)
    torch.testing.assert_close(negative.x, positive.x)
    torch.testing.assert_close(negative.size[0], -positive.size[0])
    zero = weighted_merge(x, plan, torch.zeros(B, N), impl=impl)
    single = plan.offsets.diff(dim=1) == 1
    assert (zero.x[~single] == 0).all(), "a group whose sizes sum to zero gives zeros"
    assert torch.equal(zero.x[single], positive.x[single]), "a row of one token is a copy"
    size[1, 3] = torch.nan
    assert not weighted_merge(x, plan, size, impl=impl).size.isfinite().all()


def test_strided_arguments_of_every_op(impl: str) -> None:
    """Every tensor argument as a view with gaps equals its contiguous copy, bit for bit."""
    x, y, size = make_x(), make_x(), make_size()
    plan = make_plan()
    gaps = Matching(*(testing.spread(t) for t in plan))
    q, k, v = (make_x(B, 2, N, C) for _ in range(3))
    s, noise = make_x(7, C), make_x(B, N, 7)
    w, b = make_x(C), make_x(C)
    one = testing.spread
    assert not any(t.is_contiguous() for t in (one(x), *gaps, one(size), one(q), one(noise)))
    pairs = [
        (bipartite_soft_matching(x, R, impl=impl), bipartite_soft_matching(one(x), R, impl=impl)),
        (weighted_merge(x, plan, size, impl=impl), weighted_merge(one(x), gaps, one(size), impl=impl)),
        (unmerge(x[:, :LEFT], plan, impl=impl), unmerge(one(x)[:, :LEFT], gaps, impl=impl)),
        (
            merge_layer_norm(x, y, plan, size, w, b, impl=impl),
            merge_layer_norm(one(x), one(y), gaps, one(size), one(w), one(b), impl=impl),
        ),
        (
            proportional_attention(q, k, v, size, impl=impl),
            proportional_attention(one(q), one(k), one(v), one(size), impl=impl),
        ),
        (
            cosine_gumbel_assign(x, s, noise=noise, impl=impl),
            cosine_gumbel_assign(one(x), one(s), noise=one(noise), impl=impl),
        ),
        (source_map([plan]), source_map([gaps])),
    ]
    for plain, strided in pairs:
        for a, b_ in zip(*(t if isinstance(t, tuple) else (t,) for t in (plain, strided)), strict=True):
            testing.assert_same_bits(b_, a)


def test_numbers_of_numpy_are_numbers() -> None:
    """As ``patch_clip`` takes them; NumPy's bool is no number."""
    x = torch.randn(1, 9, 4)
    plan = bipartite_soft_matching(x, np.int64(3), num_protected=np.uint8(1))
    testing.assert_same_plan(plan, bipartite_soft_matching(x, 3))
    keys = x[:, None]
    testing.assert_same_plan(bipartite_soft_matching_from_keys(keys, np.int32(3)), plan)
    scaled = proportional_attention(keys, keys, keys, scale=np.float32(0.5))
    testing.assert_same_bits(scaled, proportional_attention(keys, keys, keys, scale=0.5))
    for wrong in (np.True_, np.float64(2.0), np.array([3])):
        with pytest.raises(TypeError, match="r: expected an int >= 0, got"):
            bipartite_soft_matching(x, wrong)
    with pytest.raises(TypeError, match="scale: expected a finite number, got"):
        proportional_attention(keys, keys, keys, scale=np.True_)
