"""The kernels of the table of floors: entrants, gates, floors and targets of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gates
import rivals
import shapes
import torch
import torch.nn.functional as F
from torch import Tensor

import alt_kernels as ak

from . import entrants
from .inputs import TAU, corpus, layer, merging, packed, random, sets_of, token_sizes
from .session import Session

Gate = Callable[[Any], float]


class Target(NamedTuple):
    """Time that a kernel has to reach: seconds where latency decides, or a multiple of this machine's own floor.

    ``together``: the floor is the sum of the kernel's floors, whose work one unit does after the other; else the
    largest of them.
    """

    seconds: float | None = None
    floors: float | None = None
    together: bool = False

    def here(self, floors: Mapping[str, float]) -> float | None:
        if self.floors is None:
            return self.seconds
        return self.floors * (sum(floors.values()) if self.together else max(floors.values()))


class Case(NamedTuple):
    """``entrants``: by name, one function of a set's number; ``gates``: its error on set 0, from its result."""

    name: str
    shape: str
    flops: int
    bytes: int
    target: Target
    entrants: dict[str, Callable[[int], Any]]
    gates: dict[str, Gate]
    bound: float
    absent: dict[str, str]
    sets: int
    peak: bool = False  # peak memory beside the time
    unbiased: frozenset[str] = frozenset()  # entrants that solve an easier problem: no gate, shown as such
    draws: int = 0  # Gumbel numbers

    def floors(self, ceilings: Mapping[str, float]) -> dict[str, float]:
        """Seconds that nobody can do without on a machine with these ceilings, by what they go into."""
        products = max(self.bytes / ceilings["bytes_per_s"], self.flops / ceilings["flop_per_s"])
        found = {"bytes or products": products}
        return found | ({"noise": self.draws / ceilings["draws_per_s"]} if self.draws else {})

    def without(self, names: frozenset[str]) -> Case:
        return self._replace(entrants={n: f for n, f in self.entrants.items() if n not in names})


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
    sizes = (shape.batch, shape.tokens, shape.head_dim)
    count = sets_of(session, *sizes)
    metric = random(session, 1, count, *sizes)
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
    name, target = ("matching", Target(10e-6)) if batch is None else (f"matching, batch {batch}", Target())
    case = Case(name, label, *cost, target, runs, dict.fromkeys(runs, gate), bound, {}, count)
    return _optional(case, [name for name in ours if name != "ours"])


def matching_from_keys(session: Session, batch: int | None = None) -> Case:
    shape = layer(session)
    shape = shape._replace(batch=batch or shape.batch)
    count = sets_of(session, shape.batch, shape.tokens, shape.channels)
    keys = [k for _, k, _ in packed(session, 2, count, shape)]

    def rival(k: Tensor) -> rivals.Pairs:
        return rivals.match(k.mean(1, dtype=torch.float32), shape.r)

    fast = entrants.compiled(rival, session.dry)
    ours = implementations(lambda i, impl: ak.bipartite_soft_matching_from_keys(keys[i], shape.r, impl=impl))
    runs = ours | {"plain torch": lambda i: rival(keys[i]), "plain torch, compiled": lambda i: fast(keys[i])}
    gate = gates.matching_gate(keys[0].mean(1, dtype=torch.float32), shape.r)
    moved = shape.batch * shape.tokens * shape.channels * shape.dtype.itemsize
    name = "matching from keys" if batch is None else f"matching from keys, batch {batch}"
    target = Target(floors=1.4) if batch is None else Target()
    case = Case(
        *(name, shape.label, shape.matching_cost().flops, moved, target, runs),
        *(dict.fromkeys(runs, gate), gates.roundings(4, shape.dtype), {}, count),
    )
    return _optional(case, [name for name in ours if name != "ours"])


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
    bound = gates.roundings(16, m.x[0].dtype)
    return Case("merge", m.shape.label, *cost, Target(floors=1.3), runs, gate, bound, {}, len(m.x))


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
    arguments = [(m.x[i], m.y[i], m.column(i), m.pairs[i], m.weight, m.bias) for i in range(len(m.x))]
    easier = entrants.EASIER_NORM
    runs = ours | {
        "plain torch": lambda i: rivals.merge_layer_norm(*arguments[i]),
        "plain torch, compiled": lambda i: fast(*arguments[i]),
        easier: lambda i: unmerged(m.x[i], m.y[i]),
    }
    gate = dict.fromkeys(runs, lambda result: gates.error(result[1], want))
    cost = m.shape.merge_layer_norm_cost()
    name = "residual + merge + LayerNorm" if batch is None else f"residual + merge + LayerNorm, batch {batch}"
    target = Target(floors=1.25) if batch is None else Target()
    bound = gates.roundings(32, m.x[0].dtype)
    case = Case(
        *(name, m.shape.label, *cost, target, runs, gate, bound, {}, len(m.x)),
        unbiased=frozenset({easier}),
    )
    return _optional(case, [n for n in ours if n != "ours"])


