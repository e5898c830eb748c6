"""`make gpu` without a GPU: every section runs dry on the CPU, and its parts say what is true."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("pytest_benchmark", reason="the benchmarks need the extra [bench]")
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from gpu import __main__ as entry
    from gpu import (
        bench,
        calls,
        cases,
        clock,
        dry_launch,
        gpu_state,
        inputs,
        prepare,
        processes,
        sanitize,
        session,
        tests,
        towers,
        train,
        tune,
    )
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

CEILINGS = {"bytes_per_s": 1e9, "flop_per_s": 1e9, "draws_per_s": 1e9}
DRY = session.Session(torch.device("cpu"), Path("unused"), 60.0, {}, dry=True)


def run(*arguments: str, timeout: int = 1500) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def test_every_section_runs_dry(tmp_path: Path) -> None:
    """Files, tables, exit status; `train` has its own test, since the command it calls takes its time."""
    sections = ("test", "sanitize", "tune", "bench")
    done = run(*sections, "--device", "cpu", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json" for name in sections}
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in sections}
    for name, record in records.items():
        assert record["section"] == name
        assert record["dry_run"] is True
        assert len(record["facts"]["source"]) == 16
        assert record["facts"]["commit"]
        assert record["seconds"] > 0
        assert record["failed"] == []
        assert record["ended"] is True
        assert all(line[:200] in done.stdout for line in record["table"]), name
        assert "dry run on a CPU" in done.stdout
    assert len(done.stdout) < 12_000, "longer than what a person is shown of it"
    assert records["test"]["counts"]["tests/gpu/test_smoke.py"] == {"passed": 1, "skipped": 1}
    assert records["sanitize"]["checks"]["none"]["says"] == "every kernel ran"
    assert any("a dry run" in what for what in records["sanitize"]["left_out"])
    assert [s["stem"] for s in records["tune"]["searches"]] == ["merge_layer_norm"]
    assert records["tune"]["searches"][0]["tried"], "no candidate was timed"
    kernels = {row["name"]: row for row in records["bench"]["kernels"]}
    for name in ("matching", "matching from keys", "merge", "residual + merge + LayerNorm", "attention"):
        ours = kernels[name]["entrants"]["ours"]
        assert ours["us"] > 0
        assert ours["over_floor"] > 0
        assert ours["times_ours"] == 1
        assert kernels[name]["target_us"] > 0
        assert kernels[name]["later"] == []
        assert len(kernels[name]["entrants"]) > 2, "no rival ran"
    assert "F.gumbel_softmax" in kernels["assignment, forward and backward"]["entrants"]
    if any("open_clip" in what for what in records["bench"]["left_out"]):
        return
    for row in records["bench"]["towers"]:
        assert "saving_realised" in row["entrants"]["ours r=8, compiled"]
        assert row["absent"] == {}, row["name"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tests"], "SECTIONS: expected some of test sanitize tune bench train kernels towers agree, got tests"),
        (["test", "--budget", "0"], "BUDGET: expected seconds > 0, got 0"),
        (["test", "--total", "0"], "TOTAL: expected seconds > 0, got 0"),
        (["test"], "DEVICE: torch sees no CUDA device; DEVICE=cpu makes a dry run without one"),
    ],
)
def test_bad_arguments(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert entry.main(arguments) == 2
    assert capsys.readouterr().err.strip() == sentence


def test_a_section_that_breaks_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others still run, the file is there, the exit status says it."""

    def broken(*_: object) -> session.Record:
        raise RuntimeError("the GPU fell off the bus")

    monkeypatch.setattr(bench, "run", broken)
    monkeypatch.setattr(tune, "run", lambda *_: {"table": ["tuned"], "failed": []})
    options = entry.parser().parse_args(["bench", "tune", "--device", "cpu", "--out", str(tmp_path)])
    assert entry.run(options, None) == 1
    assert json.loads((tmp_path / "bench.json").read_text())["failed"] == ["RuntimeError: the GPU fell off the bus"]
    assert "tuned" in capsys.readouterr().out


