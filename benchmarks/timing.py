"""Interleaved timing: who is faster, by how much, and how sure.

A machine that clocks down, or a neighbour that wakes up, changes every time by tens of percent over a minute and
hardly at all between two calls in a row. So every entrant runs once per round, in an order drawn anew for each round,
and only ratios within a round are compared: the ratio reported is the median over rounds, with the distribution-free
interval of a median (binomial order statistics, `scipy.stats.quantile_test`), which assumes neither a shape of the
noise nor its absence.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import quantile_test

CONFIDENCE = 0.95
#: Fewer values than this and no interval of the median reaches the confidence (1 - 2 * 0.5^6 = 97 %).
MIN_ROUNDS = 6


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


class Interval(NamedTuple):
    """A median with its interval, over so many rounds."""

    median: float
    low: float
    high: float
    rounds: int


class Times(NamedTuple):
    """Seconds of every entrant in every round: wall clock, which is what is claimed, and the process's CPU time.

    On one thread the second leaves out what other processes took. It serves to judge a busy machine: where the two
    disagree, the wall-clock ratio is not to be trusted. And pages mapped anew during the call, which is what memory
    costs that was handed back to the system and asked for again.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    faults: dict[str, list[int]]


def median_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Median and its 95 % interval by order statistics (coverage at least 95 % for any continuous law)."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size < MIN_ROUNDS or not np.isfinite(data).all():
        raise ValueError(
            f"values: expected at least {MIN_ROUNDS} finite numbers, got {data.size} of shape {data.shape}"
        )
    interval = quantile_test(data, q=float(np.median(data)), p=0.5).confidence_interval(CONFIDENCE)
    return Interval(float(np.median(data)), float(interval.low), float(interval.high), int(data.size))


def paired_ratio(slow: Sequence[float] | np.ndarray, fast: Sequence[float] | np.ndarray) -> Interval:
    """Median over rounds of slow / fast, the two times of one round."""
    return median_interval(np.asarray(slow, dtype=np.float64) / np.asarray(fast, dtype=np.float64))


def saving_realised(base: Sequence[float], ours: Sequence[float], cost_ratio: float) -> Interval:
    """Share of the saving in operations that arrives in time: (1 - t/t_0) / (1 - F/F_0), median over rounds."""
    if not 0 < cost_ratio < 1:
        raise ValueError(f"cost_ratio: expected F/F_0 between 0 and 1, got {cost_ratio}")
    times = np.asarray(ours, dtype=np.float64) / np.asarray(base, dtype=np.float64)
    return median_interval((1 - times) / (1 - cost_ratio))


def interleave(
    entrants: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    budget: float,
    rounds: int | None = None,
    min_rounds: int = 15,
    max_rounds: int = 400,
    seed: int = 0,
) -> Times:
    """Time every entrant once in every round.

    Args:
        entrants: what to call, by name.
        device: synchronised around every call when it is a GPU, so that times are end to end.
        budget: seconds to spend; it sets the number of rounds between ``min_rounds`` and ``max_rounds``.
        rounds: a fixed number of rounds instead.
        seed: of the orders within the rounds.
    """
    names = list(entrants)
    clock = _synchronised_clock(device)
    started = clock()
    for run in entrants.values():  # the second call of each; the first was the correctness gate
        run()
    if rounds is None:
        rounds = int(np.clip(budget / max(clock() - started, 1e-9), min_rounds, max_rounds))
    times = Times({n: [] for n in names}, {n: [] for n in names}, {n: [] for n in names})
    order = np.random.default_rng(seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for position in order.permutation(len(names)):
                name = names[position]
                mapped = _page_faults()
                begin, begin_cpu = clock(), time.process_time()
                result = entrants[name]()
                times.wall[name].append(clock() - begin)
                times.cpu[name].append(time.process_time() - begin_cpu)
                times.faults[name].append(_page_faults() - mapped)
                del result  # freed outside the timed span for everyone, but before the next entrant runs
    finally:
        if collecting:
            gc.enable()
    return times


def keep_freed_memory() -> str:
    """Tell glibc's malloc not to hand freed memory back, and say in words what the allocator does now.

    By default large buffers go back to the system and are mapped again by the next call, or not, depending on what the
    process did before: the same call then takes 2 ms or 8. A function that allocates more is hit more, so that ratios
    depend on history. Kept memory makes them repeatable, and like those on a GPU, whose allocator always keeps it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return "as the system does"
    kept = mallopt(M_TRIM_THRESHOLD, -1) == 1 and mallopt(M_MMAP_MAX, 0) == 1
    return "freed memory is kept" if kept else "as the system does"


def kernel_seconds(run: Callable[[], object]) -> float:
    """Median time on the GPU alone, without the host's share (Triton's `do_bench`)."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median")) / 1e3


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _synchronised_clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock
