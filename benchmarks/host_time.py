"""`python benchmarks/host_time.py`: what a call of every op costs the host, without a GPU. Prints one line of JSON.

Launches go through all of Triton's host code and start nothing (``tools/silent_driver.py``). Shapes are those of a
layer of ViT-B/16 with two images, so that nothing but the host takes time. Per op and mode: the CPU seconds of a call
in interleaved rounds, beside ``torch.add`` of two small tensors and torch's own ops in the same rounds, and the exact
number of Python functions that a call enters.
"""

from __future__ import annotations

import os

# Before the first import of triton and alt_kernels: kernels are not interpreted, CPU tensors not taken by C++.
os.environ.pop("TRITON_INTERPRET", None)
os.environ["ALT_KERNELS_DISABLE_CPP"] = "1"

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

import alt_kernels
from alt.measure import interleave
from tools import silent_driver

SECONDS = 1e-3  # of an op in a round, as many calls as that takes: every op runs from warm caches, the unit too
BASE = "torch.add"
EMPTY = "an op that does nothing"
MODES = ("no gradient", "forward under grad", "forward and backward")

Entrant = Callable[[], object]


@functools.cache
def make_empty_op() -> tuple[Callable[..., Tensor], torch.library.Library]:
    """Returns an op in Python with a derivative, both of which compute nothing, and the library that keeps it."""
    library = torch.library.Library("host_time", "FRAGMENT")
    library.define("nothing(Tensor x) -> Tensor")
    library.define("nothing_backward(Tensor grad) -> Tensor")
    for name in ("nothing", "nothing_backward"):
        library.impl(name, torch.empty_like, "CPU")
    ops = torch.ops.host_time
    torch.library.register_autograd("host_time::nothing", lambda ctx, grad: ops.nothing_backward(grad), lib=library)
    return ops.nothing, library


def entrants(mode: str) -> dict[str, Entrant]:
    """Returns the calls of a mode by name: ours, torch's beside them, and the one that is the unit."""
    grad = mode != MODES[0]
    batch, tokens, heads, depth, r = 2, 197, 12, 64, 8
    generator = torch.Generator().manual_seed(0)

    def half(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.bfloat16)

    q, k, v = (t.requires_grad_(grad) for t in half(batch, tokens, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0))
    x, y, merged = (half(batch, n, heads * depth).requires_grad_(grad) for n in (tokens, tokens, tokens - r))
    weight, bias = (t.requires_grad_(grad) for t in (torch.ones(heads * depth), torch.zeros(heads * depth)))
    size = torch.ones(batch, tokens)
    metric = k.detach().mean(1)
    token = torch.arange(tokens, dtype=torch.int32).expand(batch, -1).contiguous()
    starts = torch.arange(tokens - r + 1, dtype=torch.int32).expand(batch, -1).contiguous()
    plan = alt_kernels.Matching(token, starts, token)
    rows, entities = half(202, 512).requires_grad_(grad), half(913, 512)
    tau, seed = torch.tensor(0.5), torch.tensor(1)
    small, empty = torch.ones(8, requires_grad=grad), make_empty_op()[0]
    one = torch.ones(1, 1, 8, 8, dtype=torch.bfloat16, requires_grad=grad)
    # Soft: the hard output is gathered by indices, which no kernel has written here.
    assign = functools.partial(alt_kernels.cosine_gumbel_assign, entities=entities, tau=tau, seed=seed, hard=False)
    calls: dict[str, tuple[Callable[[], Tensor | tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
        BASE: (lambda: torch.add(small, small), (small,)),
        "torch.nn.functional.layer_norm": (lambda: F.layer_norm(small, (8,), small, small), (small,)),
        "torch.nn.functional.scaled_dot_product_attention": (
            lambda: F.scaled_dot_product_attention(one, one, one),
            (one,),
        ),
        EMPTY: (lambda: empty(small), (small,)),
        "weighted_merge": (lambda: alt_kernels.weighted_merge(x, plan, size), (x,)),
        "unmerge": (lambda: alt_kernels.unmerge(merged, plan), (merged,)),
        "merge_layer_norm": (
            lambda: alt_kernels.merge_layer_norm(x, y, plan, size, weight, bias),
            (x, y, weight, bias),
        ),
        "proportional_attention": (lambda: alt_kernels.proportional_attention(q, k, v, size), (q, k, v)),
        "cosine_gumbel_assign": (lambda: assign(rows), (rows,)),
    }
    if not grad:
        calls["bipartite_soft_matching"] = (lambda: alt_kernels.bipartite_soft_matching(metric, r), ())
        calls["bipartite_soft_matching_from_keys"] = (lambda: alt_kernels.bipartite_soft_matching_from_keys(k, r), ())
    if mode == MODES[2]:
        return {name: derivative(run, inputs) for name, (run, inputs) in calls.items()}
    return {name: run for name, (run, _) in calls.items()}


def derivative(run: Callable[[], Tensor | tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> Entrant:
    """Returns a call of ``run`` and of its derivative to ``inputs``, through all outputs that have one."""
    result = run()
    results = (result,) if isinstance(result, Tensor) else result
    places = [i for i, output in enumerate(results) if output.requires_grad]
    grads = [torch.ones_like(results[i]) for i in places]

    def both() -> object:
        found = run()
        outputs = (found,) if isinstance(found, Tensor) else found
        return torch.autograd.grad([outputs[i] for i in places], inputs, grads)

    return both


def count_python_calls(run: Entrant) -> int:
    """Returns how many Python functions one call of ``run`` enters on this thread, itself not counted."""
    found = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found - 1


def time_calls(run: Entrant, count: int) -> float:
    """Returns the seconds of CPU time per call, over ``count`` of them: what other processes take is not in it."""
    run()
    begin = time.thread_time()
    for _ in range(count):
        run()
    return (time.thread_time() - begin) / count


def measure(mode: str, rounds: int) -> dict[str, dict[str, object]]:
    """Returns the Python calls and the seconds of every round by op."""
    context: AbstractContextManager[object] = torch.inference_mode() if mode == MODES[0] else nullcontext()
    with context:
        runs = entrants(mode)
        for run in runs.values():
            for _ in range(3):  # the first call compiles, the second may still fill a cache
                run()
        calls = {name: count_python_calls(run) for name, run in runs.items()}
        counts = {name: max(1, round(SECONDS / time_calls(run, 20))) for name, run in runs.items()}
        timed = {name: functools.partial(time_calls, run, counts[name]) for name, run in runs.items()}
        seconds = interleave(timed, rounds=rounds)
    return {name: {"calls": calls[name], "seconds": seconds[name]} for name in runs}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--mode", action="append", choices=MODES, help="more than once; default: all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    silent_driver.install()
    print(json.dumps({mode: measure(mode, options.rounds) for mode in options.mode or MODES}))


if __name__ == "__main__":
    main()
