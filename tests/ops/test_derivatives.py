"""Derivatives beyond ``backward()``: torch.func, vmap, forward mode and second derivatives.

The truth is the central difference in float64. A derivative is right, or asking for it is one sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from alt_kernels import (
    Matching,
    bipartite_soft_matching,
    bipartite_soft_matching_from_keys,
    cosine_gumbel_assign,
    merge_layer_norm,
    proportional_attention,
    testing,
    unmerge,
    weighted_merge,
)

pytestmark = [
    # PyTorch's slow fallback for ops without a batching rule warns.
    pytest.mark.filterwarnings("error:There is a performance drop"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # torch.jit, which jvp imports
]

B, N, C, R, K, V = 2, 7, 4, 2, 5, 3
DOUBLE = torch.float64
PLAN, SIZE = testing.random_plan(B, N, R, 0), testing.random_size(B, N, 0)
STEP = 1e-5


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE)


class Case(NamedTuple):
    """A scalar of an op, the shapes of its inputs, and how often a vmap of its gradient calls op and backward."""

    loss: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    linear: bool = False
    calls: int = 1


def _merge(x: Tensor, impl: Any = "auto") -> Tensor:
    return weighted_merge(x, PLAN, SIZE, impl=impl).x.square().sum()


def _unmerge(x: Tensor, impl: Any = "auto") -> Tensor:
    return (unmerge(x, PLAN, impl=impl).sin()).sum()


def _norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, impl: Any = "auto") -> Tensor:
    result = merge_layer_norm(x, y, PLAN, SIZE, weight, bias, impl=impl)
    return (result.x.sin() * result.normed.square()).sum()


def _attention(q: Tensor, k: Tensor, v: Tensor, impl: Any = "auto") -> Tensor:
    return proportional_attention(q, k, v, SIZE, impl=impl).square().sum()


def _soft(x: Tensor, entities: Tensor, tau: Tensor, impl: Any = "auto", **options: Any) -> Tensor:
    options = {"noise": None, **options}
    return cosine_gumbel_assign(x, entities, tau=tau.exp(), hard=False, impl=impl, **options).output.square().sum()


def _seeded(x: Tensor, entities: Tensor, tau: Tensor, impl: Any = "auto") -> Tensor:
    return _soft(x, entities, tau, impl, noise="gumbel", seed=torch.tensor(3))


HEADS = (B, 2, N, C)
CASES = {
    "weighted_merge": Case(_merge, ((B, N, C),), linear=True),
    "unmerge": Case(_unmerge, ((B, N - R, C),), linear=True),
    "merge_layer_norm": Case(_norm, ((B, N, C), (B, N, C), (C,), (C,))),
    "proportional_attention": Case(_attention, (HEADS, HEADS, HEADS)),
    # One set of entities, one tau and one seed per call: one call per sample.
    "cosine_gumbel_assign": Case(_soft, ((3, C), (K, C), ()), calls=V),
    "cosine_gumbel_assign, seeded": Case(_seeded, ((3, C), (K, C), ()), calls=V),
}


class Calls(TorchDispatchMode):
    """Counts the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "alt_kernels":
            self.counts[func._opname] = self.counts.get(func._opname, 0) + 1
        return func(*args, **(kwargs or {}))


def _difference(loss: Callable[..., Tensor], inputs: list[Tensor], tangents: list[Tensor]) -> Tensor:
    """Returns the central difference of the loss along the tangents."""
    ahead, behind = (
        loss(*(x + sign * STEP * t for x, t in zip(inputs, tangents, strict=True))) for sign in (1.0, -1.0)
    )
    return (ahead - behind) / (2 * STEP)


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


def _choices(count: int) -> Iterator[tuple[int | None, ...]]:
    """Which inputs are vmapped: all, and each by itself."""
    yield (0,) * count
    for i in range(count if count > 1 else 0):
        yield tuple(0 if i == j else None for j in range(count))