def test_what_a_section_had_stays_when_it_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An illegal access on the GPU ends a section in the middle: the rows before it are kept, beside the reason."""

    def broken(session: session.Session, *_: object) -> session.Record:
        session.keep({"kernels": [{"name": "matching"}], "towers": [], "table": ["matching: 7 us"], "failed": []})
        there = json.loads((tmp_path / "bench.json").read_text())
        assert there["ended"] is False
        assert there["kernels"] == [{"name": "matching"}]
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(bench, "run", broken)
    options = entry.parser().parse_args(["bench", "--device", "cpu", "--out", str(tmp_path)])
    assert entry.run(options, None) == 1
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["kernels"] == [{"name": "matching"}]
    assert record["ended"] is True
    assert record["failed"] == ["RuntimeError: CUDA error: an illegal memory access was encountered"]
    assert record["table"][0] == "matching: 7 us"


def test_several_sections_run_in_a_process_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first dies and the second hangs: the third still runs, and each has its own budget."""
    commands: list[list[str]] = []

    class Process(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            commands.append(command[3:])
            assert json.loads(env[calls.BUILT]) == {"seconds": 9}
            code = ("import os; os.kill(os.getpid(), 11)", "import time; time.sleep(60)", "")[len(commands) - 1]
            super().__init__([sys.executable, "-c", code])

    monkeypatch.setattr(calls, "GRACE", 1.0)
    monkeypatch.setattr(calls.subprocess, "Popen", Process)
    options = entry.parser().parse_args(["--device", "cpu", "--out", str(tmp_path), "--budget", "2"])
    assert calls.each(options, ["test", "tune", "kernels"], {"seconds": 9}, calls.Clock(2.0, 1.5)) == 1
    assert [command[0] for command in commands] == ["test", "tune", "kernels"]
    assert [command[command.index("--budget") + 1] for command in commands] == ["1.5", "2.0", "2.0"]
    assert all("--no-build" in command and str(tmp_path) in command for command in commands)
    shown = capsys.readouterr().out
    assert "FAILED test ended with -11" in shown
    assert "FAILED tune ended with 124" in shown
    assert "kernels" not in shown


def test_a_total_is_shared_by_what_sections_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one does not use goes to those after it; the last one is ended before the total is over."""
    now = [1000.0]
    monkeypatch.setattr(calls.time, "monotonic", lambda: now[0])
    sections = list(calls.FIRST_CALL)
    assert sections == ["kernels", "towers", "agree"]
    timing = calls.Clock(510.0, 510.0, 1000.0 + 430)
    now[0] += 30  # a start
    found = [timing.seconds(sections, 0)]
    now[0] += found[0][0]
    found.append(timing.seconds(sections, 1))
    now[0] += 10  # it breaks at once
    found.append(timing.seconds(sections, 2))
    (kernels, _), (towers_, _), (agree, limit) = found
    assert kernels == pytest.approx(113, abs=5)
    assert towers_ == pytest.approx(172, abs=6)
    assert agree > 240, "the time that the towers left"
    assert now[0] + limit + calls.LAST <= 1430


def record(section: str, **fields: object) -> session.Record:
    found: session.Record = {"section": section, "ended": True, "failed": [], "dry_run": False, "left_out": []}
    found |= {"towers": [{"name": "ViT"}], "kernels": [], "counts": {"tests/gpu/a.py": {"passed": 150}}}
    return found | fields


@pytest.mark.parametrize(
    ("changes", "status", "expected"),
    [
        ({}, 0, "NEXT 2A: at once, SECTIONS='tune kernels' TOTAL=230"),
        (
            {"agree": {"tests_left_out": 7}},
            3,
            "NEXT 2A: at once, SECTIONS='tune kernels' TOTAL=230 (7 tests were left out)",
        ),
        (
            {"kernels": {"failed": ["merge"]}},
            1,
            "NEXT 2B: give the machine back, mend, pack again, then SECTIONS='kernels'",
        ),
        ({"towers": {"ended": False}}, 1, "SECTIONS='towers' TOTAL=200. 1 failed: towers: it was stopped"),
        ({"towers": {"towers": []}}, 0, "NEXT 2B"),
        ({"agree": {"counts": {"tests/gpu/a.py": {"passed": 99}}}}, 0, "99 tests passed, expected at least 100"),
        ({"agree": None}, 1, "agree: no result"),
        ({}, 1, "NEXT 2B"),
    ],
)
def test_the_verdict(tmp_path: Path, changes: dict[str, dict[str, object] | None], status: int, expected: str) -> None:
    began = time.time() - 100
    for section in calls.FIRST_CALL:
        if (fields := changes.get(section, {})) is not None:
            (tmp_path / f"{section}.json").write_text(json.dumps(record(section, **fields)))
    line = calls.verdict(tmp_path, list(calls.FIRST_CALL), status, began, calls.CompiledAnew(None))
    assert expected in line
    assert f"NEXT {json.loads((tmp_path / 'verdict.json').read_text())['next']}" == line
    old = calls.verdict(tmp_path, ["kernels"], 0, time.time() + 100, calls.CompiledAnew(None))
    assert "kernels: no result" in old, "a result of an earlier command counts"


def test_the_verdict_on_a_tuning(tmp_path: Path) -> None:
    for section in calls.SECOND_CALL:
        (tmp_path / f"{section}.json").write_text(json.dumps(record(section)))
    line = calls.verdict(tmp_path, list(calls.SECOND_CALL), 0, 0.0, calls.CompiledAnew(None))
    assert line == f"NEXT give the machine back and keep the results: python -m gpu --apply {tmp_path / 'tune.json'}"


def test_training_takes_its_seconds_and_steps_from_the_entry() -> None:
    """With constants of 440 s and 3,000 steps a section of 200 s was stopped from outside."""
    assert train.limits_of(510, False) == ["--seconds", "470", "--pretraining-steps", "3000"]
    assert train.limits_of(170, False) == ["--seconds", "130", "--pretraining-steps", "1000"]
    assert train.limits_of(170, True) == []


def test_clocks_are_recorded_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in what was written of a section that was stopped."""
    clocks = iter(["1980 MHz", "1410 MHz"])
    monkeypatch.setattr(gpu_state, "read", lambda _: {"clocks.sm": next(clocks)})
    seen: list[session.Record] = []

    def kept(session: session.Session, *_: object) -> session.Record:
        session.keep({"table": [], "failed": []})
        seen.append(json.loads((tmp_path / "tune.json").read_text())["gpu_state"])
        return {"table": [], "failed": []}

    monkeypatch.setattr(tune, "run", kept)
    options = entry.parser().parse_args(["tune", "--device", "cpu", "--out", str(tmp_path)])
    assert entry.run(options, None) == 0
    assert seen == [{"before": {"clocks.sm": "1980 MHz"}}]
    after = {"before": {"clocks.sm": "1980 MHz"}, "after": {"clocks.sm": "1410 MHz"}}
    assert json.loads((tmp_path / "tune.json").read_text())["gpu_state"] == after


def test_the_driver_is_asked_for_clocks_power_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == "nvidia-smi"
        count = len(command[1].partition("=")[2].split(","))
        return subprocess.CompletedProcess(command, 0, ", ".join(map(str, range(count))) + "\n", "")

    monkeypatch.setattr(subprocess, "run", answer)
    found = gpu_state.read(torch.device("cuda"))
    assert {"clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"} <= found.keys()
    assert gpu_state.read(torch.device("cpu")) == {}


def test_the_kernels_without_compiled_rivals_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case has a row before anything is compiled; with time for two of them, the others say what is missing."""
    there = DRY._replace(dry=False)
    seen: list[tuple[str, bool]] = []

    def one(_: object, name: str, build: object, ceilings: object, *, quick: bool = False) -> session.Record:
        seen.append((name, quick))
        found = {"us": 1.0, "over_floor": 1.0, "call_us": 1.0, "host_us": 1.0, "how": "graph"}
        row: session.Record = {"name": name, "entrants": {"ours": found}, "absent": {}, "floor_us": 1.0}
        return row | {"target_us": None, "later": ["plain torch, compiled"] if quick else []}

    monkeypatch.setattr(bench, "one", one)
    budget = session.Budget(40, clock=lambda: 0.0)
    record: session.Record = {"kernels": [], "towers": [], "ceilings": {}}
    kept: list[int] = []
    bench.kernels(there, budget, record, lambda: kept.append(len(record["kernels"])))
    names = [name for name, _, _ in cases.all_cases(there)]
    assert seen[: len(names)] == [(name, True) for name in names]
    assert kept[: len(names)] == list(range(1, len(names) + 1)), "written after every case"
    later = [name for name, quick in seen if not quick]
    assert later == [name for name, seconds, _ in cases.all_cases(there) if seconds <= 40]
    assert budget.left_out == ["attention, forward and backward: plain torch, compiled: no time left"]


def test_the_budget_says_what_it_left_out() -> None:
    now = [100.0]
    budget = session.Budget(10, clock=lambda: now[0])
    assert budget.has(8, "a")
    now[0] = 105.0
    assert not budget.has(8, "b")
    assert budget.left_out == ["b: no time left"]


def test_a_bench_without_time_still_writes() -> None:
    """On a GPU every case has its seconds; with none left all of them are named."""
    there = DRY._replace(dry=False)
    budget = session.Budget(0)
    names = [name for name, seconds, _ in cases.all_cases(there) if not budget.has(seconds, name)]
    assert len(names) == len(budget.left_out) == 14
    assert bench.kernel_lines([]) == towers.lines([]) == []


# ------------------------------------------------------------------------------------------------- what is measured


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
    assert len(builders) == 13
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
        from alt_kernels.triton.proportional_attention import bucket

        return bucket
    return getattr(torch.ops.alt_kernels, name, None)


# ------------------------------------------------------------------------------------------------ parts of sections


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (0, "every kernel ran\n========= ERROR SUMMARY: 0 errors\n", (0, 0)),
        (3, "========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 7 errors\n", (3, 7)),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", (0, 0)),
        (3, "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n", (3, 2)),
        (1, "========= Error: Device not supported. Please refer to the documentation\n", (None, 0)),
        (3, "RuntimeError: not supported on this\n========= ERROR SUMMARY: 7 errors\n", (3, 7)),  # the driver says so
        (0, "every kernel ran\n", (1, 0)),  # no summary: the tool did not watch
    ],
)
def test_what_the_sanitizer_says(status: int, text: str, expected: tuple[int | None, int]) -> None:
    found = sanitize.judge(status, text, with_tool=True)
    assert (found["status"], found["errors"]) == expected


def test_tests_are_counted_and_late_ones_named() -> None:
    reports = [
        {"test": "tests/gpu/a.py::one", "outcome": "passed"},
        {"test": "tests/gpu/a.py::two", "outcome": "failed", "why": "E   assert"},
        {"test": "tests/gpu/a.py::three", "outcome": "left out"},
        {"test": "tests/gpu/b.py::four", "outcome": "skipped", "why": "no second GPU"},
    ]
    budget = session.Budget(1)
    record = tests.summary(reports, 1, ["tail"], budget)
    assert record["counts"]["tests/gpu/a.py"] == {"passed": 1, "failed": 1, "left out": 1}
    assert record["failed"] == ["tests/gpu/a.py::two"]
    assert record["skipped"] == ["no second GPU"]
    assert budget.left_out == ["1 tests, from tests/gpu/a.py::three on"]
    assert tests.summary([], 5, ["nothing collected"], budget)["failed"] == ["pytest ended with 5"]
    assert tests.summary(reports[:1], 0, [], budget)["failed"] == []
    stopped = tests.summary([{"collected": 7}, *reports[:1]], 124, [], budget)
    assert (stopped["failed"], stopped["tests_left_out"]) == ([], 6)
    assert budget.left_out[-1] == "6 tests: pytest was stopped when the time was up"


def reported(tmp_path: Path, source: str, seconds: float, *arguments: str) -> tuple[list[dict[str, object]], int]:
    """What the plugin writes of a run of these tests, and pytest's exit status."""
    (tmp_path / "test_x.py").write_text(source)
    log = tmp_path / "log"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "benchmarks"),
        "ALT_GPU_TEST_LOG": str(log),
        "ALT_GPU_TEST_SECONDS": str(seconds),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.pytest_report", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        [*command, "-p", "no:randomly", *arguments], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    return [json.loads(line) for line in log.read_text().splitlines()], done.returncode


