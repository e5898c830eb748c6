"""One run of the entry: where it runs, what it may spend, and the files it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
Record = dict[str, Any]


def _nothing(record: Record) -> None:
    return None


class Session(NamedTuple):
    """``dry``: the same code on a CPU with tiny shapes, to prove it where there is no GPU; its times mean nothing."""

    device: torch.device
    out: Path
    budget: float  # seconds of each section
    facts: Record
    dry: bool = False
    keep: Callable[[Record], None] = _nothing  # writes what a section has so far: it may be killed


def say(line: str) -> None:
    """Progress, seen at once: a command that is stopped shows how far it came."""
    print(line, flush=True)


class Budget:
    """The seconds a section may spend. What no longer fits is left out, and said so."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.left_out: list[str] = []
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        return self._end - self._clock()

    def has(self, needed: float, what: str) -> bool:
        """Returns True if ``needed`` seconds are left; if not, ``what`` goes to the list of what was left out."""
        if self.left() >= needed:
            return True
        self.left_out.append(f"{what}: no time left")
        return False


def source_hash() -> str:
    """Returns a hash of the measured code, names and contents in order; it also identifies a tree without git."""
    digest = hashlib.sha256()
    folders = ("alt_kernels", "alt", "csrc", "benchmarks", "tools")
    kinds = (".py", ".h", ".cpp", ".cu", ".cuh")
    paths = [
        p
        for f in folders
        for p in sorted((ROOT / f).rglob("*"))
        if p.suffix in kinds or p.name == "cuda_choice.json" or (p.suffix == ".json" and p.parent.name == "configs")
    ]
    paths += sorted(ROOT.glob("setup.py"))
    for path in paths:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def facts(device: torch.device) -> Record:
    """The machine, the versions and the commit: ``COMMIT`` names it, because a copied tree may bring another's git."""
    from alt.measure import describe_machine

    found = describe_machine(device) | {"source": source_hash()}
    if commit := os.environ.get("COMMIT"):
        found |= {"commit": commit, "modified": "changed" in commit}
    return found


def write(
    session: Session, section: str, record: Record, seconds: float, left_out: list[str], *, ended: bool = True
) -> Path:
    """``OUT/<section>.json``, rounded to what a timing is good for; the file is whole whenever the process dies."""
    from alt.files import replacing

    whole = {
        "section": section,
        "dry_run": session.dry,
        "ended": ended,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "budget": session.budget,
        "facts": session.facts,
        "left_out": left_out,
        "failed": [],
        "table": [],
        **record,
    }
    path = session.out / f"{section}.json"
    with replacing(path, "the result") as temporary:
        temporary.write_text(json.dumps(rounded(whole), indent=1) + "\n")
    return path


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Plain text columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return [line(heads), "  ".join("-" * w for w in widths), *map(line, rows)]


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