@pytest.mark.parametrize("name", CASES)
def test_per_sample_gradients(name: str) -> None:
    """vmap(grad) for every choice of vmapped inputs: each sample against its own difference; the op is called once."""
    case = CASES[name]
    everything = tuple(range(len(case.shapes)))
    for dims in _choices(len(case.shapes)):
        torch.manual_seed(0)
        inputs = [_random(*(() if d is None else (V,)), *s) for d, s in zip(dims, case.shapes, strict=True)]
        with Calls() as calls:
            found = vmap(grad(case.loss, argnums=everything), in_dims=dims)(*inputs)
        assert set(calls.counts.values()) <= {1, case.calls}, calls.counts
        assert len(calls.counts) == 2, calls.counts
        for sample in range(V):
            one = [x if d is None else x[sample] for x, d in zip(inputs, dims, strict=True)]
            for i, x in enumerate(one):  # the gradient of each input, along a direction in it alone
                tangents = [torch.randn_like(t) if i == j else torch.zeros_like(t) for j, t in enumerate(one)]
                _assert_close((found[i][sample] * tangents[i]).sum(), _difference(case.loss, one, tangents))
                assert found[i][sample].shape == x.shape


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_vmap_outside_and_inside_of_grad(name: str, impl: str) -> None:
    """The gradient of a sum over samples, and ``backward()`` through a vmap, equal a loop over samples."""
    case = CASES[name]
    torch.manual_seed(0)
    inputs = [_random(*s, V).requires_grad_() for s in case.shapes]  # the vmapped dimension last
    expected = torch.autograd.grad(sum(case.loss(*(x[..., v] for x in inputs), impl) for v in range(V)), inputs)

    def total(*inputs: Tensor) -> Tensor:
        return vmap(lambda *one: case.loss(*one, impl), in_dims=-1)(*inputs).sum()

    everything = tuple(range(len(inputs)))
    for found in (grad(total, argnums=everything)(*inputs), torch.autograd.grad(total(*inputs), inputs)):
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9)


def test_vmap_of_plans() -> None:
    """Matching, from a metric and from keys: a plan per sample, also under impl="reference"."""
    metric, keys = torch.randn(V, B, N, C), torch.randn(V, B, 2, N, C)
    for impl in ("auto", "reference"):
        plans = vmap(lambda m, impl=impl: bipartite_soft_matching(m, R, impl=impl))(metric)
        from_keys = vmap(lambda k, impl=impl: bipartite_soft_matching_from_keys(k, R, impl=impl))(keys)
        for v in range(V):
            testing.assert_same_plan(Matching(*(t[v] for t in plans)), bipartite_soft_matching(metric[v], R))
            own = bipartite_soft_matching_from_keys(keys[v], R)
            testing.assert_same_plan(Matching(*(t[v] for t in from_keys)), own)


