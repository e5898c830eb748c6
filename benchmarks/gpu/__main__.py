"""`python -m gpu test sanitize tune bench train`, as `make gpu` calls it.

Every section writes ``OUT/<section>.json`` as it goes on and prints a short table; it ends within its seconds, and
says what it left out. Several sections run in a process each. ``--device cpu`` runs the same code on a CPU with tiny
shapes. ``--apply tune.json`` takes up the launch configurations that a section `tune` found on another machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

SECTIONS = ("test", "sanitize", "tune", "bench", "train")
HALVES = ("kernels", "towers")  # of bench, each with a budget of its own
MODULES = {"test": "tests"}
BUILT = "ALT_GPU_BUILT"  # what the build reported, for the processes of the sections
GRACE = 45.0  # seconds beyond its budget after which a section is ended
LAST = 10.0  # seconds of a section that is ended, to end what it has started
#: Seconds of a section: below ten minutes with what comes before and after it.
BUDGET = 510.0
SECTIONS_HELP = f"of {' '.join(SECTIONS)} (default: these), {' '.join(HALVES)}"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="make gpu", description="Everything that needs a GPU, in one command.")
    found.add_argument("sections", nargs="*", metavar="SECTION", help=SECTIONS_HELP)
    found.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/<device>")
    found.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a dry run with tiny shapes")
    found.add_argument("--budget", type=float, default=BUDGET, help="seconds of each section (default %(default)s)")
    found.add_argument("--wheels", help="folder of wheels to use beside what is installed (open_clip and its needs)")
    found.add_argument("--no-build", action="store_true", help="take the compiled library as it is")
    found.add_argument("--apply", type=Path, metavar="TUNE_JSON", help="take up configurations, and do nothing else")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS + HALVES]
    if unknown:
        known = " ".join(SECTIONS + HALVES)
        print(f"SECTIONS: expected some of {known}, got {' '.join(unknown)}", file=sys.stderr)
        return 2
    if options.budget <= 0:
        print(f"BUDGET: expected seconds > 0, got {options.budget:g}", file=sys.stderr)
        return 2
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
    if options.apply:
        return apply(options.apply)

    from . import prepare

    begin = time.monotonic()
    if options.wheels:
        print(f"wheels unpacked from {options.wheels} to {prepare.install_wheels(options.wheels)}")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("DEVICE: torch sees no CUDA device; DEVICE=cpu makes a dry run without one", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))  # so that what was started is ended as well
    built = json.loads(os.environ.get(BUILT, "null"))
    if options.device == "cuda" and not options.no_build:
        built = prepare.build(timeout=max(0.4 * options.budget, 90.0))
        print(f"csrc built in {built['seconds']:.0f} s: {', '.join(built['libraries']) or 'nothing'}")
        print(*built["messages"], sep="\n", flush=True)
    sections = options.sections or list(SECTIONS)
    # What comes before the first section is in its time, of which most has to be left.
    first = max(options.budget - (time.monotonic() - begin), 0.7 * options.budget)
    if len(sections) == 1:
        return run(options, built, first)
    return each(options, sections, built, first)


def each(options: argparse.Namespace, sections: list[str], built: object, first: float) -> int:
    """Every section in a process of its own: one that dies, or leaves the GPU unusable, ends alone."""
    environment = os.environ | {BUILT: json.dumps(built)}
    failed = []
    for number, section in enumerate(sections):
        budget = options.budget if number else first
        command = [sys.executable, "-m", "gpu", section, "--device", options.device, "--budget", str(budget)]
        command += ["--no-build", *(["--out", str(options.out)] if options.out else [])]
        process = subprocess.Popen(command, env=environment)
        try:
            status = process.wait(budget + GRACE)
        except subprocess.TimeoutExpired:
            status = 124
        finally:  # also where this process is interrupted
            end(process)
        if status:
            failed.append(f"{section} ended with {status}")
    for what in failed:
        print(f"FAILED {what}", flush=True)
    return 1 if failed else 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate, so that a section ends what it has started; kill one that does not listen."""
    process.terminate()
    try:
        process.wait(LAST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(options: argparse.Namespace, built: object, seconds: float | None = None) -> int:
    """The sections in this process, ``seconds`` for the first."""
    import machine
    import torch

    from . import session as sessions

    device = torch.device(options.device)
    facts = sessions.facts(device)
    dry = options.device == "cpu"
    if built is not None:
        facts["build"] = built
    import alt_kernels

    facts["backends"] = {name: list(backend) for name, backend in alt_kernels.backends().items()}
    name = "dry-run" if dry else machine.slug(facts)
    out = options.out or sessions.ROOT / ("build" if dry else "benchmarks/results") / name
    session = sessions.Session(device, out, options.budget, facts, dry)
    where = facts.get("gpu", facts["cpu"])
    sessions.say(f"{where}, commit {facts['commit']}, source {facts['source']}, torch {facts['torch']}")
    failed = []
    for number, section in enumerate(options.sections or SECTIONS):
        limit = options.budget if number or seconds is None else seconds
        record = one(session, section, sessions.Budget(limit))
        failed += [f"{section}: {what}" for what in record["failed"]]
    for what in failed[:20]:
        print(f"FAILED {what}")
    return 1 if failed else 0


def one(session: Any, section: str, budget: Any) -> dict[str, Any]:
    """Run a section, write its file as it goes on, print its table."""
    from . import session as sessions

    begin, latest = time.monotonic(), {}

    def keep(record: dict[str, Any]) -> None:
        latest.update(record)
        sessions.write(session, section, record, time.monotonic() - begin, budget.left_out, ended=False)

    dry = " (dry run on a CPU: no number here means anything)" if session.dry else ""
    sessions.say(f"\n== {section}{dry}, {budget.left():.0f} s at most")
    part = (section,) if section in HALVES else ()
    module = "bench" if part else MODULES.get(section, section)
    try:
        found = importlib.import_module(f".{module}", __package__)
        record = found.run(session._replace(keep=keep), budget, *([part] if part else []))
    except Exception as error:  # one section's failure is its result, beside what it had by then; the others still run
        record = latest | {"failed": [*latest.get("failed", []), f"{type(error).__name__}: {error}"]}
        record |= {"traceback": traceback.format_exc()}
        record["table"] = [*latest.get("table", []), *traceback.format_exc().splitlines()[-6:]]
    seconds = time.monotonic() - begin
    path = sessions.write(session, section, record, seconds, budget.left_out)
    missing = [f"left out: {what}" for what in budget.left_out]
    for line in [*record["table"], *missing[:8], *([f"... and {len(missing) - 8} more"] if len(missing) > 8 else [])]:
        print(line[:200])
    sessions.say(f"{section}{dry}, {seconds:.0f} s: {len(record['failed'])} failed -> {path.name}")
    return record


def apply(path: Path) -> int:
    """Write the configurations of a kept `tune.json` into this checkout."""
    from alt_kernels.triton import tuner

    record = json.loads(path.read_text())
    for stem, entries in record["configs"].items():
        tuner.store(stem, record["gpu"], entries)
        print(f"{stem}: {len(entries)} entries for {record['gpu']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
