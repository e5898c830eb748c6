"""The kernels of the table of floors: inputs, entrants, gates, floors and targets of each.

Shapes on a GPU are those for which the floors were computed: the first layer of ViT-B/16 at 224 pixels, batch 256,
and one assignment row for each token that r = 8 leaves. Targets are times on an H200. A dry run has tiny shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gates
import rivals
import shapes
import torch
import torch.nn.functional as F
from torch import Tensor

import alt_kernels as ak

from . import entrants
from .session import Session

TAU = 0.05
Gate = Callable[[Any], float]


class Case(NamedTuple):
    """``entrants``: by name, one function of a set's number; ``gates``: its error on set 0, from its result."""

    name: str
    shape: str
    flops: int
    bytes: int
    target: float | None  # seconds on an H200
    entrants: dict[str, Callable[[int], Any]]
    gates: dict[str, Gate]
    bound: float
    absent: dict[str, str]
    single: bool = False  # one set of inputs, which no cache holds, and peak memory beside the time
    unbiased: frozenset[str] = frozenset()  # entrants that solve an easier problem: no gate, shown as such


def layer(session: Session) -> shapes.Tokens:
    if session.dry:
        return shapes.Tokens(2, 17, 2, 16, 3, torch.float32)
    return shapes.Tokens(256, 197, 12, 64, 8, torch.bfloat16)


def corpus(session: Session, large: bool) -> shapes.Corpus:
    if session.dry:
        return shapes.Corpus(24, 40 if large else 19, 32, torch.float32)
    return shapes.Corpus(256 * 101, 100_000 if large else 913, 512, torch.bfloat16)


def sets(session: Session) -> int:
    """Sets of inputs, through which calls go in turn: together several times the L2 cache."""
    return 2 if session.dry else 4


