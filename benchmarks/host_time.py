"""`python benchmarks/host_time.py`: what a call of every op costs the host, without a GPU. Prints one line of JSON.

Launches go through Triton's host code and start nothing (``tools/silent_driver.py``). Shapes are those of a layer of
ViT-B/16 with two images, so that nothing but the host takes time. Per op: the seconds of a call in interleaved rounds,
beside ``torch.add`` of two small tensors in the same rounds, and the exact number of Python functions that a call
enters, torch's own included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import alt_kernels
from alt.measure import interleave
from tools import silent_driver

CALLS = 50  # per round and op: the clock's own cost is then lost
BASE = "torch.add"


def entrants() -> dict[str, Callable[[], object]]:
    """Returns calls of every public op, forward, at shapes of ViT-B/16, and torch's own beside them."""
    batch, tokens, heads, depth, r = 2, 197, 12, 64, 8
    generator = torch.Generator().manual_seed(0)
    half = partial(torch.randn, generator=generator, dtype=torch.bfloat16)
    q, k, v = half(batch, tokens, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
    x, y = half(batch, tokens, heads * depth), half(batch, tokens, heads * depth)
    weight, bias = torch.ones(heads * depth), torch.zeros(heads * depth)
    size = torch.ones(batch, tokens)
    metric = k.mean(1)
    token = torch.arange(tokens, dtype=torch.int32).expand(batch, -1).contiguous()
    row = torch.arange(tokens - r + 1, dtype=torch.int32).expand(batch, -1).contiguous()
    plan = alt_kernels.Matching(token, row, token)
    merged = half(batch, tokens - r, heads * depth)
    rows, entities = half(202, 512), half(913, 512)
    tau, seed = torch.tensor(0.5), torch.tensor(1)
    small = torch.ones(8)
    return {
        BASE: lambda: torch.add(small, small),
        "bipartite_soft_matching": lambda: alt_kernels.bipartite_soft_matching(metric, r),
        "bipartite_soft_matching_from_keys": lambda: alt_kernels.bipartite_soft_matching_from_keys(k, r),
        "weighted_merge": lambda: alt_kernels.weighted_merge(x, plan, size),
        "unmerge": lambda: alt_kernels.unmerge(merged, plan),
        "merge_layer_norm": lambda: alt_kernels.merge_layer_norm(x, y, plan, size, weight, bias),
        "proportional_attention": lambda: alt_kernels.proportional_attention(q, k, v, size),
        "cosine_gumbel_assign": lambda: alt_kernels.cosine_gumbel_assign(
            rows, entities, tau=tau, seed=seed, hard=False
        ),
        "torch.nn.functional.layer_norm": lambda: torch.nn.functional.layer_norm(small, (8,), small, small),
    }


def count_python_calls(run: Callable[[], object]) -> int:
    """Returns how many Python functions one call of ``run`` enters, itself not counted."""
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


def time_calls(run: Callable[[], object]) -> float:
    """Returns the seconds of CPU time per call, over CALLS of them: what other processes take is not in it."""
    begin = time.thread_time()
    for _ in range(CALLS):
        run()
    return (time.thread_time() - begin) / CALLS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    silent_driver.install()
    runs = entrants()
    with torch.inference_mode():
        for run in runs.values():
            for _ in range(3):  # the first call compiles, the second may still fill a cache
                run()
        calls = {name: count_python_calls(run) for name, run in runs.items()}
        seconds = interleave({name: partial(time_calls, run) for name, run in runs.items()}, rounds=options.rounds)
    print(json.dumps({"base": BASE, "calls": calls, "seconds": seconds}))


if __name__ == "__main__":
    main()
