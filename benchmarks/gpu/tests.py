"""Sections `test` and `agree`: pytest, each test reported as it ends, stopped cleanly when the time is up.

`agree` are the tests that a first run on a GPU needs: `tests/gpu`, and all implementations side by side.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .processes import OUT_OF_TIME, finish
from .session import Budget, Record, Session, say, table

FIRST = ("tests/gpu", "tests/test_implementations_agree.py")
#: The surest first. Of tests/cuda what runs on the GPU: its emulated twin needs none.
FOLDERS = (
    *(*FIRST, "tests/cuda", "tests/triton"),
    "tests/entityworld/test_entity_world_pictures.py::test_another_device_gives_the_same_pictures_to_a_grey_level",
)
#: What these folders have that needs no GPU.
IGNORED = (
    *("tests/triton/test_compiled.py", "tests/triton/test_launches.py"),
    *("tests/triton/test_aot.py", "tests/triton/test_sass.py", "tests/ptx"),
)
SELECTED = (
    *("-m", "not slow or gpu", "-k", "not emulated and not order_of_the_threads"),
    *(f"--ignore={path}" for path in IGNORED),
)
#: Without those that `torch.compile` takes most of the time of.
FIRST_SELECTED = (*FIRST, "-m", "not slow or gpu", "-k", "not emulated and not compiled_whole")
#: Rest for pytest to start and collect, to end, and for the last test of every process.
MARGIN = 30.0


def run(session: Session, budget: Budget, section: str = "test") -> Record:
    """Run the tests that need a GPU and the kernels' own tests, which compile where ALT_KERNELS_TEST_DEVICE says so."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "tests.jsonl"
        status, tail = _pytest(session, budget, log, FIRST_SELECTED if section == "agree" else (*FOLDERS, *SELECTED))
        return summary(_reports(log), status, tail, budget)


def _reports(log: Path) -> list[Record]:
    """Returns the reports that pytest has written so far; an unfinished last line is left out."""
    whole = log.read_text().rpartition("\n")[0] if log.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def _pytest(session: Session, budget: Budget, log: Path, selected: Sequence[str]) -> tuple[int, list[str]]:
    arguments = ["tests/gpu/test_smoke.py"] if session.dry else [*selected]
    if not session.dry and importlib.util.find_spec("xdist"):  # most of the time is Triton's compiler, on the CPU
        arguments += ["-n", str(min(12, os.cpu_count() or 1))]
    environment = os.environ | {
        "ALT_KERNELS_TEST_DEVICE": session.device.type,
        "ALT_GPU_TEST_LOG": str(log),
        "ALT_GPU_TEST_SECONDS": str(budget.left() - min(MARGIN, 0.2 * budget.left())),
        "OMP_NUM_THREADS": "1",
    }
    if not session.dry:
        environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.pytest_report", "-p", "no:cacheprovider", *arguments]

    def look(text: str) -> None:
        reports = _reports(log)
        session.keep(summary(reports, 0, [], Budget(0)))  # a budget of its own: what is left out is counted at the end
        say(f"  {dict(Counter(r['outcome'] for r in reports if 'outcome' in r))}")

    status, text = finish(command, budget.left(), environment=environment, look=look)
    return status, text.splitlines()[-20:]


def summary(reports: list[Record], status: int, tail: list[str], budget: Budget) -> Record:
    """Counts by file and outcome, and the text of every failure; a run of which no test ended has failed."""
    collected = sum(r.get("collected", 0) for r in reports)
    reports = [r for r in reports if "outcome" in r]
    late = [r["test"] for r in reports if r["outcome"] == "left out"]
    if late:
        budget.left_out.append(f"{len(late)} tests, from {late[0]} on")
    unknown = collected - len({r["test"] for r in reports})
    if status == OUT_OF_TIME:
        budget.left_out.append(f"{max(unknown, 1)} tests: pytest was stopped when the time was up")
    failures = [r for r in reports if r["outcome"] in ("failed", "error")]
    counts: dict[str, Counter[str]] = {}
    for report in reports:
        counts.setdefault(report["test"].split("::")[0], Counter())[report["outcome"]] += 1
    kinds = ("passed", "failed", "error", "skipped", "left out")
    rows = [[path, *(str(found[kind]) for kind in kinds)] for path, found in sorted(counts.items())]
    record: Record = {
        "status": status,
        "counts": {path: dict(found) for path, found in counts.items()},
        "failures": failures[:100],
        "skipped": sorted({r["why"] for r in reports if r["outcome"] == "skipped" and r.get("why")}),
        "table": [*table(["tests", *kinds], rows), *(f"FAILED {r['test']}" for r in failures[:30])],
    }
    # 0: all passed, 5: nothing collected, which is a failure here as well.
    broken = [f"pytest ended with {status}"] if status not in (0, OUT_OF_TIME) else []
    if not broken and not any(r["outcome"] == "passed" for r in reports):
        broken = ["no test passed before the time was up"]
    record["failed"] = [r["test"] for r in failures] or broken
    record["tests_left_out"] = len(late) + (max(unknown, 1) if status == OUT_OF_TIME else 0)
    if status:
        record["tail"] = tail
        record["table"] += tail[-5:] if not failures else []
    return record
