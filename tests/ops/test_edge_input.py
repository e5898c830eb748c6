"""Plans made by hand, and borderline input whose result is documented: empty, strided, protected, odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alt_kernels import (
    Matching,
    bipartite_soft_matching,
    cosine_gumbel_assign,
    merge_layer_norm,
    proportional_attention,
    source_map,
    testing,
    unmerge,
    weighted_merge,
)

B, N, C, R = 2, 9, 4, 3
LEFT = N - R


def _x(*shape: int) -> Tensor:
    return torch.randn(shape or (B, N, C))


def _plan() -> Matching:
    return testing.random_plan(B, N, R, 0)


def _size() -> Tensor:
    return testing.random_size(B, N, 0)


def _replaced(field: str, change: Callable[[Tensor], Tensor]) -> Matching:
    plan = _plan()
    return plan._replace(**{field: change(getattr(plan, field).clone())})


def _at(field: str, value: int, column: int = 1) -> Matching:
    def change(t: Tensor) -> Tensor:
        t[-1, column] = value
        return t

    return _replaced(field, change)


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
    "falling offsets": _replaced("offsets", lambda t: t.flip(1)),
    "empty row": _at("offsets", 0),
    "first offset 1": _at("offsets", 1, 0),
    "last offset short": _at("offsets", N - 1, LEFT),
}


def _norm(plan: Matching, impl: str) -> Any:
    return merge_layer_norm(_x(), _x(), plan, None, None, None, impl=impl)


CARRY_OUT: dict[str, Callable[..., Any]] = {
    "merge": lambda plan, impl: weighted_merge(_x(), plan, _size(), impl=impl),
    "unmerge": lambda plan, impl: unmerge(_x(B, LEFT, C), plan, impl=impl),
    "norm": _norm,
    "merge with grad": lambda plan, impl: weighted_merge(_x().requires_grad_(), plan, impl=impl),
    "unmerge with grad": lambda plan, impl: unmerge(_x(B, LEFT, C).requires_grad_(), plan, impl=impl),
}


@pytest.mark.parametrize("operation", CARRY_OUT)
@pytest.mark.parametrize("broken", [*OUT_OF_RANGE, *NO_PLAN])
def test_a_plan_made_by_hand_raises(operation: str, broken: str, impl: str) -> None:
    """ValueError (or torch's RuntimeError), never a crash, and the field that is wrong is named."""
    plan = (OUT_OF_RANGE | NO_PLAN)[broken]
    field = next(f for f, a, b in zip(plan._fields, plan, _plan(), strict=True) if not torch.equal(a, b))
    with pytest.raises((ValueError, RuntimeError), match=field) as caught:
        CARRY_OUT[operation](plan, impl)
    assert "\n" not in str(caught.value).strip()


# Borderline input whose result is documented.


def test_empty_batch(impl: str) -> None:
    plan = bipartite_soft_matching(_x(0, N, C), R, impl=impl)
    testing.assert_valid_plan(plan, 0, N, R, 1)
    x = _x(0, N, C).requires_grad_()
    merged = weighted_merge(x, plan, torch.ones(0, N), impl=impl)
    assert (merged.x.shape, merged.size.shape) == ((0, LEFT, C), (0, LEFT))
    assert unmerge(merged.x, plan, impl=impl).shape == (0, N, C)
    weight = torch.ones(C, requires_grad=True)
    normed = merge_layer_norm(x, x.detach(), plan, None, weight, None, impl=impl).normed
    assert normed.shape == (0, LEFT, C)
    normed.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(C))
    q = _x(0, 2, N, C)
    assert proportional_attention(q, q, q, impl=impl).shape == q.shape
    assert source_map([plan]).shape == (0, N)


def test_zero_tokens(impl: str) -> None:
    plan = bipartite_soft_matching(_x(B, 0, C), 0, num_protected=0, impl=impl)
    assert [tuple(t.shape) for t in plan] == [(B, 0), (B, 1), (B, 0)]
    assert torch.equal(plan.offsets, torch.zeros(B, 1, dtype=torch.int32))
    merged = weighted_merge(_x(B, 0, C), plan, torch.ones(B, 0), impl=impl)
    assert (merged.x.shape, merged.size.shape) == ((B, 0, C), (B, 0))
    assert unmerge(merged.x, plan, impl=impl).shape == (B, 0, C)
    assert merge_layer_norm(_x(B, 0, C), _x(B, 0, C), plan, None, None, None, impl=impl).normed.shape == (B, 0, C)
    # No queries: nothing. No keys: every row is without a key, which gives zeros.
    empty, full = _x(B, 2, 0, C), _x(B, 2, N, C)
    assert proportional_attention(empty, full, full, impl=impl).shape == empty.shape
    assert torch.equal(proportional_attention(full, empty, empty, impl=impl), torch.zeros_like(full))


def test_no_channels(impl: str) -> None:
    """Nothing to compare, so matching refuses them; merging them is fine."""
    merged = weighted_merge(_x(B, N, 0), _plan(), _size(), impl=impl)
    assert merged.x.shape == (B, LEFT, 0)
    torch.testing.assert_close(merged.size.sum(1), _size().sum(1))
    assert unmerge(merged.x, _plan(), impl=impl).shape == (B, N, 0)


def test_everything_protected_is_the_identity(impl: str) -> None:
    plan = bipartite_soft_matching(_x(), 0, num_protected=N, impl=impl)
    testing.assert_same_plan(plan, testing.identity_plan(B, N))


def test_sizes_are_not_checked(impl: str) -> None:
    """A negative, zero or non-finite size enters the equation as it is: no synchronisation for values."""
    plan, x = _plan(), _x()
    size = _size()
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
    x, y, size = _x(), _x(), _size()
    plan = _plan()
    gaps = Matching(*(testing.spread(t) for t in plan))
    q, k, v = (_x(B, 2, N, C) for _ in range(3))
    s, noise = _x(7, C), _x(B, N, 7)
    w, b = _x(C), _x(C)
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
