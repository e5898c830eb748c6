"""`make gpu` without a GPU: every section runs dry on the CPU, and its parts say what is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("scipy", reason="the benchmarks need the extra [bench]")
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import machine  # noqa: F401  found by `gpu` later on
    from gpu import __main__ as entry
    from gpu import (
        bench,
        cases,
        clock,
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
        (["tests"], "SECTIONS: expected some of test sanitize tune bench train kernels towers, got tests"),
        (["test", "--budget", "0"], "BUDGET: expected seconds > 0, got 0"),
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
            assert json.loads(env[entry.BUILT]) == {"seconds": 9}
            code = ("import os; os.kill(os.getpid(), 11)", "import time; time.sleep(60)", "")[len(commands) - 1]
            super().__init__([sys.executable, "-c", code])

    monkeypatch.setattr(entry, "GRACE", 1.0)
    monkeypatch.setattr(entry.subprocess, "Popen", Process)
    options = entry.parser().parse_args(["--device", "cpu", "--out", str(tmp_path), "--budget", "2"])
    assert entry.each(options, ["test", "tune", "kernels"], {"seconds": 9}, 1.5) == 1
    assert [command[0] for command in commands] == ["test", "tune", "kernels"]
    assert [command[command.index("--budget") + 1] for command in commands] == ["1.5", "2.0", "2.0"]
    assert all("--no-build" in command and str(tmp_path) in command for command in commands)
    shown = capsys.readouterr().out
    assert "FAILED test ended with -11" in shown
    assert "FAILED tune ended with 124" in shown
    assert "kernels" not in shown


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
    row = bench.one(DRY, "merge", lambda: case, {"bytes_per_s": 1e9, "flop_per_s": 1e9})
    assert "wrong by" in row["absent"]["wrong"]
    assert row["absent"]["raises"] == "ZeroDivisionError: division by zero"
    assert not {"wrong", "raises"} & row["entrants"].keys()
    assert row["entrants"]["ours"]["error"] <= case.bound


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
    from alt_kernels.triton import tuning

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
        listed = [e for entries in tuning.load(problem.stem).values() for e in entries]  # or a GPU's
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
    assert tests.summary(reports[:1], 124, [], budget)["failed"] == []
    assert budget.left_out[-1] == "tests: one was still running when the time was up"


def test_the_plugin_leaves_out_what_comes_too_late(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("import time\ndef test_a(): time.sleep(0.6)\ndef test_b(): pass\n")
    log = tmp_path / "log"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "benchmarks"),
        "ALT_GPU_TEST_LOG": str(log),
        "ALT_GPU_TEST_SECONDS": "0.5",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.pytest_report", "-p", "no:cacheprovider", str(tmp_path)]
    subprocess.run([*command, "-p", "no:randomly"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    outcomes = [json.loads(line)["outcome"] for line in log.read_text().splitlines()]
    assert outcomes[-1] == "left out"
    assert set(outcomes) <= {"passed", "left out"}


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
    entry.end(process)
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