@pytest.mark.parametrize("processes", [[], ["-n", "1"]])
def test_the_plugin_leaves_out_what_comes_too_late(tmp_path: Path, processes: list[str]) -> None:
    """And says first how many tests there are, also where xdist's processes collect them."""
    source = "import time\ndef test_a(): time.sleep(0.6)\ndef test_b(): pass\n"
    lines, _ = reported(tmp_path, source, 0.5, *processes)
    assert lines[0] == {"collected": 2}
    assert [line["outcome"] for line in lines[1:]] == ["passed", "left out"]


def test_a_slow_collection_takes_no_time_from_the_tests(tmp_path: Path) -> None:
    """It left out all 215 tests once, and the run was reported as good."""
    source = "import time\ntime.sleep(2)\ndef test_a(): pass\ndef test_b(): pass\n"
    lines, _ = reported(tmp_path, source, 1)
    assert [line["outcome"] for line in lines[1:]] == ["passed", "passed"]


def test_tests_left_out_are_told_and_change_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of them is another status than success; all of them is a failure."""
    late = {"test": "tests/gpu/a.py::two", "outcome": "left out"}
    reports: list[session.Record] = [{"collected": 2}, {"test": "tests/gpu/a.py::one", "outcome": "passed"}, late]
    monkeypatch.setattr(tests, "_pytest", lambda *_: (0, []))
    monkeypatch.setattr(tests, "_reports", lambda _: reports)
    options = entry.parser().parse_args(["test", "--device", "cpu", "--out", str(tmp_path)])
    assert entry.run(options, None) == calls.TESTS_LEFT_OUT
    record = json.loads((tmp_path / "test.json").read_text())
    assert record["failed"] == []
    assert record["tests_left_out"] == 1
    assert "left out: 1 tests, from tests/gpu/a.py::two on" in capsys.readouterr().out
    reports[1] = late | {"test": "tests/gpu/a.py::one"}
    assert entry.run(options, None) == 1
    record = json.loads((tmp_path / "test.json").read_text())
    assert record["failed"] == ["no test passed before the time was up"]


def test_a_command_out_of_time_is_interrupted_and_leaves_nobody_behind(tmp_path: Path) -> None:
    """Neither the processes that it started, which would keep the GPU: each writes on as long as it lives."""
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.05)"
    parent = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begin, seen = time.monotonic(), []
    processes.EVERY, every = 0.5, processes.EVERY
    try:
        status, text = processes.finish([sys.executable, "-c", parent], 4, look=seen.append, interrupt=True)
    finally:
        processes.EVERY = every
    assert status == 124
    assert time.monotonic() - begin < 30
    assert text.startswith("started")
    assert any("started" in what for what in seen)
    assert beat.exists(), "the child never ran"
    time.sleep(0.3)
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size, "the child is still running"
    assert processes.finish([sys.executable, "-c", "raise SystemExit(7)"], 30)[0] == 7


def test_nobody_is_left_behind_by_a_section_that_is_ended(tmp_path: Path) -> None:
    """What a section has started is a process group of its own: the section ends it, and says that its time was up."""
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.05)"
    section = f"""
