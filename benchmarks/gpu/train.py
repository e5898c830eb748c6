"""Section `train`: the miniature benchmark on the GPU, by the command that anyone can run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from .session import ROOT, Budget, Record, Session

KEPT = (".json", ".csv", ".md")  # small texts; pictures and checkpoints stay where they are
LARGEST = 2**20


def run(session: Session, budget: Budget) -> Record:
    """`alt entityworld --preset gpu`: training, then accuracy against GFLOPs and throughput over r."""
    with tempfile.TemporaryDirectory() as folder:
        preset = os.environ.get("PRESET", "smoke" if session.dry else "gpu")
        place = ["--device", session.device.type]
        command = [sys.executable, "-m", "alt.cli", "entityworld", "--preset", preset, *place, "--out", folder]
        status, tail = finish(command, budget.left() - 5)
        files = collect(Path(folder))
        tail = [line.replace(folder, "OUT") for line in tail]
    record: Record = {"command": " ".join(["alt", *command[3:-1], "OUT"]), "status": status, "files": files}
    missing = [line for line in tail if "No such command" in line or "No module named" in line]
    if status == 124:
        budget.left_out.append("train: stopped when the time was up; what it had written by then is kept")
    elif status and missing:
        budget.left_out.append(f"train: {missing[-1].strip(' │')}")
    elif status:
        record["failed"] = [f"ended with {status}"]
    record["tail"] = tail
    return record | {"table": tail[-25:]}


def finish(command: list[str], seconds: float) -> tuple[int, list[str]]:
    """Exit status (124: out of time) and the last lines; what runs out of time is interrupted before it is killed."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = 124
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.seek(0)
        return status, log.read().splitlines()[-60:]


def collect(folder: Path) -> dict[str, object]:
    """Texts by name, JSON as JSON."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in KEPT or path.stat().st_size > LARGEST:
            continue
        text = path.read_text(errors="replace")
        try:
            found[path.relative_to(folder).as_posix()] = json.loads(text) if path.suffix == ".json" else text
        except ValueError:
            found[path.relative_to(folder).as_posix()] = text
    return found
