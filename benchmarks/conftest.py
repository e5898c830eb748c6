"""Fixtures of the benchmarks: the device, and `contest`, which gates, times in interleaved rounds and records.

Options: ``--alt-full`` for the kept result (more rounds), ``--alt-device`` to choose the device.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# Before torch starts its threads: two OpenMP threads on a shared machine stall each other by milliseconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest
import shapes
import torch
from tower_forms import SUBJECTS

from alt.measure import describe_machine, interleave, keep_freed_memory, median_interval, paired_ratio, time_call

#: Seconds that one contest may spend on its rounds: by default, and with --alt-full.
BUDGET = (4.0, 20.0)
MIN_ROUNDS, MOST_ROUNDS = 15, 400

MALLOC = pytest.StashKey[str]()

Gate = Callable[[Any], float]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("alt-kernels benchmarks")
    group.addoption("--alt-full", action="store_true", help="more rounds: the run whose result is kept")
    group.addoption(
        "--alt-malloc",
        choices=["keep", "default"],
        default="keep",
        help="keep: freed memory stays with the process, so that results do not depend on what ran before",
    )
    group.addoption("--alt-device", default="auto", help="cpu, cuda or auto (cuda where there is one)")
    group.addoption("--alt-towers", type=_names, default=(), help="of bench_cpu_towers.py: open_clip,timm,...")
    group.addoption("--alt-r", type=_numbers, default=(0, 8, 13, 16), help="of bench_cpu_towers.py: 0,8,13,16")
    group.addoption("--alt-rounds", type=int, help="of bench_cpu_towers.py: at least 6")


def _names(text: str) -> tuple[str, ...]:
    wrong = [name for name in text.split(",") if name not in SUBJECTS]
    if wrong:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(SUBJECTS)}, got {wrong[0]!r}")
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,8,13, got {text!r}") from None


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep = config.getoption("--alt-malloc") == "keep"
    config.stash[MALLOC] = keep_freed_memory() if keep else "as the system does"


def choose_device(config: pytest.Config) -> torch.device:
    name = config.getoption("--alt-device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    facts = describe_machine(choose_device(config))
    facts["malloc"] = config.stash[MALLOC]
    facts["full"] = bool(config.getoption("--alt-full"))
    machine_info["alt"] = facts


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return choose_device(pytestconfig)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--alt-full"))


@pytest.fixture
def contest(benchmark: Any, device: torch.device, full: bool) -> Callable[..., dict[str, list[float]]]:
    """Checks every entrant, times them in interleaved rounds, and records ratios beside the benchmark's statistics."""

    def run(
        title: str,
        ours: Callable[[], Any],
        *,
        rivals: Mapping[str, Callable[[], Any]],
        gates: Mapping[str, Gate] | Gate,
        bound: float,
        why_bound: str,
        floors: Mapping[str, Callable[[], Any]] | None = None,
        cost: shapes.Cost | None = None,
        shape: str = "",
        targets: Mapping[str, float] | None = None,
        rounds: int | None = None,
    ) -> dict[str, list[float]]:
        """
        Args:
            title: of the operation, as in the tables.
            ours: our function on fixed inputs.
            rivals: the others, by their name in the tables.
            gates: map a result to its largest error against the float64 definition; one for all, or one per name
                ("ours" for ours). Every entrant needs a gate, or the contest does not run.
            bound: largest allowed error; ``why_bound`` explains the number.
            floors: work that no implementation can avoid, timed in the same rounds.
            cost: operations and bytes.
            targets: promised ratios, by rival.
            rounds: a fixed number of rounds, for long contests.
        """
        entrants = {"ours": ours, **rivals}
        errors = {}
        for name, function in entrants.items():
            gate = gates if callable(gates) else gates[name]
            errors[name] = float(gate(function()))
            assert errors[name] <= bound, (
                f"{title}: {name} is off by {errors[name]:.3g}, allowed {bound:.3g} ({why_bound})"
            )
        for function in (floors or {}).values():
            function()
        record = benchmark.extra_info
        record |= {"title": title, "shape": shape, "errors": errors, "bound": bound, "why_bound": why_bound}
        benchmark.group = title
        if cost is not None:
            record |= {"flops": cost.flops, "bytes": cost.bytes}
        if benchmark.disabled:
            benchmark(ours)
            return {}
        timed = entrants | dict(floors or {})
        samples = interleave(
            {name: partial(time_call, function, device) for name, function in timed.items()},
            rounds=rounds or MOST_ROUNDS,
            min_rounds=rounds or MIN_ROUNDS,
            seconds=BUDGET[full],
        )
        seconds = {name: [s.seconds for s in found] for name, found in samples.items()}
        cpu = {name: [s.cpu_seconds for s in found] for name, found in samples.items()}
        record["median_ms"] = {name: 1e3 * median_interval(s).median for name, s in seconds.items()}
        record["ratio"] = {name: paired_ratio(seconds[name], seconds["ours"])._asdict() for name in rivals}
        if device.type == "cpu":
            record["cpu_time_ratio"] = {name: paired_ratio(cpu[name], cpu["ours"]).median for name in rivals}
            record["page_faults"] = {
                name: statistics.mean(s.page_faults for s in found) for name, found in samples.items()
            }
        record["over_floor"] = {name: paired_ratio(seconds["ours"], seconds[name])._asdict() for name in floors or {}}
        record["targets"] = dict(targets or {})
        if device.type == "cuda":
            from triton.testing import do_bench  # the GPU alone, without the host's share

            record["kernel_ms"] = {name: do_bench(f, return_mode="median") for name, f in entrants.items()}
        # pytest-benchmark's own column: ours alone, a few rounds; the claims come from the rounds above.
        benchmark.pedantic(_synchronised(ours, device), rounds=1 if max(seconds["ours"]) > 0.5 else 5)
        return seconds

    return run


def _synchronised(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    if device.type != "cuda":
        return function

    def run() -> Any:
        result = function()
        torch.cuda.synchronize(device)
        return result

    return run


@pytest.fixture
def compiled_rival(device: torch.device, benchmark: Any) -> Callable[[str, Callable[..., Any]], dict[str, Any]]:
    """Returns ``{name: compiled function}``, or ``{}`` with the recorded reason if nothing can be compiled."""
    import rivals

    torch.compiler.reset()

    def build(name: str, function: Callable[..., Any]) -> dict[str, Any]:
        reason = rivals.why_no_compile(device)
        if reason is None:
            return {name: rivals.compiled(function)}
        benchmark.extra_info.setdefault("absent", {})[name] = reason
        return {}

    return build
