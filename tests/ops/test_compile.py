"""torch.compile and torch.export of every public function: one graph, the same results, no recompilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.compiled_autograd
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

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

B, N, C, R = 2, 11, 8, 3
PLAN = testing.random_plan(B, N, R, 0)
SIZE = testing.random_size(B, N, 0)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _x(*shape: int) -> Tensor:
    return torch.randn(shape or (B, N, C), requires_grad=True)


def _assign(x: Tensor, entities: Tensor, tau: Tensor, seed: Tensor) -> Tensor:
    return cosine_gumbel_assign(x, entities, tau=tau, seed=seed).output


def _soft(x: Tensor, entities: Tensor, noise: Tensor) -> Tensor:
    return cosine_gumbel_assign(x, entities, tau=0.5, hard=False, noise=noise).output


# Name: the function, its arguments; the float arguments that require grad are differentiated.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "bipartite_soft_matching": (lambda x: bipartite_soft_matching(x, R), lambda: (_x(),)),
    "bipartite_soft_matching_from_keys": (
        lambda x: bipartite_soft_matching_from_keys(x.unflatten(-1, (2, C // 2)).transpose(1, 2), R),
        lambda: (_x(),),
    ),
    "weighted_merge": (lambda x, p, s: weighted_merge(x, p, s), lambda: (_x(), PLAN, SIZE)),
    "weighted_merge without sizes": (lambda x, p: weighted_merge(x, p), lambda: (_x(), PLAN)),
    "unmerge": (lambda x, p: unmerge(x, p), lambda: (_x(B, N - R, C), PLAN)),
    "source_map": (lambda a, b: source_map([a, b]), lambda: (PLAN, testing.random_plan(B, N - R, 2, 1))),
    "merge_layer_norm": (
        lambda x, y, p, s, w, b: merge_layer_norm(x, y, p, s, w, b),
        lambda: (_x(), _x(), PLAN, SIZE, _x(C), _x(C)),
    ),
    "proportional_attention": (
        lambda q, k, v, s: proportional_attention(q, k, v, s),
        lambda: (_x(B, 2, N, C), _x(B, 2, N, C), _x(B, 2, N, C), SIZE),
    ),
    "cosine_gumbel_assign": (
        _assign,
        lambda: (_x(), _x(5, C), torch.tensor(0.7, requires_grad=True), torch.tensor(3)),
    ),
    "cosine_gumbel_assign, soft": (_soft, lambda: (_x(), _x(5, C), torch.randn(B, N, 5))),
    "cosine_gumbel_assign, evaluation": (
        lambda x, s: cosine_gumbel_assign(x, s, noise=None),
        lambda: (_x(), _x(5, C)),
    ),
}


def _flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in _flat(v)]


def _outcome(run: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """Outputs, then the gradients of a fixed projection of the differentiable ones."""
    outputs = _flat(run(*arguments))
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    torch.manual_seed(1)
    loss = [(t * torch.randn_like(t)).sum() for t in outputs if t.requires_grad]
    grads = torch.autograd.grad(torch.stack(loss).sum(), leaves) if loss and leaves else ()
    return [*(t.detach() for t in outputs), *grads]


@pytest.mark.parametrize("name", CALLS)
def test_one_graph_forward_and_backward(name: str) -> None:
    """fullgraph: a graph break raises. The same kernels run, so the results are equal bit for bit."""
    function, arguments = CALLS[name]
    given = arguments()
    expected = _outcome(function, given)
    actual = _outcome(torch.compile(function, fullgraph=True, backend="aot_eager"), given)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        testing.assert_same_bits(a, e)
    if not name.startswith(("bipartite_soft_matching", "source_map")):
        floating = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
        assert len(expected) > len(floating) > 0, "no gradient was compared"


def _chain(x: Tensor, entities: Tensor, seed: Tensor, r: int = 2) -> tuple[Tensor, ...]:
    """Runs the steps of a block and the assignment after it."""
    heads = x.unflatten(-1, (2, C // 2)).transpose(1, 2)
    size = torch.ones(x.shape[0], x.shape[1])
    attended = proportional_attention(heads, heads, heads, size).transpose(1, 2).flatten(2)
    plan = bipartite_soft_matching_from_keys(heads, r)
    merged, normed, size = merge_layer_norm(x, attended, plan, size, None, None)
    plan = bipartite_soft_matching(normed, 1)
    merged, size = weighted_merge(merged + normed, plan, size)
    result = cosine_gumbel_assign(merged, entities, seed=seed)
    return unmerge(result.output, plan), size, result.index, source_map([plan])


def test_the_chain_has_no_graph_break() -> None:
    explanation = torch._dynamo.explain(_chain)(_x(), torch.randn(5, C), torch.tensor(1))
    assert explanation.graph_break_count == 0, explanation.break_reasons
    assert explanation.graph_count == 1


def test_fewer_tokens_do_not_recompile() -> None:
    """N shrinks from block to block; forward and backward are compiled once for all of them."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_chain, fullgraph=True, backend=counter)
    entities = torch.randn(5, C)
    for step, tokens in enumerate((17, 15, 13, 12, 9)):
        x = _x(B, tokens, C)
        torch._dynamo.mark_dynamic(x, 1)
        expected = _outcome(_chain, (x, entities, torch.tensor(4)))
        stance = "default" if step == 0 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            actual = _outcome(compiled, (x, entities, torch.tensor(4)))
        for a, e in zip(actual, expected, strict=True):
            testing.assert_same_bits(a, e)
    assert counter.frame_count == 1


