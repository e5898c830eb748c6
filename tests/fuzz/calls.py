"""``python -m tests.fuzz.calls``: random calls of every operation and its gradient on the CPU, valid and damaged.

A child process runs a range of calls with the kernels of one x86 level, under AddressSanitizer and UBSan unless
``--plain``. A call returns or raises. A child that dies names the call that killed it; the next one goes on after it.
Call ``number`` depends on (seed, number) alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

import alt_kernels as ak
from alt_kernels import Matching, testing

from .levels import LEVELS, build, find_compiler, runnable

REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SPECIAL = (0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e38, 1e-40)


class Outcome(NamedTuple):
    """operation: its name. results: outputs, then gradients; None: the call was refused."""

    operation: str
    results: list[Tensor] | None


class Draw:
    """Random arguments. ``valid``: none are damaged, and values are finite."""

    def __init__(self, seed: int, valid: bool) -> None:
        self.generator, self.valid = torch.Generator().manual_seed(seed), valid

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) < percent

    def choose(self, options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def values(self, *shape: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(shape, generator=self.generator).to(dtype)
        if not self.valid and x.numel() and self.chance(15):
            place = torch.rand(shape, generator=self.generator) < self.choose((0.01, 0.3, 1.0))
            x = torch.where(place, torch.tensor(self.choose(SPECIAL), dtype=torch.float64).to(dtype), x)
        return self.layout(x)

    def rows(self, batch: int, tokens: int, channels: int, dtype: torch.dtype) -> Tensor:
        """Rows whose similarities are exact: every level chooses the same pairs."""
        if not self.valid:
            return self.values(batch, tokens, channels, dtype=dtype)
        exact = testing.exact_metric(batch, tokens, self.integer(0, 10**6), channels=channels, dtype=dtype)
        return self.layout(exact)

    def layout(self, x: Tensor) -> Tensor:
        """The same values elsewhere in memory: between others, at any address, in another order, or overlapping."""
        kind = self.integer(0, 5)
        if kind == 1 and x.dim() and x.shape[-1]:
            return testing.spread(x)
        if kind == 2:
            around = torch.full([n + 3 for n in x.shape], torch.nan, dtype=x.dtype)
            return around[tuple(slice(1, n + 1) for n in x.shape)].copy_(x)
        if kind == 3 and x.dim() > 1:
            return x.movedim(0, -1).contiguous().movedim(-1, 0)
        if kind == 4 and x.dim() > 2 and x.shape[0] > 1:
            return x[:1].expand(x.shape)
        return x

    def size(self, batch: int, tokens: int) -> Tensor | None:
        if self.chance(30):
            return None
        size = testing.random_size(batch, tokens, self.integer(0, 10**6))
        if self.chance(30):
            size = torch.where(torch.rand(batch, tokens, generator=self.generator) < 0.3, 0.0, size)
        if not self.valid and self.chance(10):
            size = size * self.choose((-1.0, torch.nan, 1e38))
        return self.layout(size)

    def plan(self, batch: int, tokens: int, r: int, protected: int) -> Matching:
        plan = testing.random_plan(batch, tokens, r, self.integer(0, 10**6), num_protected=protected)
        if self.valid or self.chance(60):
            return plan
        parts = [part.clone() for part in plan]
        for _ in range(self.integer(1, 3)):
            part = self.choose(parts)
            if part.numel():
                place = self.integer(0, part.numel() - 1)
                part.view(-1)[place] = self.choose((-1, 0, tokens, tokens - r, 2**31 - 1, -(2**31), 7))
        if self.chance(10):
            parts[self.integer(0, 2)] = self.choose((parts[0][:, :-1], parts[1].long(), parts[2][:1]))
        return Matching(*parts)

    def counts(self) -> tuple[int, int, int, int, int]:
        """Batch, tokens, channels, r and the number of protected tokens."""
        batch = self.integer(1, 3) if self.valid or self.chance(90) else 0
        tokens = self.choose((self.integer(1, 9), self.integer(1, 40), self.integer(1, 200)))
        channels = self.choose((self.integer(1, 9), self.integer(1, 70), 16 * self.integer(1, 8)))
        if self.valid:
            channels = max(channels, 16)  # the variance of a few numbers may be any, and divides
        protected = min(self.choose((0, 1, 1, 5)), tokens)
        r = self.integer(0, (tokens - protected) // 2)
        if not self.valid and self.chance(3):
            r = self.choose((-1, tokens, 2**40))
        return batch, tokens, channels, r, protected


def call(number: int, seed: int, *, valid: bool = False) -> Outcome:
    """Runs one random call, with the gradient of a random projection of its floating results."""
    draw = Draw(seed * 1_000_003 + number, valid)
    name = draw.choose(sorted(OPERATIONS))
    try:
        function, leaves = OPERATIONS[name](draw)
        leaves = [x.detach().requires_grad_() for x in leaves]
        results = [t for t in _flat(function(*leaves)) if isinstance(t, Tensor)]
        floating = [t for t in results if t.requires_grad]
        if floating:
            weights = [torch.randn(t.shape, generator=draw.generator).to(t.dtype) for t in floating]
            grads = torch.autograd.grad(floating, leaves, weights, allow_unused=True)
            results += [g for g in grads if g is not None]
    except REFUSALS:
        if valid:
            raise
        return Outcome(name, None)
    return Outcome(name, [t.detach() for t in results])


def _flat(value: Any) -> list[Any]:
    return [value] if value is None or isinstance(value, Tensor) else [t for v in value for t in _flat(v)]


def _match(draw: Draw) -> Any:
    batch, tokens, channels, r, protected = draw.counts()
    metric = draw.rows(batch, tokens, channels, draw.choose(DTYPES))
    return lambda: ak.bipartite_soft_matching(metric, r, num_protected=protected), []


def _match_keys(draw: Draw) -> Any:
    batch, tokens, channels, r, protected = draw.counts()
    keys = draw.rows(batch, tokens, channels, draw.choose(DTYPES))
    heads = torch.stack([keys] * draw.choose((1, 2, 4)), 1)  # the mean of equal rows is exact
    return lambda: ak.bipartite_soft_matching_from_keys(heads, r, num_protected=protected), []


def _merge(draw: Draw) -> Any:
    batch, tokens, channels, r, protected = draw.counts()
    x = draw.values(batch, tokens, channels, dtype=draw.choose(DTYPES))
    plan, size = draw.plan(batch, tokens, r, protected), draw.size(batch, tokens)
    return lambda x: ak.weighted_merge(x, plan, size), [x]


def _unmerge(draw: Draw) -> Any:
    batch, tokens, channels, r, protected = draw.counts()
    x = draw.values(batch, tokens - r if r <= tokens else 1, channels, dtype=draw.choose(DTYPES))
    plan = draw.plan(batch, tokens, r, protected)
    return lambda x: ak.unmerge(x, plan), [x]


def _merge_norm(draw: Draw) -> Any:
    batch, tokens, channels, r, protected = draw.counts()
    dtype = draw.choose(DTYPES)
    x, y = (draw.values(batch, tokens, channels, dtype=dtype) for _ in range(2))
    weights = [draw.values(channels, dtype=dtype) for _ in range(draw.choose((0, 2)))]
    plan, size = draw.plan(batch, tokens, r, protected), draw.size(batch, tokens)
    return lambda x, y, *w: ak.merge_layer_norm(x, y, plan, size, *(w or (None, None))), [x, y, *weights]


def _attend(draw: Draw) -> Any:
    batch, tokens, channels, _, _ = draw.counts()
    dtype, heads = draw.choose(DTYPES), draw.integer(1, 3)
    queries = tokens if draw.chance(70) else draw.integer(1, 40)
    q = draw.values(batch, heads, queries, channels, dtype=dtype)
    k, v = (draw.values(batch, heads, tokens, channels, dtype=dtype) for _ in range(2))
    size = draw.size(batch, tokens)
    return lambda q, k, v: ak.proportional_attention(q, k, v, size), [q, k, v]


def _assign(draw: Draw) -> Any:
    batch, tokens, channels, _, _ = draw.counts()
    dtype, hard = draw.choose(DTYPES), draw.chance(50)
    x, entities = draw.rows(batch, tokens, channels, dtype), draw.rows(1, draw.integer(1, 50), channels, dtype)[0]
    tau = 1.0 if draw.valid else draw.choose((1e-4, 0.07, 1.0, 1e4, 0.0, torch.nan))
    noise: Any = None if draw.valid or draw.chance(30) else "gumbel"
    seed = torch.tensor(draw.choose((0, -(2**63), 2**63 - 1)))
    options = {"tau": tau, "hard": hard, "noise": noise, **({} if noise is None else {"seed": seed})}
    return lambda x, s: ak.cosine_gumbel_assign(x, s, **options), [x, entities]


OPERATIONS = {
    "attention": _attend,
    "assignment": _assign,
    "matching": _match,
    "matching from keys": _match_keys,
    "merge": _merge,
    "merge + norm": _merge_norm,
    "unmerge": _unmerge,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.calls", description=__doc__)
    parser.add_argument("--calls", type=int, default=40_000, help="over all levels (40000)")
    parser.add_argument("--seed", type=int, default=0, help="of the calls (0)")
    parser.add_argument("--level", choices=LEVELS, action="append", help="x86 level; repeatable (all that run here)")
    parser.add_argument("--plain", action="store_true", help="without sanitizers")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save is not None:
        torch.save([tuple(call(number, options.seed, valid=True)) for number in range(options.calls)], options.save)
        return
    if options.child is not None:
        _run(range(*options.child), options.seed)
        return
    if find_compiler() is None:
        sys.exit("python -m tests.fuzz.calls needs GCC on x86")
    levels = options.level or [level for level in LEVELS if runnable(level)]
    bad: list[str] = []
    each = -(-options.calls // len(levels))
    for i, level in enumerate(levels):
        environment = build(level, sanitize=not options.plain)
        ran, refused, failures = run_children(range(i * each, (i + 1) * each), options.seed, environment)
        print(f"{level:10s} {ran + refused:6d} calls, {refused} refused, {len(failures)} failures", flush=True)
        bad += [f"{level}: {line}" for line in failures]
    print("\n".join(bad[:20]))
    sys.exit(1 if bad else 0)


def run_children(numbers: range, seed: int, environment: dict[str, str]) -> tuple[int, int, list[str]]:
    """Returns how many calls ran, how many were refused, and a line for each that killed its process."""
    ran = refused = 0
    failures: list[str] = []
    start = numbers.start
    while start < numbers.stop:
        command = [sys.executable, "-m", "tests.fuzz.calls", "--seed", str(seed), "--child", str(start)]
        child = subprocess.run(
            [*command, str(numbers.stop)], capture_output=True, text=True, env={**os.environ, **environment}
        )
        lines = [line.split() for line in child.stdout.splitlines() if line.startswith("call ")]
        ran += sum(line[-1] == "ran" for line in lines)
        refused += sum(line[-1] == "refused" for line in lines)
        start += len(lines)
        if start < numbers.stop:
            errors = child.stderr.splitlines()
            why = next((line for line in errors if "ERROR: " in line or "runtime error" in line), "".join(errors[-1:]))
            failures.append(f"call {start} ended its process ({child.returncode}): {why.strip()}")
            start += 1
            if not lines and len(failures) > 5:
                break
    return ran, refused, failures


def _run(numbers: range, seed: int) -> None:
    assert ak.backends()["cpp"].available, ak.backends()["cpp"].reason
    for number in numbers:
        refused = call(number, seed).results is None
        print(f"call {number} {'refused' if refused else 'ran'}", flush=True)


if __name__ == "__main__":
    main()
