"""Every op against the float64 reference on the device: forward, derivative, chained layers, bits that repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import alt_kernels as ak
from alt_kernels import Matching, testing

from .problems import DTYPES, assert_close, chosen_pairs, named, normal, packed, sizes_of

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def gradients(function: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients of a fixed random weighting of it."""
    given = [t.detach().requires_grad_() for t in leaves]
    result = function(*given)
    weight = normal(result.device, 99, *result.shape).to(result.dtype)
    return (result.detach(), *torch.autograd.grad(result, given, weight))


def compare(function: Callable[..., Tensor], leaves: tuple[Tensor, ...], what: str, impl: Any) -> None:
    """``function(*leaves, impl=...)`` and its gradients, beside the reference in float64 and in the leaves' dtype."""
    got = named(lambda: gradients(lambda *a: function(*a, impl=impl), *leaves))
    want = gradients(lambda *a: function(*a, impl="reference"), *(t.double() for t in leaves))
    rounded = gradients(lambda *a: function(*a, impl="reference"), *leaves)
    for i, (g, w, r) in enumerate(zip(got, want, rounded, strict=True)):
        assert_close(g, w, r, what=f"{what}, {'result' if i == 0 else f'gradient {i}'}")
    again = named(lambda: gradients(lambda *a: function(*a, impl=impl), *leaves))
    for g, a in zip(got, again, strict=True):
        testing.assert_same_bits(g.cpu(), a.cpu(), name=what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "depth"), [(197, 64), (51, 80), (603, 64)])
def test_matching_is_as_good_as_float64(
    device: torch.device, impl: Any, dtype: torch.dtype, tokens: int, depth: int
) -> None:
    """Another pair than float64's only where the scores are within 1e-6."""
    metric = normal(device, 1, 3, tokens, depth, dtype=dtype)
    r = tokens // 8
    if impl == "cuda" and tokens > 512:
        with pytest.raises(ValueError, match=f"takes up to 512 tokens, got {tokens}; impl='triton' takes more"):
            ak.bipartite_soft_matching(metric, r, impl=impl)
        return
    plan = named(lambda: ak.bipartite_soft_matching(metric, r, impl=impl))
    testing.assert_valid_plan(Matching(*(t.cpu() for t in plan)), 3, tokens, r, 1)
    exact = ak.bipartite_soft_matching(metric.double(), r, impl="reference")
    unit = torch.nn.functional.normalize(metric.double().cpu(), dim=-1)
    for image, (mine, best) in enumerate(zip(chosen_pairs(plan), chosen_pairs(exact), strict=True)):
        score = unit[image] @ unit[image].T
        left, right = (sorted(float(score[a, b]) for a, b in pairs.items()) for pairs in (mine, best))
        assert max(abs(x - y) for x, y in zip(left, right, strict=True)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_fall_the_same_way_everywhere(device: torch.device, impl: Any, dtype: torch.dtype) -> None:
    """Rows of -1, 0, 1 repeat, so that many scores are equal: index for index, from a metric and from keys."""
    metric = testing.exact_metric(4, 101, 3, channels=64).to(dtype)
    want = ak.bipartite_soft_matching(metric, 17, impl="reference")
    for call in (
        lambda: ak.bipartite_soft_matching(metric.to(device), 17, impl=impl),
        lambda: ak.bipartite_soft_matching_from_keys(metric.to(device)[:, None].expand(-1, 4, -1, -1), 17, impl=impl),
    ):
        testing.assert_same_plan(Matching(*(t.cpu() for t in named(call))), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [768, 80])
def test_merging(device: torch.device, impl: Any, dtype: torch.dtype, channels: int) -> None:
    x, y = (normal(device, seed, 3, 41, channels, dtype=dtype) for seed in (1, 2))
    weight, bias = normal(device, 3, channels), normal(device, 4, channels)
    size = sizes_of(device, 5, 3, 41)
    plan = Matching(*(t.to(device) for t in testing.random_plan(3, 41, 9, 6)))
    compare(lambda x, impl: ak.weighted_merge(x, plan, size, impl=impl).x, (x,), "merge", impl)
    compare(lambda x, impl: ak.unmerge(x, plan, impl=impl), (x[:, 9:],), "unmerge", impl)

    def fused(x: Tensor, y: Tensor, impl: Any) -> Tensor:
        found = ak.merge_layer_norm(x, y, plan, size, weight.to(x.dtype), bias.to(x.dtype), impl=impl)
        return found.normed + found.x

    compare(fused, (x, y), "merge_layer_norm", impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [197, 101, 33, 300])
def test_attention(device: torch.device, impl: Any, dtype: torch.dtype, tokens: int) -> None:
    qkv = packed(device, 1, 2, tokens, 3, 64, dtype)
    size = sizes_of(device, 2, 2, tokens)
    compare(lambda q, k, v, impl: ak.proportional_attention(q, k, v, size, impl=impl), qkv, "attention", impl)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_assignment(device: torch.device, impl: Any, dtype: torch.dtype, hard: bool) -> None:
    """For one noise tensor, and for one seed; the hard choice may differ only where two logits nearly tie."""
    x, entities = normal(device, 1, 70, 64, dtype=dtype), normal(device, 2, 113, 64, dtype=dtype)
    noise = normal(device, 3, 70, 113)
    seed = torch.tensor(7, device=device)
    for drawn in ({"noise": noise}, {"seed": seed}):

        def assign(x: Tensor, entities: Tensor, impl: Any, drawn: Any = drawn) -> Tensor:
            return ak.cosine_gumbel_assign(x, entities, tau=0.5, hard=hard, impl=impl, **drawn).output

        exact = ak.cosine_gumbel_assign(x.double(), entities.double(), tau=0.5, hard=hard, impl="reference", **drawn)
        found = named(lambda: ak.cosine_gumbel_assign(x, entities, tau=0.5, hard=hard, impl=impl, **drawn))  # noqa: B023
        assert float((found.index == exact.index).double().mean()) == 1.0
        compare(assign, (x, entities), f"assignment, {next(iter(drawn))}", impl)


def test_layers_in_a_chain(device: torch.device, impl: Any) -> None:
    """Four layers with sizes above 1 after the first: sums of sizes and of size times token are conserved."""
    x = normal(device, 1, 2, 67, 96)
    size: Tensor | None = None
    total = x.double().sum(1)
    for layer in range(4):
        heads = x.unflatten(-1, (3, 32)).transpose(1, 2)
        plan = named(lambda h=heads: ak.bipartite_soft_matching_from_keys(h, 9, impl=impl))
        x, size = named(lambda x=x, p=plan, s=size: ak.weighted_merge(x, p, s, impl=impl))
        assert x.shape[1] == 67 - 9 * (layer + 1)
    assert size is not None
    assert size.sum(1).tolist() == [67.0, 67.0]
    torch.testing.assert_close((x.double() * size[..., None]).sum(1), total, rtol=1e-5, atol=1e-4)
