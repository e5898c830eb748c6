"""The towers of `make gpu` as a GPU would run them, on a tiny one in bfloat16: order, gates, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import session, towers

pytest.importorskip("open_clip")

THERE = session.Session(torch.device("cpu"), Path("unused"), 60.0, {})
NAMES = ["unmerged", "unmerged, SDPA", "unmerged, our attention", "ours r=8", "ours r=13"]


def test_the_headline_is_compiled_before_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
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
    headline, captured, training, *large = names = [c.name for c in towers.contests(THERE)]
    eager = [(name, False) for name in (headline, captured, training)]
    assert seen[:4] == [*eager, (headline, True)], "the headline compiled before ViT-L/14 begins"
    assert seen[4:7] == [(name, False) for name in large]
    room = [c.name for c in towers.contests(THERE) if 2 * towers._compiling(c) + 10 <= 130]
    assert seen[7:] == [(name, True) for name in room if name != headline]
    assert [row["name"] for row in rows] == names
    assert rows[0]["entrants"]["ours r=8"]["saving_realised"] == pytest.approx(0.9)
    assert rows[2]["absent"] == {"the rest": "RuntimeError: out of memory"}
    assert rows[2]["entrants"]["ours r=8"]["saving_realised"] == 0.5
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
    assert len(interim) == 6, "one for every compiled entrant"
    assert set(eager) <= interim[0]["entrants"].keys()
    without = towers.contest(THERE, session.Budget(1e6), c, False, interim.append)
    assert not any("compiled" in name for name in without["entrants"])

    honest = towers.entrants_of

    def cheating(*args: Any) -> list[towers.Entrant]:
        """Ours that merges nothing, and is faster for it where merging costs more than it saves."""
        return [e._replace(build=honest(*args)[0].build) if e.name == "ours r=13, eager" else e for e in honest(*args)]

    monkeypatch.setattr(towers, "entrants_of", cheating)
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


def test_the_fastest_unmerged_tower_may_have_our_attention() -> None:
    """Else what our attention gains would be counted as what merging saves."""
    base = towers.build(towers.TINY[0], torch.device("cpu"), torch.float32)
    dry = THERE._replace(dry=True)
    for what in (towers.FORWARD, towers.TRAINING):
        c = towers.Contest(towers.TINY[0], 2, what)
        everyone = towers.entrants_of(dry, base, c)
        for kind in ("eager", "compiled"):
            (found,) = (e for e in everyone if e.name == f"unmerged, our attention, {kind}")
            assert found.r == 0
            step = found.build()
            module = step.forward if c.training else step.__closure__[0].cell_contents
            assert type(module).__module__.startswith("alt."), "not patched"
    row: session.Record = {"name": "x", "macs": {0: 100, 8: 50}, "entrants": {}}
    times = {"unmerged, SDPA, compiled": 4.0, "unmerged, our attention, eager": 3.0, "ours r=8, eager": 3.0}
    timed = {n: (8 if "r=8" in n else 0, towers.Timed([t, t], "host")) for n, t in times.items()}
    towers.summarize(row, timed)
    assert row["fastest_unmerged"] == "unmerged, our attention, eager"
    assert row["entrants"]["ours r=8, eager"]["saving_realised"] == 0


def test_a_rival_that_raises_while_it_is_timed_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gate went well; then it runs out of memory."""
    honest = towers.entrants_of
    name = "plain torch r=8, eager"

    def entrants(*args: Any) -> list[towers.Entrant]:
        def fragile(build: Any) -> Any:
            step, calls = build(), []

            def run(images: torch.Tensor) -> torch.Tensor:
                calls.append(1)
                if len(calls) > 1:
                    raise RuntimeError("CUDA out of memory")
                return step(images)

            return run

        listed = honest(*args)
        return [e._replace(build=lambda e=e: fragile(e.build)) if e.name == name else e for e in listed]

    monkeypatch.setattr(towers, "entrants_of", entrants)
    c = towers.Contest(towers.TINY[0], 2, towers.CAPTURED)
    row = towers.contest(THERE._replace(dry=True), session.Budget(1e6), c, False, lambda row: None)
    assert row["absent"] == {name: "while it was timed: RuntimeError: CUDA out of memory"}
    assert "saving_realised" in row["entrants"]["ours r=8, eager"]


def test_so_it_is_where_batches_are_timed_as_they_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, here without its clock."""

    def once(run: Any, device: Any) -> float:
        run()
        return 1.0

    def breaks() -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(towers.clock, "once", once)
    monkeypatch.setattr(towers.clock, "release", lambda device: None)
    there = THERE._replace(device=torch.device("cuda"))
    failed: dict[str, Exception] = {}
    calls = {"ours": [lambda: None] * 2, "rival": [lambda: None, breaks]}
    timed = towers._time(there, calls, False, 5, failed)
    assert list(timed) == ["ours"]
    assert timed["ours"].seconds == [1.0] * 5
    assert list(failed) == ["rival"]