def attention(session: Session) -> Case:
    shape = layer(session)
    count = sets_of(session, shape.batch, shape.tokens, 3 * shape.channels)
    heads, size = packed(session, 8, count, shape), token_sizes(session, count, shape)
    others, absent = entrants.attention_rivals(session.device, session.dry)
    exact = (t.double() for t in heads[0])
    want = ak.proportional_attention(*exact, size[0], impl="reference")
    runs: dict[str, Callable[[int], Any]] = {"ours": lambda i: ak.proportional_attention(*heads[i], size[i])}
    runs |= {name: (lambda i, f=f: f(*heads[i], size[i])) for name, f in others.items()}
    cost = shape.attention_cost()
    gate = dict.fromkeys(runs, lambda result: gates.error(result, want))
    easier = frozenset(name for name in others if "no bias" in name)
    return Case(
        *("attention", shape.label, *cost, Target(floors=1.3), runs, gate),
        *(gates.roundings(16, shape.dtype), absent, count),
        unbiased=easier,
    )


def attention_backward(session: Session, *, both: bool = False) -> Case:
    """The derivative alone, which has a floor; ``both``: forward and derivative, as rivals can be captured."""
    shape = layer(session)
    count = sets_of(session, shape.batch, shape.tokens, 3 * shape.channels)
    heads, size = packed(session, 8, count, shape), token_sizes(session, count, shape)
    grads = random(session, 9, count, shape.batch, shape.heads, shape.tokens, shape.head_dim)
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
        gate_of = dict.fromkeys(runs, gate)
        return Case(name, shape.label, *total, Target(), runs, gate_of, bound, absent, count, unbiased=easier)
    scale = shape.head_dim**-0.5
    ops = torch.ops.alt_kernels
    saved = [ops.proportional_attention(*heads[i], size[i], scale) for i in range(count)]
    runs = {"ours": lambda i: ops.proportional_attention_backward(grads[i], *heads[i], size[i], *saved[i], scale)}
    target = Target(floors=1.5)
    return Case("attention backward", shape.label, flops, moved, target, runs, {"ours": gate}, bound, {}, count)


def assignment(session: Session, *, large: bool = False) -> Case:
    shape = corpus(session, large)
    count = 1 if large else sets_of(session, shape.rows, shape.channels)  # the large corpus is no cache's
    x = random(session, 10, count, shape.rows, shape.channels, dtype=shape.dtype)
    e = random(session, 12, count, shape.entities, shape.channels, dtype=shape.dtype)
    seed = torch.tensor(5, device=session.device)
    rows = slice(0, min(shape.rows, 512))  # what float64 can hold of a large corpus
    law = gates.law_gate(x[0][rows], e[0], TAU)
    fused, eager = entrants.row_kernel(session.dry), rivals.assign
    runs = {
        "ours": lambda i: ak.cosine_gumbel_assign(x[i], e[i], tau=TAU, seed=seed).output,
        entrants.ROW_KERNEL: lambda i: fused(x[i], e[i], TAU),
        "F.gumbel_softmax": lambda i: eager(x[i], e[i], TAU),
    }
    if not large:
        fast = entrants.compiled(eager, session.dry)
        runs["F.gumbel_softmax, compiled"] = lambda i: fast(x[i], e[i], TAU)
    cost = shape.cost(backward=False)
    target = Target(floors=2.0) if large else Target(floors=1.45, together=True)
    gate = dict.fromkeys(runs, lambda result: law(result[rows]))
    name = f"assignment, K = {shape.entities:,}"
    bound = gates.roundings(16, shape.dtype)
    draws = shape.rows * shape.entities
    return Case(name, shape.label, *cost, target, runs, gate, bound, {}, count, peak=large, draws=draws)


