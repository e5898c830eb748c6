"""What `make gpu` measures: the gates of entrants, targets and floors, shares of the saving, the tuner's problems."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu import bench, cases, clock, dry_launch, inputs, session, towers, tune

CEILINGS = {"bytes_per_s": 1e9, "flop_per_s": 1e9, "draws_per_s": 1e9}
DRY = session.Session(torch.device("cpu"), Path("unused"), 60.0, {}, dry=True)


def test_a_wrong_entrant_is_not_timed() -> None:
    case = cases.weighted_merge(DRY)
    right = case.entrants["ours"]
    case.entrants["wrong"] = lambda i: [t + 1e-3 for t in right(i)]
    case.entrants["raises"] = lambda i: 1 / 0
    case.gates["wrong"] = case.gates["raises"] = case.gates["ours"]
    row = bench.one(DRY, "merge", lambda: case, CEILINGS)
    assert "wrong by" in row["absent"]["wrong"]
    assert row["absent"]["raises"] == "ZeroDivisionError: division by zero"
    assert not {"wrong", "raises"} & row["entrants"].keys()
    assert row["entrants"]["ours"]["error"] <= case.bound


@pytest.mark.parametrize("rival", ["raises at its second call", "ours"])
def test_who_raises_while_timed_costs_its_own_row(rival: str) -> None:
    """Its check went well; then it runs out of memory. The others are measured, and the reason is in the row."""
    case = cases.weighted_merge(DRY)
    right, calls = case.entrants["ours"], 0

    def raises(i: int) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("CUDA out of memory")
        return right(i)

    case.entrants[rival] = raises
    case.gates[rival] = case.gates["ours"]
    row = bench.one(DRY, "merge", lambda: case, CEILINGS)
    assert "error" not in row
    assert row["absent"] == {rival: "while it was timed: RuntimeError: CUDA out of memory"}
    others = {"ours", "plain torch", "plain torch, index_add", "plain torch, compiled"} - {rival}
    assert row["entrants"].keys() == others
    assert all(found["us"] > 0 for found in row["entrants"].values())
    assert ("times_ours" in row["entrants"]["plain torch"]) == (rival != "ours")
    failed = bench.finished({"kernels": [row], "towers": []})["failed"]
    assert failed == ([] if rival != "ours" else ["merge"])


#: What was measured on such cards.
H200 = {"bytes_per_s": 4.3e12, "flop_per_s": 790e12, "draws_per_s": 132 * 64 * 1.755e9 / 24}
H100 = {"bytes_per_s": 3.0e12, "flop_per_s": 798e12, "draws_per_s": 132 * 64 * 1.755e9 / 24}


@pytest.mark.parametrize(
    ("name", "h200", "h100"),
    [
        ("matching", 10, 10),  # latency
        ("matching from keys", 1.4 * 18.0, 1.4 * 25.8),
        ("merge", 1.3 * 35.3, 1.3 * 50.6),
        ("residual + merge + LayerNorm", 1.25 * 70.6, 1.25 * 101.2),
        ("attention", 1.3 * 72.1, 1.3 * 103.3),
        ("attention backward", 1.5 * 144, 1.5 * 207),
        ("assignment", 1.45 * (30.6 + 38.2), 1.45 * (30.3 + 38.2)),
        ("assignment backward", 2 * (91.8 + 38.2), 2 * (90.9 + 38.2)),
        ("assignment, large corpus", 2 * 4185, 2 * 4185),
    ],
)
def test_targets_follow_the_ceilings_of_the_run(name: str, h200: float, h100: float) -> None:
    """In microseconds on either card; none is below the card's own floor."""
    target = targets()[name]
    for ceilings, expected in ((H200, h200), (H100, h100)):
        floors = target[1](ceilings)
        assert 1e6 * target[0].here(floors) == pytest.approx(expected, rel=0.03)
        assert target[0].here(floors) > max(floors.values())


@functools.cache
def targets() -> dict[str, tuple[cases.Target, Callable[[dict[str, float]], dict[str, float]]]]:
    """Target and floors of every case at the real shapes, which are built without computing them."""
    real = DRY._replace(dry=False)
    with dry_launch.dry_run():
        built = {name: build() for name, _, build in cases.all_cases(real)}
    return {name: (case.target, case._replace(entrants={}, gates={}).floors) for name, case in built.items()}


