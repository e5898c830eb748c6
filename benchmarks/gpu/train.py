"""Section `train`: the miniature benchmark on the GPU, by the command that anyone can run."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from .processes import OUT_OF_TIME, finish
from .session import Budget, Record, Session

KEPT = (".json", ".csv", ".md")  # small texts; pictures and checkpoints stay where they are
LARGEST = 2**20
#: Seconds that the command takes after its last run: evaluation, tables, the end of the process.
CLOSING = 40.0
#: Steps of pre-training that fit a whole section, and its seconds.
STEPS, SECONDS = 3000, 510.0


def run(session: Session, budget: Budget) -> Record:
    """`alt entityworld --preset gpu`: training, then accuracy against GFLOPs and throughput over r."""
    with tempfile.TemporaryDirectory() as folder:
        preset = os.environ.get("PRESET", "smoke" if session.dry else "gpu")
        place = ["--device", session.device.type]
        limits = limits_of(budget.left(), session.dry)
        command = [sys.executable, "-m", "alt.cli", "entityworld", "--preset", preset, *place, *limits, "--out", folder]

        def look(text: str) -> None:
            lines = last(text)
            session.keep({"status": None, "files": collect(Path(folder)), "tail": lines, "table": lines[-10:]})

        def last(text: str) -> list[str]:
            return [line.replace(folder, "OUT") for line in text.splitlines()[-60:]]

        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        status, text = finish(command, budget.left() - 12, environment=environment, look=look, interrupt=True)
        files, tail = collect(Path(folder)), last(text)
    record: Record = {"command": " ".join(["alt", *command[3:-1], "OUT"]), "status": status, "files": files}
    missing = [line for line in tail if "No such command" in line or "No module named" in line]
    if status == OUT_OF_TIME:
        budget.left_out.append("train: stopped when the time was up; what it had written by then is kept")
    elif status and missing:
        budget.left_out.append(f"train: {missing[-1].strip(' │')}")
    elif status:
        record["failed"] = [f"ended with {status}"]
    record["tail"] = tail
    return record | {"table": tail[-25:]}


def limits_of(seconds: float, dry: bool) -> list[str]:
    """Returns the command's options for a section of ``seconds``: the end of the last run, and steps in proportion."""
    if dry:
        return []
    steps = round(STEPS * min(seconds / SECONDS, 1))
    return ["--seconds", f"{max(seconds - CLOSING, 1):.0f}", "--pretraining-steps", str(max(steps, 1))]


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