import sys
from gpu import __main__ as entry, processes
entry.run = lambda *_: processes.finish([sys.executable, "-c", {child!r}], 60)
entry.main(["test", "--device", "cpu"])
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    process = subprocess.Popen([sys.executable, "-c", section], env=environment)
    deadline = time.monotonic() + 60
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    calls.end(process)
    assert process.returncode == 124
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size, "the child is still running"


def test_a_command_ends_with_whoever_looks_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def look(text: str) -> None:
        started.extend(map(int, text.split()))
        assert not started

    monkeypatch.setattr(processes, "EVERY", 0.5)
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(AssertionError):
        processes.finish([sys.executable, "-c", code], 30, look=look)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_texts_that_a_training_left(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "curve.json").write_text("[1, 2]")
    (tmp_path / "table.md").write_text("| a |")
    (tmp_path / "model.pt").write_bytes(b"0" * 100)
    assert train.collect(tmp_path) == {"sub/curve.json": [1, 2], "table.md": "| a |"}


def test_wheels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"WHEELS: expected a folder with \*.whl files"):
        prepare.install_wheels(str(tmp_path))


def test_the_source_hash_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ROOT", tmp_path)
    (tmp_path / "alt_kernels").mkdir()
    file = tmp_path / "alt_kernels" / "a.py"
    file.write_text("x = 1\n")
    before = session.source_hash()
    file.write_text("x = 2\n")
    found = {before, session.source_hash()}
    for name in ("alt_kernels/cuda_choice.json", "setup.py"):
        (tmp_path / name).write_text("[]\n")
        found.add(session.source_hash())
    assert len(found) == 4
