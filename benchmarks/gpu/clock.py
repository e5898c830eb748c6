"""Times of calls on a GPU without the host's share, and with it.

On a GPU a call is timed inside a CUDA graph (`graphs.py`): a graph of calls that go through several sets of inputs in
turn, so that a set is out of the L2 cache when its turn comes again, is replayed between two events. What cannot be
captured is timed between events as it is launched. In both ways the GPU is first given something to wait for, so that
all of it is in the queue when it begins: the host's time to launch is not in the measured time. The rounds are those
of `alt.measure.timing`. Without a GPU the same code times calls with the host's clock.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from alt.measure import interleave as rounds_of
from alt.measure import median_ratio, time_call

from . import graphs

Call = Callable[[], object]
GRAPH_SECONDS = 3e-3  # of the GPU's time in one replay: a thousand times what events and a graph's start take
MOST_CALLS = 2048  # in one graph
LAUNCHED_CALLS = 64  # at a time where there is no graph: the queue of a GPU holds about a thousand launches
ROUNDS = 21
CLOCK_CYCLES = 2e6  # of a wait that shows the clock
CYCLES = 2e9  # a second at most: of a GPU's clock
LONGEST_WAIT = 0.05
#: Seconds of a call that is captured. A longer one gains nothing by it, and a graph keeps all that its calls allocate:
#: the eager assignment to 100,000 entities would keep more than an H100 has.
LONGEST_CAPTURED = 2e-3
#: Integer operations of 32 bits that a multiprocessor does in a cycle, and of them what one Gumbel number takes:
#: Philox4x32-10 with all four words used.
INTEGER_LANES, DRAW = 64, 24


class Timed(NamedTuple):
    """Seconds of one call in every round, and how they were taken: "graph", "events" or "host"."""

    seconds: list[float]
    how: str
    why: str = ""  # not captured, where it was tried

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Ready(NamedTuple):
    """A function that makes ``count`` calls, how it is timed, and for how long the GPU waits before it."""

    run: Call
    count: int
    how: str
    wait: float = 0.0
    why: str = ""


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(run: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, until its results are there."""
    return time_call(run, device).seconds


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


def passes(calls: Sequence[Call], repeat: int) -> Call:
    """``repeat`` times all calls in turn. The results of a pass all stay until the next one begins.

    Otherwise each would be written where the one before it lay, and stay in the cache.
    """

    def loop() -> None:
        for _ in range(repeat):
            kept = [call() for call in calls]
            del kept

    return loop


