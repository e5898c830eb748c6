"""Section `sanitize`: compute-sanitizer's tools over every kernel on its smallest shapes."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .processes import OUT_OF_TIME, finish
from .session import Budget, Record, Session, say, table

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Errors of the API that a library asks for and handles (a symbol that an older driver has not) are no errors here.
OPTIONS = ("--report-api-errors", "no", "--error-exitcode", "3", "--print-limit", "20")
WARM = ("float32", "float16", "bfloat16")
DRIVER = Path(__file__).with_name("driver.py")
REFUSED = re.compile(r"Device not supported|error 999|not supported on this", re.I)
FINDING = re.compile(r"^=+ +(Invalid|Error:|Race|Uninitialized|Barrier error|Divergent)", re.I)
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def run(session: Session, budget: Budget) -> Record:
    """Without the tool, or where the machine refuses it, a sentence says so; the driver runs alone all the same."""
    tool = None if session.dry else shutil.which("compute-sanitizer") or _beside_nvcc()
    if not session.dry:
        warm(session, budget)
    checks = {"none": check(session, budget, None, "none")}
    if tool is None:
        budget.left_out.append(
            f"{', '.join(TOOLS)}: " + ("a dry run" if session.dry else "compute-sanitizer is not on this machine")
        )
    elif checks["none"]["status"] == 0:
        for place, name in enumerate(TOOLS):
            session.keep(summary(checks, dry=session.dry))
            if budget.has(max(20, checks["none"]["seconds"]), name):
                # One that hangs leaves the others their time; what one does not use is theirs.
                share = budget.left() / (len(TOOLS) - place) * 1.5
                checks[name] = check(session, budget, tool, name, min(share, budget.left()))
    else:
        budget.left_out += [f"{name}: the driver alone did not end well" for name in TOOLS]
    return summary(checks, dry=session.dry)


def warm(session: Session, budget: Budget) -> None:
    """Fill Triton's cache, a process for each dtype: compiled one after the other the kernels take minutes.

    What goes wrong here goes wrong again, and is reported, in the run that follows.
    """
    say("  compiling")
    commands = [[sys.executable, str(DRIVER), session.device.type, dtype] for dtype in WARM]
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(lambda command: finish(command, 0.6 * budget.left()), commands))


def summary(checks: dict[str, Record], *, dry: bool = False) -> Record:
    """A tool without a result is left out; a driver without one has failed, unless it ran dry."""
    failed = [
        name
        for name, found in checks.items()
        if found["errors"] or found["status"] not in ((0, None) if dry or name != "none" else (0,))
    ]
    rows = [
        [name, str(c["status"]), str(c["errors"]), f"{c['seconds']:.0f}", c["says"][:60]] for name, c in checks.items()
    ]
    lines = table(["tool", "status", "errors", "s", "says"], rows)
    lines += [f"{name}: {line}"[:160] for name in failed for line in checks[name].get("lines", [])[:6]]
    return {"checks": checks, "failed": failed, "table": lines}


def _beside_nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    folders = [Path("/usr/local/cuda/bin"), *([Path(nvcc).resolve().parent] if nvcc else [])]
    return next((str(f / "compute-sanitizer") for f in folders if (f / "compute-sanitizer").exists()), None)


def check(session: Session, budget: Budget, tool: str | None, name: str, seconds: float | None = None) -> Record:
    """One pass of the driver; ``status`` None where the tool could not work on this machine or ran out of time."""
    say(f"  {name}")
    begin = time.monotonic()
    command = [sys.executable, str(DRIVER), session.device.type]
    if tool is not None:
        command = [tool, "--tool", name, *OPTIONS, *command]
    # Without PyTorch's cache every tensor is an allocation of its own, whose end the tool knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    limit = budget.left() if seconds is None else seconds
    status, text = finish(command, limit, environment=environment)
    took = {"seconds": time.monotonic() - begin}
    if status == OUT_OF_TIME:
        budget.left_out.append(f"{name}: not finished when the time was up")
        return judge_late(text) | took
    return judge(status, text, tool is not None) | took


def judge_late(text: str) -> Record:
    """A run that was stopped has no summary: what it had found by then is printed."""
    found = [line.strip() for line in text.splitlines() if FINDING.search(line)]
    return {"status": None, "errors": len(found), "says": "out of time", "lines": found[:20]}


def judge(status: int, text: str, with_tool: bool) -> Record:
    """Interpret a run's output: errors found, a machine that refuses the tool, or a driver that fails."""
    counts = [int(n) for n in SUMMARY.findall(text)]
    notable = [line.strip() for line in text.splitlines() if "rror" in line or "azard" in line or "SUMMARY" in line]
    if with_tool and not counts and REFUSED.search(text):
        return {"status": None, "errors": 0, "says": "the tool does not support this machine", "lines": notable[:20]}
    if with_tool and not counts:
        return {"status": status or 1, "errors": 0, "says": "no summary from the tool", "lines": notable[:20]}
    tail = text.strip().splitlines()[-1:] or [""]
    return {"status": status, "errors": sum(counts), "says": tail[0], "lines": notable[:20] if status else []}
