"""Times of calls on a GPU without the host's share, and with it.

On a GPU a call is timed inside a CUDA graph: a graph of calls that go through several sets of inputs in turn, so that
a set is out of the L2 cache when its turn comes again, is replayed between two events. What cannot be captured is
timed between events as it is launched. Entrants take turns in an order drawn anew for every round, and ratios are
taken within a round. Without a GPU the same code times calls with the host's clock.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], object]
GRAPH_SECONDS = 2e-3  # of one replay: long against an event's resolution
ROUNDS = 21


class Timed(NamedTuple):
    """Seconds of one call in every round, and how they were taken: "graph", "events" or "host"."""

    seconds: list[float]
    how: str

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(run: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, until its results are there."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def host_seconds(run: Call, device: torch.device, count: int = 30) -> float:
    """Median time until a call returns: what launching costs, whatever the GPU does."""
    found = []
    for _ in range(count):
        synchronize(device)
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    synchronize(device)
    return statistics.median(found)


def _captured(calls: Sequence[Call], device: torch.device) -> tuple[Call, int, str]:
    """A function that makes ``count`` calls, ``count``, and how."""
    for _ in range(2 if device.type == "cuda" else 1):  # compile, and let allocators and handles settle
        for call in calls:
            call()
    seconds = max(min(once(call, device) for call in calls), 1e-7)
    repeat = max(1, int(GRAPH_SECONDS / (seconds * len(calls))))
    repeat = min(repeat, 64)

    def loop() -> None:
        for _ in range(repeat):
            for call in calls:
                call()

    count = repeat * len(calls)
    if device.type != "cuda":
        return loop, count, "host"
    try:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # once on the stream of the capture: libraries set themselves up per stream
            for call in calls:
                call()
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            loop()
        graph.replay()
        torch.cuda.synchronize(device)
    except Exception:  # the capture's failure is an answer, and the next call would trip over its rest
        torch.cuda.synchronize(device)
        return loop, count, "events"
    return graph.replay, count, "graph"


def _seconds(run: Call, device: torch.device) -> float:
    if device.type != "cuda":
        return once(run, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    entrants: Mapping[str, Sequence[Call]], device: torch.device, *, rounds: int = ROUNDS, seconds: float = 20.0
) -> dict[str, Timed]:
    """Time every entrant, each given as calls on one set of inputs after the other.

    Args:
        rounds: at most so many; at least five, however long they take.
        seconds: about what the rounds may take together.
    """
    ready = {name: _captured(calls, device) for name, calls in entrants.items()}
    found: dict[str, list[float]] = {name: [] for name in ready}
    order, begin = random.Random(0), time.monotonic()  # the same orders in every run
    for number in range(rounds):
        if number >= 5 and time.monotonic() - begin > seconds:
            break
        for name in order.sample(sorted(ready), len(ready)):
            run, count, _ = ready[name]
            found[name].append(_seconds(run, device) / count)
    return {name: Timed(found[name], ready[name][2]) for name in ready}


def ratio(slow: Timed, fast: Timed) -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(s / f for s, f in zip(slow.seconds, fast.seconds, strict=True))


def spread(timed: Timed) -> tuple[float, float]:
    """Quartiles over rounds."""
    low, _, high = statistics.quantiles(timed.seconds, n=4)
    return low, high


def ceilings(device: torch.device, dry: bool) -> dict[str, float]:
    """What this machine does at best: bytes a second of a large copy, bfloat16 FLOP a second of a large product."""
    size, side = (2**20, 64) if dry else (2**31, 8192)
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    dtype = torch.float32 if dry else torch.bfloat16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    timed = interleave({"copy": [lambda: target.copy_(source)], "matmul": [lambda: a @ b]}, device, seconds=3)
    return {"bytes_per_s": 2 * size / timed["copy"].median, "flop_per_s": 2 * side**3 / timed["matmul"].median}


def released(result: Any = None) -> None:
    """Give cached memory back between cases, so that one does not run out of what another held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