def ready(calls: Sequence[Call], device: torch.device, longest: float = LONGEST_CAPTURED) -> Ready:
    """Returns what one round of these calls runs, compiled and warmed up.

    Args:
        longest: seconds; a call that takes longer is not captured.
    """
    one = passes(calls, 1)
    one()  # compile, and let allocators and handles settle
    if device.type != "cuda":
        seconds = max(once(one, device), 1e-7)
        repeat = min(max(1, int(GRAPH_SECONDS / seconds)), 64)
        return Ready(passes(calls, repeat), repeat * len(calls), "host")
    one()
    synchronize(device)
    seconds = statistics.median(_seconds(one, device, _host(one, device)) for _ in range(3))
    why = ""
    if seconds <= longest * len(calls):
        try:
            release(device)  # a capture cannot use memory that the allocator's cache holds
            run = graphs.capture(one, device)
            count = len(calls)
            run()
            inside = statistics.median(_seconds(run, device, _host(run, device)) for _ in range(3))
            repeat = min(round(GRAPH_SECONDS / inside), MOST_CALLS // count)
            if repeat > 1:
                del run
                release(device)
                run, count = graphs.capture(passes(calls, repeat), device), repeat * count
                run()
            return Ready(run, count, "graph", _host(run, device))
        except Exception as error:  # that it cannot be captured is an answer
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
    repeat = max(1, min(round(GRAPH_SECONDS / seconds), LAUNCHED_CALLS // len(calls)))
    run = passes(calls, repeat)
    return Ready(run, repeat * len(calls), "events", _host(run, device), why)


def _host(run: Call, device: torch.device) -> float:
    """Returns the seconds that the GPU must wait for ``run`` to be in its queue before it begins."""
    return min(1.5 * host_seconds(run, device, 2) + 1e-4, LONGEST_WAIT)


def _seconds(run: Call, device: torch.device, wait: float = 0.0) -> float:
    if device.type != "cuda":
        return once(run, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(wait * CYCLES))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    entrants: Mapping[str, Sequence[Call]],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    seconds: float = 20.0,
    launched: frozenset[str] = frozenset(),
    longest: float = LONGEST_CAPTURED,
    failed: dict[str, Exception] | None = None,
) -> dict[str, Timed]:
    """Time every entrant, each given as calls on one set of inputs after the other.

    Args:
        rounds: at most so many; at least five, however long they take. One more goes before them, untimed: clocks rise.
        seconds: about what the rounds may take together.
        launched: entrants that are not to be captured, others' code of which nothing is known.
        longest: seconds of a call above which it is not captured.
        failed: receives what an entrant raised. It is out of the contest and of the result then, and the others go
            on. Without it the first exception is raised.
    """
    prepared: dict[str, Ready] = {}
    for name, calls in entrants.items():
        try:
            prepared[name] = ready(calls, device, 0.0 if name in launched else longest)
        except Exception as error:
            if failed is None:
                raise
            failed[name] = error
            release(device)

    def take(entrant: Ready) -> float:
        try:
            return _seconds(entrant.run, device, entrant.wait) / entrant.count
        except Exception:
            release(device)
            raise

    found = rounds_of(
        {name: partial(take, entrant) for name, entrant in prepared.items()},
        rounds=rounds,
        seconds=seconds,
        failed=failed,
    )
    return {name: Timed(seconds, prepared[name].how, prepared[name].why) for name, seconds in found.items()}


def interleave_launched(
    entrants: Mapping[str, Sequence[Call]], device: torch.device, *, rounds: int, failed: dict[str, Exception]
) -> dict[str, Timed]:
    """Time every entrant as it is launched, the host's share included; its calls take turns from round to round."""

    def take(turns: Iterator[Call]) -> float:
        try:
            return once(next(turns), device)
        except Exception:
            release(device)
            raise

    turns = {name: partial(take, itertools.cycle(calls)) for name, calls in entrants.items()}
    found = rounds_of(turns, rounds=rounds, failed=failed)
    return {name: Timed(seconds, "host") for name, seconds in found.items()}


def ratio(slow: Timed, fast: Timed) -> float:
    """Median over rounds of slow / fast."""
    return median_ratio(slow.seconds, fast.seconds)


def spread(timed: Timed) -> tuple[float, float]:
    """Quartiles over rounds."""
    low, _, high = statistics.quantiles(timed.seconds, n=4)
    return low, high


def ceilings(device: torch.device, dry: bool) -> dict[str, float]:
    """Returns this machine's best rates per second: bytes of a large copy, read and written; bfloat16 FLOP; draws.

    The copy is the driver's or a kernel's, whichever is faster, and never a graph's: replayed, the driver's copy had
    2.4 TB/s on an H100 that copies 3.0 TB/s as launched, and kernels of ours were faster than their floors. A draw is
    one Gumbel number. The rate follows from the clock, which a kernel measures that waits a known number of cycles.
    """
    size, side = (2**20, 64) if dry else (2**31, 8192)
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    dtype = torch.float32 if dry else torch.bfloat16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    calls: dict[str, list[Call]] = {
        "copy": [lambda: target.copy_(source)],
        "negate": [lambda: torch.neg(source, out=target)],
        "matmul": [lambda: a @ b],
    }
    if device.type == "cuda":
        calls["wait"] = [lambda: torch.cuda._sleep(int(CLOCK_CYCLES))]
    else:
        calls["draws"] = [lambda: target.exponential_()]
    timed = interleave(calls, device, seconds=3, launched=frozenset({"copy", "negate"}))
    copy = min(timed["copy"].median, timed["negate"].median)
    found = {"bytes_per_s": 2 * size / copy, "flop_per_s": 2 * side**3 / timed["matmul"].median}
    if device.type != "cuda":
        return found | {"draws_per_s": target.numel() / timed["draws"].median}
    clock = CLOCK_CYCLES / timed["wait"].median
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return found | {"clock_hz": clock, "draws_per_s": count * INTEGER_LANES * clock / DRAW}


def cache_bytes(device: torch.device) -> int:
    """Returns the size of the last cache before the memory; 0 without a GPU."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def release(device: torch.device) -> None:
    """Return cached memory to the device, so that a case or a capture does not run out of what another held."""
    if device.type == "cuda":
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after an illegal access every call fails: the next case says so
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