def test_another_seed_does_not_recompile() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_chain, fullgraph=True, backend=counter)
    x, entities = _x(), torch.randn(50, C)
    picks = []
    for seed in (1, 2, -(2**60)):
        picks.append(compiled(x, entities, torch.tensor(seed))[2])
        assert torch.equal(picks[-1], _chain(x, entities, torch.tensor(seed))[2])
    assert not torch.equal(picks[0], picks[1])
    assert counter.frame_count == 1


def test_another_tau_does_not_recompile() -> None:
    """A learned temperature is a tensor."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_assign, fullgraph=True, backend=counter)
    x, entities, seed = _x(), torch.randn(5, C), torch.tensor(1)
    for tau in (1.0, 0.5, 0.01):
        given = (x, entities, torch.tensor(tau, requires_grad=True), seed)
        for a, e in zip(_outcome(compiled, given), _outcome(_assign, given), strict=True):
            testing.assert_same_bits(a, e)
    assert counter.frame_count == 1


def test_a_drawn_seed_changes_from_call_to_call() -> None:
    """seed=None is drawn inside the graph: it must not become a constant of it."""
    compiled = torch.compile(
        lambda x, s: cosine_gumbel_assign(x, s).log_normalizer, fullgraph=True, backend="aot_eager"
    )
    x, entities = torch.randn(9, C), torch.randn(5, C)
    assert not torch.equal(compiled(x, entities), compiled(x, entities))
    torch.manual_seed(3)
    first = compiled(x, entities)
    torch.manual_seed(3)
    assert torch.equal(first, compiled(x, entities))


def test_r_may_be_symbolic() -> None:
    """After a second value r is a symbol: a third does not compile again."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, r: bipartite_soft_matching(x, r), fullgraph=True, backend=counter)
    metric = torch.randn(B, 21, C)
    for r in (2, 3, 4, 5, 7):
        testing.assert_same_plan(Matching(*compiled(metric, r)), bipartite_soft_matching(metric, r))
    assert counter.frame_count <= 2


def test_export() -> None:
    """The ops appear in the exported program by name, with a batch of any size."""

    class Chain(torch.nn.Module):
        def forward(self, x: Tensor, entities: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
            return _chain(x, entities, seed)

    arguments = (torch.randn(3, N, C), torch.randn(5, C), torch.tensor(2))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Chain(), arguments, dynamic_shapes=({0: batch}, None, None))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for name in (
        "bipartite_matching",
        "bipartite_matching_from_keys",
        "merge_layer_norm",
        "weighted_merge",
        "unmerge",
        "gumbel_assignment",
    ):
        assert f"alt_kernels.{name}.default" in called
    other = (torch.randn(5, N, C), *arguments[1:])
    for given in (arguments, other):
        for a, e in zip(program.module()(*given), _chain(*given), strict=True):
            testing.assert_same_bits(a, e)


def test_checks_raise_while_compiling() -> None:
    compiled = torch.compile(lambda x, p: weighted_merge(x, p), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="expected a plan of 10 input tokens as in x"):
        compiled(torch.randn(B, 10, C), PLAN)


@pytest.mark.slow
def test_compiled_autograd() -> None:
    """A backward that torch traces in one graph: the same gradients."""

    def loss() -> Tensor:
        merged, normed, _ = merge_layer_norm(x, x.sin(), PLAN, SIZE, weight, None)
        heads = normed.unflatten(-1, (2, C // 2)).transpose(1, 2)
        attended = proportional_attention(heads, heads, heads).square().sum()
        return attended + weighted_merge(x, PLAN).x.sum() + merged.sum()

    x, weight = _x(), _x(C)
    expected = torch.autograd.grad(loss(), (x, weight))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        loss().backward()
    for actual, truth in zip((x.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(actual, truth)


@pytest.mark.slow
def test_inductor() -> None:
    """The default backend, with dynamic shapes: its own fusions around our ops, to rounding."""
    compiled = torch.compile(_chain, fullgraph=True, dynamic=True)
    entities = torch.randn(5, C)
    for tokens in (17, 13):
        given = (_x(B, tokens, C), entities, torch.tensor(4))
        for a, e in zip(_outcome(compiled, given), _outcome(_chain, given), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
