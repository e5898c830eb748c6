"""Launches as a GPU would get them, without one; run as a script, in a process without the interpreter.

Triton's own launcher binds the arguments, specialises them and asks a driver that only knows its target. What would be
compiled is recorded by its key, so that "no recompilation as N shrinks" is a count; with "compile" it is compiled.
With "fake" the tensors are fakes on a GPU: an allocation on the CPU among them, or a value read on the host, raises.
Prints one line of JSON. Results of the kernels are zeros here: nothing runs.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from tests.ptx.launch import GRIDS
from tools.aot_driver import Driver

ON = "cuda" if sys.argv[1:] == ["fake"] else "cpu"  # where the tensors are


Keys = dict[str, set[str]]


def record(compiling: bool) -> tuple[Keys, list[str]]:
    """From now on launches stop before they start; the keys by kernel, and what is wrong with a launch."""
    keys: Keys = {}
    wrong: list[str] = []
    original, compile_ = JITFunction.run, JITFunction._do_compile

    def do_compile(self: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        keys.setdefault(self.fn.__name__, set()).add(str(key))
        return compile_(self, key, *args, **kwargs) if compiling else object()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        sizes = tuple(grid)
        if not all(isinstance(n, int) and 0 < n <= most for n, most in zip(sizes, GRIDS, strict=False)):
            wrong.append(f"{self.fn.__name__}: grid {sizes}")
        if compiling and kernel.metadata.shared > 227 * 1024:
            wrong.append(f"{self.fn.__name__}: {kernel.metadata.shared} bytes of shared memory")
        return kernel

    JITFunction.run, JITFunction._do_compile = run, do_compile  # type: ignore[method-assign]
    return keys, wrong


def op(name: str) -> Callable[..., Any]:
    """The launcher that CUDA tensors of a registered op reach."""
    from alt_kernels.library import OPS

    return getattr(importlib.import_module(f"alt_kernels.triton.{OPS[name].triton}"), name)


def layer(tokens: int, r: int, dtype: torch.dtype, *, batch: int = 2, heads: int = 12, depth: int = 64) -> None:
    """One block's launches, forward and backward, with a plan of zeros, which is enough for shapes."""
    options: dict[str, Any] = {"dtype": dtype, "device": ON}
    packed = torch.zeros(batch, tokens, 3, heads, depth, **options)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    size = torch.ones(batch, tokens, device=ON)
    x, y = (torch.zeros(batch, tokens, heads * depth, **options) for _ in range(2))
    weight, bias = (torch.ones(heads * depth, device=ON) for _ in range(2))
    out, normalizer = op("proportional_attention")(q, k, v, size, depth**-0.5)
    op("proportional_attention_backward")(out, q, k, v, size, out, normalizer, depth**-0.5)
    plan = op("bipartite_matching_from_keys")(k, r, 1)
    op("bipartite_matching")(k[:, 0], r, 1)
    merged, normed, merged_size, mean, rstd = op("merge_layer_norm")(x, y, size, *plan, weight, bias, 1e-5)
    parameters = (merged, mean, rstd, weight, True, size, merged_size, *plan)
    op("merge_layer_norm_backward")(merged, normed, *parameters)
    merged, merged_size = op("weighted_merge")(x, size, *plan)
    op("weighted_merge_backward")(merged, size, merged_size, *plan)
    back = op("unmerge")(merged, *plan)
    op("unmerge_backward")(back, *plan)


def assignment(rows: int, count: int, dtype: torch.dtype, seed: int, depth: int = 512) -> None:
    x, entities = (torch.zeros(n, depth, dtype=dtype, device=ON) for n in (rows, count))
    tau, drawn = torch.full((), 0.5, device=ON), torch.full((), seed, dtype=torch.int64, device=ON)
    for hard in (True, False):
        output, index, normalizer = op("gumbel_assignment")(x, entities, tau, None, drawn, hard)
        saved = (x, entities, tau, None, drawn, index, normalizer, hard)
        op("gumbel_assignment_backward")(output, *saved, hard)


def zeros() -> None:
    """Uninitialised results would be indices that point anywhere."""
    empty, empty_like = torch.empty, torch.empty_like
    torch.empty = lambda *a, **k: empty(*a, **k).zero_()
    torch.empty_like = lambda *a, **k: empty_like(*a, **k).zero_()
    for name in ("new_empty", "new_empty_strided"):
        new = getattr(Tensor, name)
        setattr(Tensor, name, lambda self, *a, new=new, **k: new(self, *a, **k).zero_())


def fake() -> list[str]:
    """Every launcher on fakes of a GPU: what goes into a kernel is there, and nothing on the host needs a value."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    launched: list[str] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        places = {str(a.device) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
        if places != {"cuda:0"}:
            raise RuntimeError(f"{self.fn.__name__}: tensors on {places}")
        launched.append(self.fn.__name__)

    JITFunction.run = run  # type: ignore[method-assign]
    with FakeTensorMode():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for tokens in (600, 197, 101, 9):
                layer(tokens, 3, dtype)
            assignment(70, 913, dtype, 1)
            layer(7, 0, dtype)
            layer(7, 0, dtype, batch=0)
    return launched


def main(what: str) -> None:
    import alt_kernels  # noqa: F401

    if what == "fake":
        print(json.dumps(sorted(set(fake()))))
        return
    triton.runtime.driver.set_active(Driver(90))
    zeros()
    keys, wrong = record(compiling=what == "compile")
    dtype = torch.bfloat16
    counts: dict[str, Any] = {}
    if what == "compile":
        for tokens in (197, 101):
            layer(tokens, 8, dtype)
        assignment(256, 913, dtype, 1)
    else:
        schedule = [197 - 8 * i for i in range(12)]
        for tokens in schedule:
            layer(tokens, 8, dtype)
        assignment(2 * 101, 913, dtype, 1)
        counts["first"] = {name: len(found) for name, found in keys.items()}
        for tokens in (196, 190, 150, 143, 111, 70):  # other N of the same buckets, another r
            layer(tokens, 13 if tokens > 80 else 3, dtype)
        for seed in (2, 16, 2**40):
            assignment(2 * 101, 913, dtype, seed)
        for rows in (199, 549):  # scratch of a row is then no multiple of 16 bytes
            assignment(rows, 913, dtype, 1)
        counts["again"] = {name: len(found) for name, found in keys.items()}
    counts["keys"] = {name: len(found) for name, found in keys.items()}
    print(json.dumps(counts | {"wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
