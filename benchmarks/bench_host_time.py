"""The host's time of a call of every op, without a GPU: `host_time.py` in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alt.measure import call_fresh_process, paired_ratio

SCRIPT = Path(__file__).with_name("host_time.py")
BASE = "torch.add"
ROUNDS = {False: 20, True: 60}


def test_host_time(benchmark: Any, full: bool) -> None:
    """Ratios to ``torch.add`` within a round, and Python calls, per mode. No gate: nothing is computed here."""
    rounds = 1 if benchmark.disabled else ROUNDS[full]
    modes = call_fresh_process([str(SCRIPT), "--rounds", str(rounds)], timeout=600)
    found: dict[str, Any] = {}
    for mode, ops in modes.items():
        base = ops[BASE]["seconds"]
        for name, op in ops.items():
            entry = found.setdefault(name, {"calls": {}, "ratio": {}})
            entry["calls"][mode] = op["calls"]
            if not benchmark.disabled:
                entry["ratio"][mode] = paired_ratio(op["seconds"], base)._asdict()
    assert found.keys() >= {BASE, "merge_layer_norm", "proportional_attention", "cosine_gumbel_assign"}
    benchmark.group = "host time"
    benchmark.extra_info |= {"title": "host time of a call", "host_time": found}
    benchmark.pedantic(lambda: None, rounds=1)  # the process has measured
