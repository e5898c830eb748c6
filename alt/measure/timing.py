"""Interleaved timing: which call is faster, by how much, and how sure.

A machine that clocks down, or a neighbour that wakes up, changes every time by tens of percent over a minute and
hardly at all between two calls in a row. So every entrant runs once per round, in an order drawn anew for each round,
and only ratios within a round are compared: the ratio reported is the median over rounds, with the distribution-free
interval of a median (order statistics), which assumes neither a shape of the noise nor its absence.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch

__all__ = [
    "Interval",
    "Sample",
    "interleave",
    "median_interval",
    "median_ratio",
    "paired_ratio",
    "saving_realised",
    "time_call",
]

UNLIKELY = 20  # one time in so many an interval misses the median
#: With fewer values no interval of the median reaches the confidence (1 - 2 * 0.5^6 = 97 %).
MIN_ROUNDS = 6

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class Interval(NamedTuple):
    """A median with its interval, and the number of rounds."""

    median: float
    low: float
    high: float
    rounds: int


class Sample(NamedTuple):
    """Cost of one call.

    seconds: wall clock, until the results are there. This is what is claimed.
    cpu_seconds: CPU time of the process. On one thread it leaves out what other processes took: where a ratio of it
        disagrees with the one in wall-clock time, the machine was busy.
    page_faults: pages mapped anew, which is what memory costs that was given back to the system and asked for again.
    """

    seconds: float
    cpu_seconds: float
    page_faults: int


def time_call(run: Callable[[], object], device: torch.device | str = "cpu") -> Sample:
    """Returns what one call of ``run`` takes. A GPU is synchronised before and after it: the time is end to end."""
    device = torch.device(device)
    _synchronize(device)
    faults, begin, begin_cpu = _page_faults(), time.perf_counter(), time.process_time()
    result = run()
    _synchronize(device)
    sample = Sample(time.perf_counter() - begin, time.process_time() - begin_cpu, _page_faults() - faults)
    del result  # freed outside the timed span for every entrant
    return sample


def interleave(
    entrants: Mapping[Key, Callable[[], Found]],
    *,
    rounds: int,
    seconds: float = math.inf,
    min_rounds: int = 5,
    warm_up: int = 1,
    seed: int = 0,
    failed: dict[Key, Exception] | None = None,
) -> dict[Key, list[Found]]:
    """Calls every entrant once per round and returns what each returned, round by round.

    An entrant measures itself, by :func:`time_call` or by a clock of its own. The garbage collector runs between
    rounds only.

    Args:
        entrants: what to call, by name.
        rounds: the most rounds.
        seconds: budget; once it is spent no further round begins, after ``min_rounds``.
        min_rounds: rounds that are run whatever they take.
        warm_up: rounds before them whose results are dropped.
        seed: of the orders within the rounds: the same orders in every run.
        failed: receives what an entrant raised. That entrant leaves the contest and the result, and the others go on.
            Without it the exception is raised.

    Returns:
        Lists of equal length, in the order of ``entrants``.
    """
    found: dict[Key, list[Found]] = {name: [] for name in entrants}
    order, begin = np.random.default_rng(seed), time.perf_counter()
    with _collecting_between_rounds():
        for turn in range(-warm_up, rounds):
            if turn >= min_rounds and time.perf_counter() - begin > seconds:
                break
            names = list(found)
            for position in order.permutation(len(names)):
                name = names[position]
                try:
                    result = entrants[name]()
                except Exception as error:
                    if failed is None:
                        raise
                    failed[name] = error
                    del found[name]
                    continue
                if turn >= 0:
                    found[name].append(result)
            gc.collect()
    return found


def median_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Returns the median and its 95 % interval by order statistics.

    The k-th smallest and the k-th largest of n values enclose the median of any continuous law with probability
    1 - 2 P(Binomial(n, 1/2) < k). k is the largest for which that is at least 95 %.

    Raises:
        ValueError: fewer than 6 values, or one that is not finite.
    """
    data = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if data.size < MIN_ROUNDS or not np.isfinite(data).all():
        raise ValueError(f"values: expected at least {MIN_ROUNDS} finite numbers, got {data.size}: {data[:8]}")
    count, below, rank = int(data.size), 1, 1  # below: 2^n P(Binomial < rank)
    while UNLIKELY * 2 * (below + math.comb(count, rank)) <= 2**count:
        below += math.comb(count, rank)
        rank += 1
    return Interval(float(np.median(data)), float(data[rank - 1]), float(data[-rank]), count)


def paired_ratio(slow: Sequence[float] | np.ndarray, fast: Sequence[float] | np.ndarray) -> Interval:
    """Returns the median over rounds of slow / fast, the two times of one round, with its interval."""
    return median_interval(np.asarray(slow, dtype=np.float64) / np.asarray(fast, dtype=np.float64))


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Returns the median over rounds of slow / fast, where there may be too few rounds for an interval.

    Raises:
        ValueError: the two have different numbers of rounds, or none.
    """
    if len(slow) != len(fast) or not slow:
        raise ValueError(f"slow, fast: expected times of the same rounds, got {len(slow)} and {len(fast)}")
    return float(np.median(np.asarray(slow, dtype=np.float64) / np.asarray(fast, dtype=np.float64)))


def saving_realised(base: Sequence[float], ours: Sequence[float], cost_ratio: float) -> Interval:
    """Returns the share of the saving in operations that arrives in time: (1 - t/t_0) / (1 - F/F_0), over rounds.

    Args:
        base, ours: times t_0 and t of the same rounds.
        cost_ratio: F/F_0.
    """
    if not 0 < cost_ratio < 1:
        raise ValueError(f"cost_ratio: expected F/F_0 between 0 and 1, got {cost_ratio}")
    times = np.asarray(ours, dtype=np.float64) / np.asarray(base, dtype=np.float64)
    return median_interval((1 - times) / (1 - cost_ratio))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextmanager
def _collecting_between_rounds() -> Iterator[None]:
    """Switches automatic collection off, and hides what is already there from the explicit ones: they stay short."""
    automatic, freeze = gc.isenabled(), gc.get_freeze_count() == 0
    gc.disable()
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()
        if automatic:
            gc.enable()
