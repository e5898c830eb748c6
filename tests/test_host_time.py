"""The host's share of a call may not grow: Python calls per op, exactly, and time against the kept result.

`benchmarks/host_time.py` measures both in a process in which launches go through Triton and start nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from alt.measure import call_fresh_process

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytest.importorskip("triton")
sys.path.insert(0, str(BENCHMARKS))
try:
    import report
finally:
    sys.path.remove(str(BENCHMARKS))

MODE = "no gradient"
#: Python functions that a call enters, Triton's and torch's included; a change of this table is a decision.
CALLS = {
    "bipartite_soft_matching": 25,
    "bipartite_soft_matching_from_keys": 30,
    "weighted_merge": 23,
    "unmerge": 21,
    "merge_layer_norm": 28,
    "proportional_attention": 28,
    "cosine_gumbel_assign": 48,
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    command = [str(BENCHMARKS / "host_time.py"), "--mode", MODE, "--rounds", "20"]
    return call_fresh_process(command, timeout=300)[MODE]


def kept() -> dict[str, Any]:
    """The newest kept result of any CPU."""
    found = [
        benchmark["extra_info"]["host_time"]
        for record in report.newest(report.RESULTS).values()
        for benchmark in record["benchmarks"]
        if "host_time" in benchmark["extra_info"]
    ]
    return found[0]


def test_python_calls_of_every_op(measured: dict[str, Any]) -> None:
    """On Python 3.12 and later comprehensions are no calls, so there may be fewer."""
    found = {name: measured[name]["calls"] for name in CALLS}
    if sys.version_info < (3, 12):
        assert found == CALLS
    else:
        assert all(found[name] <= most for name, most in CALLS.items()), found


def test_no_op_takes_half_as_long_again_as_the_kept_result(measured: dict[str, Any]) -> None:
    """The best round counts, in units of ``torch.add`` in the same round."""
    base = measured["torch.add"]["seconds"]
    limits = {name: 1.5 * entry["ratio"][MODE]["median"] for name, entry in kept().items() if name in CALLS}
    assert limits.keys() == CALLS.keys()
    for name, limit in limits.items():
        best = min(s / b for s, b in zip(measured[name]["seconds"], base, strict=True))
        assert best <= limit, f"{name}: {best:.1f} x torch.add, at most {limit:.1f} is allowed"
