"""`python -m gpu SECTION ...`, as `make gpu` calls it.

Every section writes ``OUT/<section>.json`` as it goes on and prints a short table; it ends within its seconds, and
says what it left out. Several sections run in a process each. ``--total`` is for all of them together, and ends with
a line on what is next. ``--pack`` takes what `make gpu-pack` made, so that nothing is compiled or fetched here.
``--device cpu`` runs the same code on a CPU with tiny shapes. ``--apply tune.json`` takes up the launch
configurations that a section `tune` found on another machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from .calls import BEGAN, BUILT, FIRST_CALL, TESTS_LEFT_OUT, Clock, CompiledAnew, each, verdict

SECTIONS = ("test", "sanitize", "tune", "bench", "train")
HALVES = ("kernels", "towers")  # of bench, each with a budget of its own
FIRST_TESTS = "agree"  # of test
PROFILE = "profile"  # of towers, kernel by kernel
COMPILE = "compile"  # what torch.compile makes for towers and rivals
EVERY = (*SECTIONS, *HALVES, FIRST_TESTS, PROFILE, COMPILE)
MODULES = {"test": "tests", FIRST_TESTS: "tests", "kernels": "bench", "towers": "bench", COMPILE: "compile_ahead"}
#: Seconds of a section: below ten minutes with what comes before and after it.
BUDGET = 510.0
SECTIONS_HELP = (
    f"of {' '.join(EVERY)}, a+b: side by side (default: {' '.join(SECTIONS)}; with --total: {' '.join(FIRST_CALL)})"
)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="make gpu", description="Everything that needs a GPU, in one command.")
    found.add_argument("sections", nargs="*", metavar="SECTION", help=SECTIONS_HELP)
    found.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/<device>")
    found.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a dry run with tiny shapes")
    found.add_argument("--budget", type=float, default=BUDGET, help="seconds of each section (default %(default)s)")
    found.add_argument("--total", type=float, help="seconds of the whole command; says at its end what is next")
    found.add_argument("--pack", type=Path, help="folder that `make gpu-pack` made; builds nothing")
    found.add_argument("--wheels", help="folder of wheels to use beside what is installed (open_clip and its needs)")
    found.add_argument("--no-build", action="store_true", help="take the compiled library as it is")
    found.add_argument("--apply", type=Path, metavar="TUNE_JSON", help="take up configurations, and do nothing else")
    return found


def main(arguments: list[str] | None = None) -> int:
    began, begin = time.time(), time.monotonic()
    if BEGAN in os.environ:  # a section's process: its imports are in its time
        begin -= max(time.time() - float(os.environ.pop(BEGAN)), 0.0)
    options = parser().parse_args(arguments)
    unknown = [name for part in options.sections for name in part.split("+") if name not in EVERY]
    if unknown:
        print(f"SECTIONS: expected some of {' '.join(EVERY)}, got {' '.join(unknown)}", file=sys.stderr)
        return 2
    for name in ("budget", "total"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            print(f"{name.upper()}: expected seconds > 0, got {getattr(options, name):g}", file=sys.stderr)
            return 2
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
    if options.apply:
        return apply(options.apply)

    from . import pack, prepare

    if options.device == "cuda":
        prepare.read_ahead()
    packed = None
    if options.pack:
        try:
            packed = pack.take(options.pack)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"pack of commit {packed.manifest['commit']} in {packed.place}", flush=True)
    if options.wheels:
        print(f"wheels unpacked from {options.wheels} to {prepare.install_wheels(options.wheels)}")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("DEVICE: torch sees no CUDA device; DEVICE=cpu makes a dry run without one", file=sys.stderr)
        return 2
    if packed is not None and (why := pack.misfit(packed.manifest)):
        print(why, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))  # so that what was started is ended as well
    built = json.loads(os.environ.get(BUILT, "null"))
    if options.device == "cuda" and not options.no_build and packed is None:
        built = prepare.build(timeout=max(0.4 * options.budget, 90.0))
        print(f"csrc built in {built['seconds']:.0f} s: {', '.join(built['libraries']) or 'nothing'}")
        print(*built["messages"], sep="\n", flush=True)
    # What comes before the first section is in its time, of which most has to be left.
    first = max(options.budget - (time.monotonic() - begin), 0.7 * options.budget)
    if options.total is None:
        sections = options.sections or list(SECTIONS)
        return (
            run(options, built, first)
            if len(sections) == 1 and "+" not in sections[0]
            else each(options, sections, built, Clock(options.budget, first))
        )
    sections = options.sections or list(FIRST_CALL)
    options.out = out_of(options)
    anew = CompiledAnew(packed)
    status = each(options, sections, built, Clock(options.budget, first, begin + options.total), anew)
    line = verdict(options.out, sections, status, began, anew)
    if packed is not None and options.device == "cuda":
        packed.keep_inductor(options.out)
    print(f"{time.monotonic() - begin:.0f} s of {options.total:.0f}\n{line}", flush=True)
    return 1 if line.startswith("NEXT 2B") else status


def out_of(options: argparse.Namespace, facts: dict[str, Any] | None = None) -> Path:
    """The folder of the results."""
    from . import session as sessions

    if options.out:
        return options.out
    if options.device == "cpu":
        return sessions.ROOT / "build" / "dry-run"
    import torch

    from alt.measure import machine_slug

    found = facts or {"gpu": torch.cuda.get_device_name()}
    return sessions.ROOT / "benchmarks" / "results" / machine_slug(found)


def run(options: argparse.Namespace, built: object, seconds: float | None = None) -> int:
    """The sections in this process, ``seconds`` for the first."""
    import torch

    from . import session as sessions

    device = torch.device(options.device)
    facts = sessions.facts(device)
    if built is not None:
        facts["build"] = built
    import alt_kernels

    facts["backends"] = {name: list(backend) for name, backend in alt_kernels.backends().items()}
    out = out_of(options, facts)
    session = sessions.Session(device, out, options.budget, facts, options.device == "cpu")
    where = facts.get("gpu", facts["cpu"])
    sessions.say(f"{where}, commit {facts['commit']}, source {facts['source']}, torch {facts['torch']}")
    failed, late = [], 0
    for number, section in enumerate(options.sections or SECTIONS):
        limit = options.budget if number or seconds is None else seconds
        record = one(session, section, sessions.Budget(limit))
        failed += [f"{section}: {what}" for what in record["failed"]]
        late += record.get("tests_left_out", 0)
    for what in failed[:20]:
        print(f"FAILED {what}")
    return 1 if failed else TESTS_LEFT_OUT if late else 0


def one(session: Any, section: str, budget: Any) -> dict[str, Any]:
    """Run a section, write its file as it goes on, print its table."""
    from . import gpu_state
    from . import session as sessions

    begin, latest = time.monotonic(), {}
    states = {"before": gpu_state.read(session.device)}

    def keep(record: dict[str, Any]) -> None:
        latest.update(record)
        kept = record | {"gpu_state": states}
        sessions.write(session, section, kept, time.monotonic() - begin, budget.left_out, ended=False)

    dry = " (dry run on a CPU: no number here means anything)" if session.dry else ""
    sessions.say(f"\n== {section}{dry}, {budget.left():.0f} s at most")
    parts = [(section,)] if section in HALVES else [section] if section == FIRST_TESTS else []
    module = MODULES.get(section, section)
    try:
        found = importlib.import_module(f".{module}", __package__)
        record = found.run(session._replace(keep=keep), budget, *parts)
    except Exception as error:  # one section's failure is its result, beside what it had by then; the others still run
        record = latest | {"failed": [*latest.get("failed", []), f"{type(error).__name__}: {error}"]}
        record |= {"traceback": traceback.format_exc()}
        record["table"] = [*latest.get("table", []), *traceback.format_exc().splitlines()[-6:]]
    seconds = time.monotonic() - begin
    record |= {"gpu_state": states | {"after": gpu_state.read(session.device)}}
    path = sessions.write(session, section, record, seconds, budget.left_out)
    missing = [f"left out: {what}" for what in budget.left_out]
    for line in [*record["table"], *missing[:8], *([f"... and {len(missing) - 8} more"] if len(missing) > 8 else [])]:
        print(line[:200])
    sessions.say(f"{section}{dry}, {seconds:.0f} s: {len(record['failed'])} failed -> {path.name}")
    return record


def apply(path: Path) -> int:
    """Write the configurations of a kept `tune.json` into this checkout."""
    from tools import tune as tuner

    record = json.loads(path.read_text())
    for stem, entries in record["configs"].items():
        tuner.store(stem, record["gpu"], entries)
        print(f"{stem}: {len(entries)} entries for {record['gpu']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
