"""`make gpu` without a GPU: every section runs dry on the CPU, and the entry shares time and sums up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu import __main__ as entry
from gpu import bench, calls, cases, compile_ahead, gpu_state, session, towers, train, tune

ROOT = Path(__file__).resolve().parents[1]
DRY = session.Session(torch.device("cpu"), Path("unused"), 60.0, {}, dry=True)


def run(*arguments: str, timeout: int = 1500) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
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
        (
            ["tests"],
            "SECTIONS: expected some of test sanitize tune bench train kernels towers agree profile compile, got tests",
        ),
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


def test_two_sections_run_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both at once, each with the whole budget; one that fails is named, and the next section begins after both."""
    began: list[tuple[str, float]] = []

    class Process(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            began.append((command[3], time.monotonic()))
            assert command[command.index("--budget") + 1] == "30.0"
            code = {"agree": "import time; time.sleep(1)", "compile": "raise SystemExit(7)", "towers": ""}[command[3]]
            super().__init__([sys.executable, "-c", code])

    monkeypatch.setattr(calls.subprocess, "Popen", Process)
    options = entry.parser().parse_args(["--device", "cpu", "--out", str(tmp_path)])
    ended: list[str] = []
    assert calls.each(options, ["agree+compile", "towers"], None, calls.Clock(30.0, 30.0), ended.append) == 1
    (_, first), (_, second), (_, third) = began
    assert [what for what, _ in began] == ["agree", "compile", "towers"]
    assert second - first < 0.5
    assert third - first >= 1
    assert ended == ["agree+compile", "towers"]
    assert "FAILED compile ended with 7" in capsys.readouterr().out


def test_a_total_is_shared_by_what_sections_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one does not use goes to those after it; the last one is ended before the total is over."""
    now = [1000.0]
    monkeypatch.setattr(calls.time, "monotonic", lambda: now[0])
    sections = list(calls.FIRST_CALL)
    assert sections == ["agree+compile", "towers", "kernels"]
    timing = calls.Clock(510.0, 510.0, 1000.0 + 430)
    now[0] += 30  # a start
    found = [timing.seconds(sections, 0)]
    now[0] += found[0][0]
    found.append(timing.seconds(sections, 1))
    now[0] += 10  # it breaks at once
    found.append(timing.seconds(sections, 2))
    (agree, _), (towers_, _), (kernels, limit) = found
    assert agree == pytest.approx(106, abs=5)
    assert towers_ == pytest.approx(146, abs=6)
    assert kernels > 240, "the time that the towers left"
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
    for section in (part for name in calls.FIRST_CALL for part in name.split("+")):
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


def test_a_case_is_built_once_for_all_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be built costs itself alone; ours, which no compiler makes, is not called."""
    built, called = [], []

    def whole() -> SimpleNamespace:
        built.append("merge")
        names = ("ours", "plain torch, compiled", "other, compiled")
        return SimpleNamespace(entrants={name: lambda i, name=name: called.append(name) for name in names})

    def broken() -> SimpleNamespace:
        raise RuntimeError("out of memory")

    there = DRY._replace(dry=False)
    monkeypatch.setattr(compile_ahead.cases, "all_cases", lambda _: [("attention", 9, broken), ("merge", 9, whole)])
    monkeypatch.setattr(towers, "contests", lambda _: [towers.Contest(towers.TINY[0], 2, towers.FORWARD)])
    monkeypatch.setattr(towers, "build", lambda *_: None)
    monkeypatch.setattr(towers, "entrants_of", lambda *_: [])
    found = compile_ahead.run(there, session.Budget(60))
    assert built == ["merge"]
    assert called == ["plain torch, compiled", "other, compiled"]
    assert found["absent"] == {"attention": "RuntimeError: out of memory"}
    assert [row["name"] for row in found["compiled"]] == [f"merge: {name}" for name in called]


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
    assert len(names) == len(budget.left_out) == 16
    assert bench.kernel_lines([]) == towers.lines([]) == []
