"""The parts of the sections of `make gpu`: the sanitizer's words, counted tests, what a training left, the source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import __main__ as entry
from gpu import calls, prepare, sanitize, session, tests, train

ROOT = Path(__file__).resolve().parents[1]


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