def random(session: Session, seed: int, *sizes: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    """A tensor of normal numbers for every set, never zeros: a GPU computes faster on zeros."""
    generator = torch.Generator(session.device).manual_seed(seed)
    return [
        torch.randn(*sizes, generator=generator, device=session.device).to(dtype or layer(session).dtype)
        for _ in range(sets(session))
    ]


def implementations(call: Callable[..., Any]) -> dict[str, Callable[[int], Any]]:
    """Ours, and each GPU implementation by name where there is more than one."""
    found: dict[str, Callable[[int], Any]] = {"ours": lambda i: call(i, "auto")}
    ready = [name for name in ("triton", "cuda") if ak.backends()[name].available]
    if len(ready) > 1:
        found |= {f"ours, {name}": (lambda i, name=name: call(i, name)) for name in ready}
    return found


def _optional(case: Case, names: list[str]) -> Case:
    """Entrants by another implementation that refuses these inputs are absent, not failures."""
    absent = dict(case.absent)
    for name in names:
        try:
            case.entrants[name](0)
        except (ValueError, TypeError, RuntimeError) as error:
            absent[name] = entrants.reason(error)
    return case._replace(entrants={n: f for n, f in case.entrants.items() if n not in absent}, absent=absent)


def matching(session: Session, batch: int | None = None) -> Case:
    shape = layer(session)
    shape = shape._replace(batch=batch or shape.batch)
    metric = random(session, 1, shape.batch, shape.tokens, shape.head_dim)
    fast = entrants.compiled(rivals.match, session.dry)
    ours = implementations(lambda i, impl: ak.bipartite_soft_matching(metric[i], shape.r, impl=impl))
    runs = ours | {
        "plain torch": lambda i: rivals.match(metric[i], shape.r),
        "plain torch, compiled": lambda i: fast(metric[i], shape.r),
    }
    gate = gates.matching_gate(metric[0], shape.r)
    cost = shape.matching_cost()
    label = f"B={shape.batch} N={shape.tokens} D={shape.head_dim} r={shape.r} {shapes.name(shape.dtype)}"
    bound = gates.roundings(4, shape.dtype)
    name, target = ("matching", 10e-6) if batch is None else (f"matching, batch {batch}", None)
    case = Case(name, label, *cost, target, runs, dict.fromkeys(runs, gate), bound, {})
    return _optional(case, [name for name in ours if name != "ours"])


def packed(session: Session, seed: int, shape: shapes.Tokens) -> list[tuple[Tensor, Tensor, Tensor]]:
    """q, k, v ``[B, H, N, D]`` as views of a packed projection."""
    found = random(session, seed, shape.batch, shape.tokens, 3, shape.heads, shape.head_dim)
    return [tuple(t.permute(2, 0, 3, 1, 4).unbind(0)) for t in found]


def matching_from_keys(session: Session, batch: int | None = None) -> Case:
    shape = layer(session)
    shape = shape._replace(batch=batch or shape.batch)
    keys = [k for _, k, _ in packed(session, 2, shape)]

    def rival(k: Tensor) -> rivals.Pairs:
        return rivals.match(k.mean(1, dtype=torch.float32), shape.r)

    fast = entrants.compiled(rival, session.dry)
    ours = implementations(lambda i, impl: ak.bipartite_soft_matching_from_keys(keys[i], shape.r, impl=impl))
    runs = ours | {"plain torch": lambda i: rival(keys[i]), "plain torch, compiled": lambda i: fast(keys[i])}
    gate = gates.matching_gate(keys[0].mean(1, dtype=torch.float32), shape.r)
    moved = shape.batch * shape.tokens * shape.channels * shape.dtype.itemsize
    name, target = ("matching from keys", 25e-6) if batch is None else (f"matching from keys, batch {batch}", None)
    case = Case(
        *(name, shape.label, shape.matching_cost().flops, moved, target, runs),
        *(dict.fromkeys(runs, gate), gates.roundings(4, shape.dtype), {}),
    )
    return _optional(case, [name for name in ours if name != "ours"])


class Merging(NamedTuple):
    shape: shapes.Tokens
    x: list[Tensor]
    y: list[Tensor]
    size: list[Tensor]
    plans: list[ak.Matching]
    pairs: list[rivals.Pairs]
    weight: Tensor
    bias: Tensor

    def column(self, i: int) -> Tensor:
        return self.size[i][..., None].to(self.x[i].dtype)


def merging(session: Session, batch: int | None = None) -> Merging:
    """Sizes above 1, as from the second layer on; one plan in both spellings."""
    shape = layer(session)
    shape = shape._replace(batch=batch or shape.batch)
    x, y = (random(session, seed, shape.batch, shape.tokens, shape.channels) for seed in (3, 4))
    metric = random(session, 5, shape.batch, shape.tokens, shape.head_dim, dtype=torch.float32)
    generator = torch.Generator(session.device).manual_seed(6)
    sizes = [
        torch.randint(1, 6, (shape.batch, shape.tokens), generator=generator, device=session.device).float()
        for _ in range(sets(session))
    ]
    weight, bias, *_ = random(session, 7, shape.channels)
    plans = [ak.bipartite_soft_matching(m, shape.r) for m in metric]
    pairs = [_pairs(plan, shape) for plan in plans]
    return Merging(shape, x, y, sizes, plans, pairs, weight, bias)


def _pairs(plan: ak.Matching, shape: shapes.Tokens) -> rivals.Pairs:
    """The rivals' spelling of the same plan."""
    first = (shape.tokens + 1) // 2 - shape.r
    even = plan.output_row[:, 0::2].long()
    merged = even >= first
    order = merged.long().argsort(dim=-1, stable=True)
    kept, source = order[:, :first], order[:, first:]
    return rivals.Pairs(kept, source, even.gather(1, source) - first)


def weighted_merge(session: Session) -> Case:
    m = merging(session)
    fast = entrants.compiled(rivals.merge, session.dry)
    want = ak.weighted_merge(m.x[0].double(), m.plans[0], m.size[0], impl="reference").x
    runs = {
        "ours": lambda i: ak.weighted_merge(m.x[i], m.plans[i], m.size[i]),
        "plain torch": lambda i: rivals.merge(m.x[i], m.column(i), m.pairs[i]),
        "plain torch, index_add": lambda i: rivals.merge_index_add(m.x[i], m.column(i), m.pairs[i]),
        "plain torch, compiled": lambda i: fast(m.x[i], m.column(i), m.pairs[i]),
    }
    gate = dict.fromkeys(runs, lambda result: gates.error(result[0], want))
    cost = m.shape.merge_cost()
    target = 1.3 * 35e-6
    return Case(
        "merge", m.shape.label, cost.flops, cost.bytes, target, runs, gate, gates.roundings(16, m.x[0].dtype), {}
    )


def merge_layer_norm(session: Session, batch: int | None = None) -> Case:
    m = merging(session, batch)
    fast = entrants.compiled(rivals.merge_layer_norm, session.dry)
    width = m.shape.channels

    def without_merging(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        return total, F.layer_norm(total, (width,), m.weight, m.bias)

    unmerged = entrants.compiled(without_merging, session.dry)
    exact = (t.double() for t in (m.x[0], m.y[0]))
    parameters = (m.weight.double(), m.bias.double())
    want = ak.merge_layer_norm(*exact, m.plans[0], m.size[0], *parameters, impl="reference").normed

    def call(i: int, impl: Any) -> Any:
        return ak.merge_layer_norm(m.x[i], m.y[i], m.plans[i], m.size[i], m.weight, m.bias, impl=impl)

    ours = implementations(call)
    arguments = [(m.x[i], m.y[i], m.column(i), m.pairs[i], m.weight, m.bias) for i in range(sets(session))]
    easier = "residual and LayerNorm, nothing merged"
    runs = ours | {
        "plain torch": lambda i: rivals.merge_layer_norm(*arguments[i]),
        "plain torch, compiled": lambda i: fast(*arguments[i]),
        easier: lambda i: unmerged(m.x[i], m.y[i]),
    }
    gate = dict.fromkeys(runs, lambda result: gates.error(result[1], want))
    cost = m.shape.merge_layer_norm_cost()
    name = "residual + merge + LayerNorm" if batch is None else f"residual + merge + LayerNorm, batch {batch}"
    target = 1.25 * 70.6e-6 if batch is None else None
    case = Case(
        *(name, m.shape.label, cost.flops, cost.bytes, target, runs, gate, gates.roundings(32, m.x[0].dtype), {}),
        unbiased=frozenset({easier}),
    )
    return _optional(case, [n for n in ours if n != "ours"])


def attention(session: Session) -> Case:
    shape = layer(session)
    heads = packed(session, 8, shape)
    size = merging(session).size
    others, absent = entrants.attention_rivals(session.device, session.dry)
    exact = (t.double() for t in heads[0])
    want = ak.proportional_attention(*exact, size[0], impl="reference")
    runs: dict[str, Callable[[int], Any]] = {"ours": lambda i: ak.proportional_attention(*heads[i], size[i])}
    runs |= {name: (lambda i, f=f: f(*heads[i], size[i])) for name, f in others.items()}
    cost = shape.attention_cost()
    gate = dict.fromkeys(runs, lambda result: gates.error(result, want))
    easier = frozenset(name for name in others if "no bias" in name)
    return Case(
        *("attention", shape.label, cost.flops, cost.bytes, 1.3 * 72e-6, runs, gate),
        *(gates.roundings(16, shape.dtype), absent),
        unbiased=easier,
    )


def attention_backward(session: Session, *, both: bool = False) -> Case:
    """The derivative alone, which has a floor; ``both``: forward and derivative, as rivals can be captured."""
    shape = layer(session)
    heads = packed(session, 8, shape)
    size = merging(session).size
    grads = random(session, 9, shape.batch, shape.heads, shape.tokens, shape.head_dim)
    leaves = [tuple(t.detach().requires_grad_() for t in qkv) for qkv in heads]

    def derivative(function: Any, i: int) -> tuple[Tensor, ...]:
        out = function(*leaves[i], size[i])
        return torch.autograd.grad(out, leaves[i], grads[i])

    exact = [t.detach().double().requires_grad_() for t in heads[0]]
    out = ak.proportional_attention(*exact, size[0], impl="reference")
    want = torch.autograd.grad(out, exact, grads[0].double())

    def gate(result: tuple[Tensor, ...]) -> float:
        return max(gates.error(got, right) for got, right in zip(result, want, strict=True))

    cost = shape.attention_cost()
    flops, moved = 5 * cost.flops // 2, 2 * cost.bytes
    bound = gates.roundings(64, shape.dtype)
    if both:
        others, absent = entrants.attention_rivals(session.device, session.dry)
        runs: dict[str, Callable[[int], Any]] = {"ours": lambda i: derivative(ak.proportional_attention, i)}
        runs |= {name: (lambda i, f=f: derivative(f, i)) for name, f in others.items()}
        easier = frozenset(name for name in others if "no bias" in name)
        total = flops + cost.flops, moved + cost.bytes
        name = "attention, forward and backward"
        return Case(name, shape.label, *total, None, runs, dict.fromkeys(runs, gate), bound, absent, unbiased=easier)
    scale = shape.head_dim**-0.5
    ops = torch.ops.alt_kernels
    saved = [ops.proportional_attention(*heads[i], size[i], scale) for i in range(sets(session))]
    runs = {"ours": lambda i: ops.proportional_attention_backward(grads[i], *heads[i], size[i], *saved[i], scale)}
    return Case("attention backward", shape.label, flops, moved, 1.5 * 144e-6, runs, {"ours": gate}, bound, {})


def assignment(session: Session, *, large: bool = False) -> Case:
    shape = corpus(session, large)
    x = random(session, 10, shape.rows, shape.channels, dtype=shape.dtype)
    e = random(session, 12, shape.entities, shape.channels, dtype=shape.dtype)
    seed = torch.tensor(5, device=session.device)
    rows = slice(0, min(shape.rows, 512))  # what float64 can hold of a large corpus
    law = gates.law_gate(x[0][rows], e[0], TAU)
    fused, eager = entrants.row_kernel(session.dry), rivals.assign
    runs = {
        "ours": lambda i: ak.cosine_gumbel_assign(x[i], e[i], tau=TAU, seed=seed).output,
        "cuBLAS and one row kernel": lambda i: fused(x[i], e[i], TAU),
        "F.gumbel_softmax": lambda i: eager(x[i], e[i], TAU),
    }
    if not large:
        fast = entrants.compiled(eager, session.dry)
        runs["F.gumbel_softmax, compiled"] = lambda i: fast(x[i], e[i], TAU)
    cost = shape.cost(backward=False)
    target = 8.4e-3 if large else 90e-6
    gate = dict.fromkeys(runs, lambda result: law(result[rows]))
    name = f"assignment, K = {shape.entities:,}"
    bound = gates.roundings(64, shape.dtype)
    return Case(name, shape.label, *cost, target, runs, gate, bound, {}, single=large)


def assignment_backward(session: Session, *, both: bool = False) -> Case:
    shape = corpus(session, False)
    x, grad = (random(session, seed, shape.rows, shape.channels, dtype=shape.dtype) for seed in (10, 11))
    e = random(session, 12, shape.entities, shape.channels, dtype=shape.dtype)
    seed, tau = torch.tensor(5, device=session.device), torch.tensor(TAU, device=session.device)
    exact = x[0].double().requires_grad_()
    out = ak.cosine_gumbel_assign(exact, e[0].double(), tau=TAU, seed=seed, impl="reference").output
    want = torch.autograd.grad(out, exact, grad[0].double())[0]
    bound = gates.roundings(512, shape.dtype)
    cost = shape.cost(backward=True)
    if both:
        leaves = [t.detach().requires_grad_() for t in x]
        fast = entrants.compiled(rivals.assign, session.dry)

        def finite(result: Tensor) -> float:
            return 0.0 if torch.isfinite(result).all() else float("inf")

        def derivative(output: Tensor, i: int) -> Tensor:
            return torch.autograd.grad(output, leaves[i], grad[i])[0]

        runs: dict[str, Callable[[int], Any]] = {
            "ours": lambda i: derivative(ak.cosine_gumbel_assign(leaves[i], e[i], tau=TAU, seed=seed).output, i),
            "F.gumbel_softmax": lambda i: derivative(rivals.assign(leaves[i], e[i], TAU), i),
            "F.gumbel_softmax, compiled": lambda i: derivative(fast(leaves[i], e[i], TAU), i),
        }
        gate = {"ours": lambda result: gates.error(result, want)} | dict.fromkeys(list(runs)[1:], finite)
        return Case("assignment, forward and backward", shape.label, *cost, None, runs, gate, bound, {})
    ops = torch.ops.alt_kernels
    saved = [ops.gumbel_assignment(x[i], e[i], tau, None, seed, True)[1:] for i in range(sets(session))]

    def backward(i: int) -> Tensor:
        return ops.gumbel_assignment_backward(grad[i], x[i], e[i], tau, None, seed, *saved[i], True, False)[0]

    flops = 3 * shape.cost(backward=False).flops
    gate = {"ours": lambda result: gates.error(result, want)}
    return Case("assignment backward", shape.label, flops, cost.bytes, 260e-6, {"ours": backward}, gate, bound, {})


def all_cases(session: Session) -> Iterator[tuple[str, float, Callable[[], Case]]]:
    """Name, about how many seconds it takes on a GPU, and what builds it; the promises come first."""
    yield "matching", 15, lambda: matching(session)
    yield "matching from keys", 15, lambda: matching_from_keys(session)
    yield "merge", 15, lambda: weighted_merge(session)
    yield "residual + merge + LayerNorm", 15, lambda: merge_layer_norm(session)
    yield "attention", 40, lambda: attention(session)
    yield "attention backward", 10, lambda: attention_backward(session)
    yield "assignment", 20, lambda: assignment(session)
    yield "assignment backward", 10, lambda: assignment_backward(session)
    yield "assignment, large corpus", 25, lambda: assignment(session, large=True)
    yield "matching from keys, batch 8", 15, lambda: matching_from_keys(session, 8)
    yield "residual + merge + LayerNorm, batch 8", 15, lambda: merge_layer_norm(session, 8)
    yield "matching, batch 8", 15, lambda: matching(session, 8)
    yield "attention, forward and backward", 45, lambda: attention_backward(session, both=True)
    yield "assignment, forward and backward", 25, lambda: assignment_backward(session, both=True)