def assignment_backward(session: Session, *, both: bool = False) -> Case:
    shape = corpus(session, False)
    count = sets_of(session, shape.rows, shape.channels)
    x, grad = (random(session, n, count, shape.rows, shape.channels, dtype=shape.dtype) for n in (10, 11))
    e = random(session, 12, count, shape.entities, shape.channels, dtype=shape.dtype)
    seed, tau = torch.tensor(5, device=session.device), torch.tensor(TAU, device=session.device)
    exact = x[0].double().requires_grad_()
    out = ak.cosine_gumbel_assign(exact, e[0].double(), tau=TAU, seed=seed, impl="reference").output
    want = torch.autograd.grad(out, exact, grad[0].double())[0]
    # Sums in float32 and some roundings to the working dtype; a gradient of zeros is off by 1.
    bound = gates.roundings(512, torch.float32) + gates.roundings(8, shape.dtype)
    cost, draws = shape.cost(backward=True), shape.rows * shape.entities
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
        name = "assignment, forward and backward"
        return Case(name, shape.label, *cost, Target(), runs, gate, bound, {}, count, draws=draws)
    ops = torch.ops.alt_kernels
    saved = [ops.gumbel_assignment(x[i], e[i], tau, None, seed, True)[1:] for i in range(count)]

    def backward(i: int) -> Tensor:
        return ops.gumbel_assignment_backward(grad[i], x[i], e[i], tau, None, seed, *saved[i], True, False)[0]

    flops = 3 * shape.cost(backward=False).flops
    gate = {"ours": lambda result: gates.error(result, want)}
    runs = {"ours": backward}
    target, sizes = Target(floors=2.0, together=True), (flops, cost.bytes)
    return Case("assignment backward", shape.label, *sizes, target, runs, gate, bound, {}, count, draws=draws)


def all_cases(session: Session) -> Iterator[tuple[str, float, Callable[[], Case]]]:
    """Name, about how many seconds it takes with its compiled rivals, what builds it.

    What is promised and has a compiled rival comes first: a short budget reaches only these.
    """
    yield "residual + merge + LayerNorm", 18, lambda: merge_layer_norm(session)
    yield "assignment", 25, lambda: assignment(session)
    yield "attention", 35, lambda: attention(session)
    yield "attention backward", 8, lambda: attention_backward(session)
    yield "matching from keys", 12, lambda: matching_from_keys(session)
    yield "merge", 14, lambda: weighted_merge(session)
    yield "matching", 22, lambda: matching(session)
    yield "assignment backward", 8, lambda: assignment_backward(session)
    yield "assignment, large corpus", 25, lambda: assignment(session, large=True)
    for batch in (16, 1, 4):  # several programs per image
        yield f"matching from keys, batch {batch}", 12, lambda b=batch: matching_from_keys(session, b)
    yield "residual + merge + LayerNorm, batch 8", 15, lambda: merge_layer_norm(session, 8)
    yield "matching, batch 8", 12, lambda: matching(session, 8)
    yield "attention, forward and backward", 45, lambda: attention_backward(session, both=True)
    yield "assignment, forward and backward", 25, lambda: assignment_backward(session, both=True)
