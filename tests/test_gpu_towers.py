"""The towers of `make gpu` as a GPU would run them, on a tiny one in bfloat16: order, gates, and what is kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("scipy", reason="the benchmarks need the extra [bench]")
pytest.importorskip("open_clip")
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from gpu import session, towers
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

THERE = session.Session(torch.device("cpu"), Path("unused"), 60.0, {})
NAMES = ["unmerged", "unmerged, SDPA", "ours r=8", "ours r=13"]


def test_everything_eager_first_then_the_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks when compiled leaves what was measured before; what there is no time for is named."""
    seen: list[tuple[str, bool]] = []

    def contest(_: Any, budget: Any, c: towers.Contest, compiled: bool, so_far: Any) -> session.Record:
        seen.append((c.name, compiled))
        if compiled and c.training:
            raise RuntimeError("out of memory")
        found = {"r": 8, "ms": 1.0, "how": "host", "saving_realised": 0.5 + 0.4 * compiled}
        return {"name": c.name, "macs": {0: 4, 8: 3}, "entrants": {"ours r=8": found}, "absent": {}}

    monkeypatch.setattr(towers, "contest", contest)
    budget = session.Budget(130, clock=lambda: 0.0)
    rows: list[session.Record] = []
    kept: list[int] = []
    towers.run(THERE, budget, rows, lambda: kept.append(len(rows)))
    names = [c.name for c in towers._plan(THERE)]
    assert seen[: len(names)] == [(name, False) for name in names]
    assert seen[len(names) :] == [(c.name, True) for c in towers._plan(THERE) if 2 * towers._compiling(c) + 10 <= 130]
    assert [row["name"] for row in rows] == names
    assert rows[0]["entrants"]["ours r=8"]["saving_realised"] == pytest.approx(0.9)
    assert rows[1]["absent"] == {"the rest": "RuntimeError: out of memory"}
    assert rows[1]["entrants"]["ours r=8"]["saving_realised"] == 0.5
    assert budget.left_out == ["ViT-L/14, batch 64, training step, compiled: no time left"]
    assert len(kept) >= len(names)


@pytest.mark.slow
@pytest.mark.parametrize("what", [towers.FORWARD, towers.TRAINING])
def test_a_contest_in_bfloat16(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entrant passes its gate; results are there after each compiled one; a wrong tower is not timed."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)  # which would take minutes here
    monkeypatch.setattr(towers.clock, "ROUNDS", 2)
    c = towers.Contest(towers.TINY[0]._replace(layers=3), 4, what)
    interim: list[session.Record] = []
    row = towers.contest(THERE, session.Budget(1e6), c, True, interim.append)
    assert row["absent"] == {}
    eager, compiled = ([f"{n}, {kind}" for n in NAMES] for kind in ("eager", "compiled"))
    assert {*eager, *compiled} <= row["entrants"].keys()
    assert all(found["ms"] > 0 for found in row["entrants"].values())
    assert len(interim) == 5, "one for every compiled entrant"
    assert set(eager) <= interim[0]["entrants"].keys()
    without = towers.contest(THERE, session.Budget(1e6), c, False, interim.append)
    assert not any("compiled" in name for name in without["entrants"])

    honest = towers._entrants

    def cheating(*args: Any) -> list[towers.Entrant]:
        """Ours that merges nothing, and is faster for it where merging costs more than it saves."""
        return [e._replace(build=honest(*args)[0].build) if e.name == "ours r=13, eager" else e for e in honest(*args)]

    monkeypatch.setattr(towers, "_entrants", cheating)
    row = towers.contest(THERE, session.Budget(1e6), c, False, interim.append)
    assert "off the definition by" in row["absent"]["ours r=13, eager"]
    assert "ours r=13, eager" not in row["entrants"]


def test_a_step_begins_without_gradients() -> None:
    module = torch.nn.Linear(3, 2)
    step = towers.TrainingStep(module, module)
    x = torch.randn(4, 3)
    step(x)
    first = module.weight.grad.clone()
    step(x)
    assert torch.equal(module.weight.grad, first)
