"""The trade-off that the demonstration trains."""

from __future__ import annotations

import pytest

from alt.entityworld import demo_run
from alt.evaluate.tradeoff import is_monotone


@pytest.mark.slow
def test_demo_run_learns_and_costs_fall() -> None:
    found = demo_run(seeds=1, steps=60, measure=False)
    assert {row.r for row in found.rows} == {0, 2, 4, 6}
    assert is_monotone(found.rows)
    assert min(row.accuracy_mean for row in found.rows) > 5 * found.setting["chance"]
    assert any(row.trained_r == 0 and row.r > 0 for row in found.rows)  # off-the-shelf
    assert any(row.trained_r == row.r > 0 for row in found.rows)  # in training
