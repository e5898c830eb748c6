"""Interleaved rounds, their ratios and intervals, on clocks of which the truth is known."""

from __future__ import annotations

import gc
import itertools
import time
import types

import numpy as np
import pytest
import torch

from alt.measure import (
    interleave,
    median_interval,
    median_ratio,
    paired_ratio,
    saving_realised,
    time_call,
    timing,
)

pytestmark = pytest.mark.usefixtures("few_objects")


def test_interval_is_the_one_of_order_statistics() -> None:
    # 17 values: the 5th and the 13th enclose the median with 1 - 2 P(Binomial(17, 1/2) <= 4) = 95.1 %.
    assert median_interval(np.random.default_rng(0).permutation(17) + 1.0) == (9, 5, 13, 17)
    assert median_interval(np.arange(6.0)) == (2.5, 0, 5, 6)
    assert median_interval(np.arange(2000.0)).rounds == 2000
    with pytest.raises(ValueError, match="at least 6 finite numbers, got 5"):
        median_interval([1.0] * 5)
    with pytest.raises(ValueError, match="at least 6 finite numbers"):
        median_interval([1.0] * 6 + [float("nan")])


@pytest.mark.parametrize("count", [6, 7, 8, 9, 15, 17, 21, 60, 400])
def test_interval_is_that_of_scipy(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    data = np.random.default_rng(count).lognormal(size=count)
    theirs = stats.quantile_test(data, q=float(np.median(data)), p=0.5).confidence_interval(0.95)
    ours = median_interval(data)
    assert (ours.low, ours.high) == (theirs.low, theirs.high)


def test_interval_covers_the_median_of_a_skewed_law() -> None:
    samples = np.random.default_rng(1).exponential(size=(300, 21))
    inside = [i.low <= np.log(2) <= i.high for i in map(median_interval, samples)]
    assert np.mean(inside) >= 0.93


def test_pairing_removes_drift() -> None:
    drift = np.linspace(1, 3, 20)  # a machine that slows down threefold during the run
    assert paired_ratio(2 * drift, drift) == (2, 2, 2, 20)
    assert median_ratio([3.0, 8.0, 5.0], [1.0, 2.0, 1.0]) == 4
    assert saving_realised(drift, 0.8 * drift, 0.75).median == pytest.approx(0.8)
    with pytest.raises(ValueError, match="between 0 and 1"):
        saving_realised(drift, drift, 1.0)
    with pytest.raises(ValueError, match="the same rounds, got 2 and 1"):
        median_ratio([1.0, 2.0], [1.0])


def test_every_entrant_runs_once_per_round_in_an_order_drawn_anew() -> None:
    def run(seed: int) -> list[str]:
        calls: list[str] = []
        found = interleave({n: (lambda n=n: calls.append(n) or len(calls)) for n in "abc"}, rounds=30, seed=seed)
        assert list(found) == ["a", "b", "c"]
        assert sorted(itertools.chain(*found.values())) == list(range(4, 94)), "the warm-up round is dropped"
        return ["".join(calls[i : i + 3]) for i in range(0, 93, 3)]

    rounds = run(0)
    assert {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len(set(rounds)) == 6, "all orders occur"
    assert run(0) == rounds
    assert run(1) != rounds


def test_the_ratio_of_a_drifting_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a synthetic clock: a call of 3 and one of 2 ms on a machine that slows down tenfold, and hiccups."""
    now, speed, hiccups = 0.0, 1.0, np.random.default_rng(0)

    def work(seconds: float) -> None:
        nonlocal now, speed
        now += seconds * speed * (20 if hiccups.random() < 0.05 else 1)
        speed *= 1.02

    clock = types.SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 0.5 * now)
    monkeypatch.setattr(timing, "time", clock)
    entrants = {name: (lambda s=s: time_call(lambda: work(s))) for name, s in (("slow", 3e-3), ("fast", 2e-3))}
    found = interleave(entrants, rounds=60)
    ratio = paired_ratio(*([s.seconds for s in found[name]] for name in ("slow", "fast")))
    assert ratio.low <= 1.5 <= ratio.high
    assert ratio.median == pytest.approx(1.5, rel=0.05)
    assert found["slow"][0].cpu_seconds == pytest.approx(0.5 * found["slow"][0].seconds)


def test_a_budget_ends_the_rounds_but_not_before_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def second() -> None:
        nonlocal now
        now += 1

    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: now))
    assert len(interleave({"a": second}, rounds=50, seconds=0)["a"]) == 5
    assert len(interleave({"a": second}, rounds=50, seconds=10)["a"]) == 10
    assert len(interleave({"a": second}, rounds=4, seconds=0, min_rounds=6)["a"]) == 4


def test_who_raises_leaves_and_the_others_go_on() -> None:
    calls = iter(range(3))
    failed: dict[str, Exception] = {}
    found = interleave({"good": lambda: 1, "bad": lambda: next(calls)}, rounds=8, failed=failed)
    assert found == {"good": [1] * 8}
    assert isinstance(failed["bad"], StopIteration)
    with pytest.raises(ZeroDivisionError):
        interleave({"bad": lambda: 1 / 0}, rounds=8)


def test_garbage_is_collected_between_rounds_only() -> None:
    collections: list[bool] = []
    inside = False

    def watch(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            collections.append(inside)

    def cycles() -> None:
        nonlocal inside
        inside = True
        for _ in range(3000):
            loop: list[object] = []
            loop.append(loop)
        inside = False

    frozen = gc.get_freeze_count()
    gc.callbacks.append(watch)
    try:
        interleave({"a": cycles, "b": cycles}, rounds=5)
    finally:
        gc.callbacks.remove(watch)
    assert len(collections) >= 5
    assert not any(collections)
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_a_call_is_timed_until_its_results_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = time_call(lambda: time.sleep(0.02))
    assert sample.seconds >= 0.02
    assert sample.cpu_seconds < sample.seconds
    assert time_call(lambda: torch.ones(2**24)).page_faults >= 0
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: order.append("synchronize"))
    time_call(lambda: order.append("run"), "cuda")
    assert order == ["synchronize", "run", "synchronize"]
