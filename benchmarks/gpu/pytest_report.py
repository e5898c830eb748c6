"""A pytest plugin: a line of JSON for every test as it ends, and no test begun after the time is up.

Loaded by `-p gpu.pytest_report`, also in xdist's processes: these leave tests out, the one that collects writes.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

LEFT_OUT = "left out: the time was up"
_END = time.monotonic() + float(os.environ.get("ALT_GPU_TEST_SECONDS", "inf"))
_writes = True


def pytest_configure(config: pytest.Config) -> None:
    # Not by xdist's environment variable: a run started by a test of an xdist process inherits that.
    global _writes
    _writes = not hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() > _END:
        pytest.skip(LEFT_OUT)


def pytest_runtest_logreport(report: Any) -> None:
    path = os.environ.get("ALT_GPU_TEST_LOG")
    if path is None or not _writes:
        return
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
    with open(path, "a") as log:
        log.write(json.dumps(line) + "\n")