def test_vmap_over_plans_and_sizes() -> None:
    """A plan and sizes per sample, of one x; the matching inside the function."""
    x, sizes = torch.randn(B, N, C), torch.stack([testing.random_size(B, N, v) for v in range(V)])
    metric = torch.randn(V, B, N, C)

    def merge(metric: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        plan = bipartite_soft_matching(metric, R)
        merged = merge_layer_norm(x, x, plan, size, None, None)
        return *merged, unmerge(merged.x, plan)

    for found, *each in zip(vmap(merge)(metric, sizes), *map(merge, metric, sizes), strict=True):
        testing.assert_same_bits(found, torch.stack(each))


def test_no_samples() -> None:
    x, entities = torch.randn(3, C), torch.randn(K, C)
    with pytest.raises(ValueError, match="vmap: expected at least one sample"):
        vmap(lambda x: weighted_merge(x, PLAN).x)(torch.randn(0, B, N, C))
    with pytest.raises(ValueError, match="vmap: expected at least one sample"):
        vmap(lambda tau: cosine_gumbel_assign(x, entities, tau=tau, noise=None).output)(torch.ones(0))


def test_a_norm_per_sample_in_half_precision() -> None:
    """Weight and bias per sample are applied before the result is rounded, once."""
    x, weight, bias = torch.randn(B, N, C).bfloat16(), torch.randn(V, C), torch.randn(V, C)

    def normed(weight: Tensor, bias: Tensor) -> Tensor:
        return merge_layer_norm(x, x, PLAN, SIZE, weight, bias).normed

    each = torch.stack([normed(w, b) for w, b in zip(weight, bias, strict=True)])
    torch.testing.assert_close(vmap(normed)(weight, bias), each, rtol=2**-8, atol=2**-9)


def test_random_noise_under_vmap() -> None:
    """A seed that is drawn inside obeys vmap's own rule: an error, or another seed per sample."""
    x, entities = torch.randn(4, C), torch.randn(50, C)

    def draw(entities: Tensor) -> Tensor:
        return cosine_gumbel_assign(x, entities).index

    stacked = entities.expand(V, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draw)(stacked)
    picks = vmap(draw, randomness="different")(stacked)
    assert len({tuple(row.tolist()) for row in picks}) == V
    same = vmap(draw, randomness="same")(stacked)
    assert torch.equal(same[0], same[1])


# Forward mode


def _tangent(name: str, impl: str) -> tuple[Tensor, Tensor]:
    """Returns the tangent of a case along a direction in all inputs, and the central difference."""
    case = CASES[name]
    torch.manual_seed(0)
    inputs, tangents = ([_random(*s) for s in case.shapes] for _ in range(2))

    def loss(*inputs: Tensor) -> Tensor:
        return case.loss(*inputs, impl)

    return jvp(loss, tuple(inputs), tuple(tangents))[1], _difference(loss, inputs, tangents)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_right_or_says_so(name: str) -> None:
    """Never zeros: what is linear has it, the rest names impl="reference", which has it."""
    _assert_close(*_tangent(name, "reference"))
    if CASES[name].linear:
        _assert_close(*_tangent(name, "auto"))
    else:
        with pytest.raises(NotImplementedError, match=r'no forward-mode derivative.*impl="reference"'):
            _tangent(name, "auto")


@pytest.mark.parametrize("name", CASES)
def test_dual_tensors(name: str) -> None:
    """The same for ``dual_level``; a call without a tangent is undisturbed in it."""
    case = CASES[name]
    inputs = [_random(*s) for s in case.shapes]
    plain = case.loss(*inputs)
    with forward_ad.dual_level():
        assert torch.equal(case.loss(*inputs), plain)
        for i, x in enumerate(inputs):
            duals = [*inputs]
            duals[i] = forward_ad.make_dual(x, torch.ones_like(x))
            if not case.linear:
                with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                    case.loss(*duals)
            else:
                assert forward_ad.unpack_dual(case.loss(*duals)).tangent is not None


def test_plans_have_no_tangent() -> None:
    with forward_ad.dual_level():
        metric = forward_ad.make_dual(torch.randn(B, N, C), torch.ones(B, N, C))
        assert bipartite_soft_matching(metric, R).indices.dtype == torch.int32
        size = forward_ad.make_dual(SIZE, SIZE)
        with pytest.raises(ValueError, match="weighted_merge: only its first argument has a derivative"):
            weighted_merge(torch.randn(B, N, C), PLAN, size)


# Second derivatives


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.linear])
def test_second_derivatives_of_what_is_linear(name: str) -> None:
    """Every nesting of transforms: an inner one must not hide the op from an outer one."""
    loss, x = CASES[name].loss, _random(*CASES[name].shapes[0])
    tangent = torch.randn_like(x)
    truth = _difference(grad(loss), [x], [tangent])
    for second in (hessian(loss), jacrev(jacrev(loss)), jacrev(jacfwd(loss)), jacfwd(jacfwd(loss))):
        _assert_close((second(x) * tangent).sum((-3, -2, -1)), truth)
    _assert_close(jvp(grad(loss), (x,), (tangent,))[1], truth)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    _assert_close(torch.autograd.grad((first * tangent).sum(), leaf)[0], truth)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case.linear])
