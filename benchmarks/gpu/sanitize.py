"""Section `sanitize`: compute-sanitizer's memcheck and racecheck over every kernel on its smallest shapes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .session import ROOT, Budget, Record, Session, table

TOOLS = ("memcheck", "racecheck")
DRIVER = Path(__file__).with_name("driver.py")
REFUSED = re.compile(r"Device not supported|error 999|not supported on this", re.I)
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def run(session: Session, budget: Budget) -> Record:
    """Without the tool, or where the machine refuses it, a sentence says so; the driver runs alone all the same."""
    tool = None if session.dry else shutil.which("compute-sanitizer") or _beside_nvcc()
    checks = {"none": check(session, budget, None, "none")}
    if tool is None:
        budget.left_out.append(
            f"{' and '.join(TOOLS)}: " + ("a dry run" if session.dry else "compute-sanitizer is not on this machine")
        )
    elif checks["none"]["status"] == 0:
        for name in TOOLS:
            if budget.has(30, name):
                checks[name] = check(session, budget, tool, name)
    failed = [name for name, found in checks.items() if found["status"] not in (0, None) or found["errors"]]
    rows = [[name, str(c["status"]), str(c["errors"]), c["says"][:60]] for name, c in checks.items()]
    return {"checks": checks, "failed": failed, "table": table(["tool", "status", "errors", "says"], rows)}


def _beside_nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    folders = [Path("/usr/local/cuda/bin"), *([Path(nvcc).resolve().parent] if nvcc else [])]
    return next((str(f / "compute-sanitizer") for f in folders if (f / "compute-sanitizer").exists()), None)


def check(session: Session, budget: Budget, tool: str | None, name: str) -> Record:
    """One pass of the driver; ``status`` None where the tool could not work on this machine or ran out of time."""
    command = [sys.executable, str(DRIVER), session.device.type]
    if tool is not None:
        options = ["--target-processes", "application-only", "--error-exitcode", "3", "--print-limit", "20"]
        command = [tool, "--tool", name, *options, *command]
    # Without PyTorch's cache every tensor is an allocation of its own, whose end the tool knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=budget.left()
        )
    except subprocess.TimeoutExpired:
        budget.left_out.append(f"{name}: not finished when the time was up")
        return {"status": None, "errors": 0, "says": "out of time"}
    return judge(done.returncode, done.stderr + done.stdout, tool is not None)


def judge(status: int, text: str, with_tool: bool) -> Record:
    """What a run's output means: errors found, a machine that refuses the tool, or a driver that fails."""
    counts = [int(n) for n in SUMMARY.findall(text)]
    notable = [line.strip() for line in text.splitlines() if "rror" in line or "azard" in line or "SUMMARY" in line]
    if with_tool and REFUSED.search(text):
        return {"status": None, "errors": 0, "says": "the tool does not support this machine", "lines": notable[:20]}
    if with_tool and not counts:
        return {"status": status or 1, "errors": 0, "says": "no summary from the tool", "lines": notable[:20]}
    tail = text.strip().splitlines()[-1:] or [""]
    return {"status": status, "errors": sum(counts), "says": tail[0], "lines": notable[:20] if status else []}