def test_floors_are_those_of_the_table() -> None:
    """At 4.3 TB/s and 790 TFLOP/s the cases have the floors that were computed by hand, in microseconds."""
    real = DRY._replace(dry=False)
    shape, corpus = inputs.layer(real), inputs.corpus(real, False)
    for cost, floor in (
        (shape.merge_cost(), 35.3),
        (shape.merge_layer_norm_cost(), 70.6),
        (shape.attention_cost(), 72.1),
        (corpus.cost(backward=False), 30.6),
    ):
        assert 1e6 * max(cost.flops / 790e12, cost.bytes / 4.3e12) == pytest.approx(floor, rel=0.02)
    large = inputs.corpus(real, True).cost(backward=False)
    assert 1e3 * large.flops / 790e12 == pytest.approx(3.35, rel=0.01)


def test_rivals_get_our_plan() -> None:
    m = inputs.merging(DRY)
    import gates

    for plan, pairs in zip(m.plans, m.pairs, strict=True):
        assert torch.equal(gates.rows_of_pairs(pairs, m.shape.tokens), plan.output_row.long())


def test_share_of_the_saving() -> None:
    """Half of the operations gone and a quarter of the time: half of the saving, against the fastest unmerged tower."""
    row: session.Record = {"name": "x", "macs": {0: 100, 8: 50}, "entrants": {}}
    times = {
        "eager": (0, clock.Timed([8.0, 8.0], "host")),
        "compiled": (0, clock.Timed([4.0, 4.0], "host")),
        "ours": (8, clock.Timed([3.0, 3.0], "host")),
    }
    towers.summarize(row, times)
    assert row["fastest_unmerged"] == "compiled"
    assert row["entrants"]["ours"]["saving_realised"] == pytest.approx(0.5)
    assert row["entrants"]["ours"]["speedup"] == pytest.approx(4 / 3)
    assert "saving_realised" not in row["entrants"]["eager"]
    assert any("50 %" in line for line in towers.lines([row]))


def test_everyone_takes_turns() -> None:
    calls: list[str] = []
    entrants = {name: [lambda name=name, i=i: calls.append(f"{name}{i}") for i in range(2)] for name in "ab"}
    timed = clock.interleave(entrants, torch.device("cpu"), rounds=7, seconds=0)
    assert {len(t.seconds) for t in timed.values()} == {5}, "five rounds at least, then the time is up"
    assert set(calls) == {"a0", "a1", "b0", "b1"}
    assert clock.ratio(clock.Timed([4.0, 6.0], "host"), clock.Timed([2.0, 3.0], "host")) == 2


def test_every_problem_of_the_tuner_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU all of them, here from a dry run's shapes: each names an entry that is there, and fields that it has."""
    from alt_kernels.triton import launch_configs

    small, few = inputs.layer(DRY)._replace(dtype=torch.bfloat16), inputs.corpus(DRY, False)
    for module in (tune, inputs):
        monkeypatch.setattr(module, "layer", lambda _: small)
        monkeypatch.setattr(module, "corpus", lambda *_: few._replace(dtype=torch.bfloat16))
    # The launches that make a backward's inputs would take the interpreter minutes: the CPU's kernels make them.
    monkeypatch.setattr(tune, "_launcher", _fake_launcher)
    builders = list(tune.problems(DRY._replace(dry=False)))
    assert len(builders) == 14
    for name, build in builders:
        problem = build()
        when = {key: 128 if key == "channels" else value for key, value in problem.when.items()}
        listed = [e for entries in launch_configs.load(problem.stem).values() for e in entries]  # or a GPU's
        use = next(e["use"] for e in listed if e["when"] == when)
        for changes in problem.axes:
            assert changes, name
            assert all(change.keys() <= use.keys() for change in changes), name


def _fake_launcher(stem: str, name: str):
    if name == "bucket":
        return importlib.import_module(f"alt_kernels.triton.{stem}").bucket
    return getattr(torch.ops.alt_kernels, name, None)