def test_second_derivatives_of_the_rest_name_the_reference(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    inputs = [_random(*s) for s in case.shapes]
    tangents = [torch.randn_like(inputs[0]), *(torch.zeros_like(x) for x in inputs[1:])]

    def product(impl: str, first: Callable[..., Any]) -> Tensor:
        """Returns H t for the Hessian of the first input."""
        derivative = first(lambda x: case.loss(x, *inputs[1:], impl))
        return grad(lambda x: (derivative(x) * tangents[0]).sum())(inputs[0])

    truth = _difference(lambda x, *_: grad(case.loss)(x, *inputs[1:]), inputs, tangents)
    _assert_close(product("reference", grad), truth)
    for first in (grad, jacrev):
        with pytest.raises(NotImplementedError, match=r'no second derivative.*impl="reference"'):
            product("auto", first)
    leaf = inputs[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(case.loss(leaf, *inputs[1:]), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        found.sum().backward()


# Gradients that are not asked for


def test_no_gradient_where_none_is_asked_for() -> None:
    """Outside of grad mode, and for tensors without grad, a call leaves no graph."""
    x = torch.randn(B, N, C, requires_grad=True)
    with torch.no_grad():
        assert not weighted_merge(x, PLAN).x.requires_grad
    assert not weighted_merge(x.detach(), PLAN).x.requires_grad
    with torch.inference_mode():
        assert weighted_merge(x, PLAN).x.is_inference()


def test_one_unused_result() -> None:
    """The gradient of merge + LayerNorm through one of its results; the other counts as zero."""
    x, y, weight = _random(B, N, C).requires_grad_(), _random(B, N, C), _random(C)
    for field in ("x", "normed"):
        losses = [
            getattr(merge_layer_norm(x, y, PLAN, SIZE, weight, None, impl=impl), field).sin().sum()
            for impl in ("auto", "reference")
        ]
        ours, truth = (torch.autograd.grad(loss, x)[0] for loss in losses)
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_penalty_on_per_sample_gradients() -> None:
    """The gradient of a function of per-sample gradients: right where only plain torch is in it, else a sentence."""
    x, y, weight, bias = _random(V, B, N, C), _random(B, N, C), _random(C), _random(C)

    def penalty(x: Tensor, weight: Tensor, argument: int) -> Tensor:
        gradient = grad(_norm, argnums=argument)
        return vmap(lambda one: gradient(one, y, weight, bias).square().sum())(x).sum()

    for argument in (0, 1):
        tangents = [torch.randn_like(t) if i == argument else torch.zeros_like(t) for i, t in enumerate((x, weight))]
        truth = _difference(lambda x, weight: penalty(x, weight, 2), [x, weight], tangents)
        found = grad(penalty, argnums=argument)(x, weight, 2)
        torch.testing.assert_close((found * tangents[argument]).sum(), truth, rtol=1e-6, atol=1e-6)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad(penalty)(x, weight, 0)


def test_python_calls_of_a_derivative() -> None:
    """Python's share of an op under grad, a cost in small batches; a change of these numbers is a decision."""
    op, x = torch.ops.alt_kernels.weighted_merge.default, torch.randn(B, N, C, requires_grad=True)
    entered: list[str] = []

    def count(frame: Any, event: str, _: object) -> None:
        if event == "call":
            entered.append(frame.f_code.co_qualname)

    def run(call: Callable[[], Any]) -> tuple[Any, int]:
        call()
        entered.clear()
        sys.setprofile(count)
        try:
            result = call()
        finally:
            sys.setprofile(None)
        return result, len(entered) - 1  # the lambda

    (merged, _), forward = run(lambda: op(x, SIZE, *PLAN))
    gradient = torch.ones_like(merged)
    _, total = run(lambda: torch.autograd.grad(merged, x, gradient, retain_graph=True))
    _, engine = run(lambda: torch.autograd.grad(x * 1.0, x, torch.ones_like(x)))
    assert (forward, total - engine) == (7, 5), entered
