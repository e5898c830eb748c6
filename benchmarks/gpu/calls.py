"""Several sections in one command: a process each, the seconds of each, and what their results say is next."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import pack
from .session import say

BUILT = "ALT_GPU_BUILT"  # what the build reported, for the processes of the sections
BEGAN = "ALT_GPU_BEGAN"  # when a section's process was started: its imports are in its time
GRACE = 45.0  # seconds beyond its budget after which a section is ended
LAST = 10.0  # seconds of a section that is ended, to end what it has started
TESTS_LEFT_OUT = 3  # exit status: nothing failed, but the time was up before all tests had run

#: With a budget for all of them: a first call, and the one after it that tunes.
FIRST_CALL = ("agree+compile", "towers", "kernels")  # compilers of both side by side
SECOND_CALL = ("tune", "kernels")
#: Seconds that a section wants in a call of 430 s, of which a start takes forty.
WANTED = {
    "agree+compile": 110.0,
    "towers": 150.0,
    "kernels": 130.0,
    "agree": 90.0,
    "tune": 240.0,
    "train": 400.0,
    "sanitize": 400.0,
}
LEAST_PASSED = 100  # tests without which a first call shows nothing


class Clock(NamedTuple):
    """Seconds of the sections of a command: so many each, or a share each of what is left of a total."""

    budget: float
    first: float
    end: float | None = None  # of the whole command, in `time.monotonic`

    def seconds(self, sections: list[str], number: int) -> tuple[float, float]:
        """Budget of a section, and the seconds after which it is ended."""
        if self.end is None:
            budget = self.budget if number else self.first
            return budget, budget + GRACE
        left = self.end - time.monotonic()
        grace = min(GRACE, 0.04 * left + 1)
        weights = [WANTED.get(name, 100.0) for name in sections[number:]]
        share = max(left - grace - LAST, 0) * weights[0] / sum(weights)
        return share, share + grace


def each(
    options: argparse.Namespace,
    sections: list[str],
    built: object,
    clock: Clock,
    after: Callable[[str], None] = lambda section: None,
) -> int:
    """Every section in a process of its own: one that dies, or leaves the GPU unusable, ends alone.

    Args:
        after: is called with the name of every section that has ended.
    """
    environment = os.environ | {BUILT: json.dumps(built)}
    failed, left_out = [], False
    for number, section in enumerate(sections):
        budget, limit = clock.seconds(sections, number)
        if budget < 1:
            failed.append(f"{section}: no time left")
            continue
        processes: dict[str, subprocess.Popen[bytes]] = {}
        last = time.monotonic() + limit
        try:
            for part in section.split("+"):
                command = [sys.executable, "-m", "gpu", part, "--device", options.device, "--budget", str(budget)]
                command += ["--no-build", *(["--out", str(options.out)] if options.out else [])]
                processes[part] = subprocess.Popen(command, env=environment | {BEGAN: str(time.time())})
            for part, process in processes.items():
                try:
                    status = process.wait(max(last - time.monotonic(), 0.0))
                except subprocess.TimeoutExpired:
                    status = 124
                left_out |= status == TESTS_LEFT_OUT
                if status not in (0, TESTS_LEFT_OUT):
                    failed.append(f"{part} ended with {status}")
        finally:  # also where this process is interrupted
            for process in processes.values():
                end(process)
        if "compile" in section.split("+"):
            environment[pack.COMPILED] = "1"
        after(section)
    for what in failed:
        print(f"FAILED {what}", flush=True)
    return 1 if failed else TESTS_LEFT_OUT if left_out else 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate, so that a section ends what it has started; kill one that does not listen."""
    process.terminate()
    try:
        process.wait(LAST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class CompiledAnew:
    """Records the kernels that each section compiled although it had a pack; nothing without one."""

    def __init__(self, packed: pack.Packed | None) -> None:
        self.packed = packed
        self.by_section: dict[str, list[str]] = {}
        self._known = Counter(packed.compiled_anew()) if packed else Counter()

    def __call__(self, section: str) -> None:
        if self.packed is not None:
            now = Counter(self.packed.compiled_anew())
            self.by_section[section] = sorted((now - self._known).elements())
            self._known = now


def verdict(out: Path, sections: list[str], status: int, since: float, anew: CompiledAnew) -> str:
    """One sentence on what is next, from the files that the sections have left; also kept as ``OUT/verdict.json``.

    Args:
        status: of :func:`each`. since: when the command began; an older file is another command's.
        anew: what the sections had to compile.
    """
    found: dict[str, dict[str, Any]] = {}
    bad: list[str] = []
    for section in (part for name in sections for part in name.split("+")):
        path = out / f"{section}.json"
        if not path.exists() or path.stat().st_mtime < since:
            bad.append(f"{section}: no result")
            continue
        found[section] = record = json.loads(path.read_text())
        bad += [f"{section}: {what}" for what in record["failed"]]
        if not record["ended"]:
            bad.append(f"{section}: it was stopped")
        elif section == "towers" and not record["towers"]:
            bad.append("towers: none was measured")
        elif section == "agree" and not record["dry_run"]:
            passed = sum(counts.get("passed", 0) for counts in record["counts"].values())
            if passed < LEAST_PASSED:
                bad.append(f"agree: {passed} tests passed, expected at least {LEAST_PASSED}")
    if status not in (0, TESTS_LEFT_OUT) and not bad:
        bad.append(f"a section ended with an error after its result was written (status {status})")
    late = sum(record.get("tests_left_out", 0) for record in found.values())
    kept: dict[str, Any] = {"sections": sections, "bad": bad, "tests_left_out": late, "seconds": time.time() - since}
    if anew.packed is not None:
        kept["compiled_anew"] = anew.by_section
        say(anew.packed.sentence(anew.by_section))
    with_pack = f" PACK={anew.packed.folder}" if anew.packed is not None else ""
    told = f" ({late} tests were left out)" if late else ""
    if bad:
        again = " ".join(dict.fromkeys(what.split(":")[0] for what in bad))
        line = f"2B: give the machine back, mend, pack again, then SECTIONS={again!r} TOTAL=200{with_pack}"
        line += f". {len(bad)} failed: {'; '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}"
    elif "tune" in sections:
        line = f"give the machine back and keep the results: python -m gpu --apply {out / 'tune.json'}"
    else:
        line = f"2A: at once, SECTIONS={' '.join(SECOND_CALL)!r} TOTAL=230{with_pack}{told}"
    (out / "verdict.json").write_text(json.dumps(kept | {"next": line}, indent=1) + "\n")
    return f"NEXT {line}"
