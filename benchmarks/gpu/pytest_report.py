"""A pytest plugin: a line of JSON for every test as it ends, and no test begun after the time is up.

The time runs from the first test on, not from the start of the process: collecting may be slow. The first line says
how many tests there are, so that a run which is stopped from outside shows how many it left out.

Loaded by `-p gpu.pytest_report`, also in xdist's processes: these leave tests out, the one that collects writes.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

LEFT_OUT = "left out: the time was up"
_end: float | None = None  # of this process's tests, known when the first of them begins
_writes = True
_counted = False


def pytest_configure(config: pytest.Config) -> None:
    # Not by xdist's environment variable: a run started by a test of an xdist process inherits that.
    global _writes
    _writes = not hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _end
    if _end is None:
        _end = time.monotonic() + float(os.environ.get("ALT_GPU_TEST_SECONDS", "inf"))
    if time.monotonic() > _end:
        pytest.skip(LEFT_OUT)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.items:  # under xdist the process that writes collects nothing itself
        _count(len(session.items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    _count(len(ids))


def _count(tests: int) -> None:
    global _counted
    if not _counted:  # every process of xdist collects the same
        _counted = True
        _write({"collected": tests})


def _write(line: dict[str, Any]) -> None:
    path = os.environ.get("ALT_GPU_TEST_LOG")
    if path is not None and _writes:
        with open(path, "a") as log:
            log.write(json.dumps(line) + "\n")


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    outcome = "error" if report.when != "call" and report.outcome == "failed" else report.outcome
    text = str(report.longrepr or "")
    line = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 3)}
    if report.outcome == "skipped":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else text
        line |= {"outcome": "left out"} if LEFT_OUT in why else {"why": why}
    elif report.outcome == "failed":
        line["why"] = text[-2000:]
    _write(line)
