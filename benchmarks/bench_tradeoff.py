"""Accuracy against cost as r grows, on the embedded benchmark; beside it the paper's models.

By default one seed and few steps, which says that it runs and what it costs; with --alt-full five seeds and the whole
training, and then accuracy may nowhere rise by more than two points with r.
"""

from __future__ import annotations

from typing import Any

#: (seeds, steps of training) by default and with --alt-full
SIZES = ((1, 100), (5, 1500))


def test_tradeoff(benchmark: Any, full: bool) -> None:
    from alt.entityworld.method_grid import Budget
    from alt.entityworld.token_cache import TokenCache
    from alt.entityworld.trained_tradeoff import embedded_tradeoff
    from alt.entityworld.world import World
    from alt.evaluate.paper_costs import paper_costs
    from alt.evaluate.tradeoff import find_anomalies, is_monotone
    from alt.evaluate.tradeoff_report import record

    seeds, steps = SIZES[full]

    def sweep() -> Any:
        cache = TokenCache(World("cpu"))
        # Throughput is timed here, in this process: pytest-benchmark's own column is the time of the whole sweep.
        return embedded_tradeoff(cache, seeds=range(seeds), budget=Budget(steps=steps), measure=not benchmark.disabled)

    found = benchmark.pedantic(sweep, rounds=1)
    paper = paper_costs()
    assert is_monotone(found.rows), "multiply-accumulates must fall as r grows"
    assert all(abs(cost.deviation) <= 0.75 for cost in paper)
    if full:
        assert not find_anomalies(found.rows)
        assert min(row.accuracy_mean for row in found.rows) >= 5 * found.setting["chance"]
    benchmark.group = "trade-off"
    benchmark.extra_info |= {"title": "trade-off across r", "tradeoff": record(found, paper)}
