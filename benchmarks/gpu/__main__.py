"""`python -m gpu test sanitize tune bench train`, as `make gpu` calls it.

Every section writes ``OUT/<section>.json`` and prints a short table; it ends within its seconds, and says what it
left out. ``--device cpu`` runs the same code on a CPU with tiny shapes. ``--apply tune.json`` takes up the launch
configurations that a section `tune` found on another machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

SECTIONS = ("test", "sanitize", "tune", "bench", "train")
MODULES = {"test": "tests"}
#: Seconds of a section: below ten minutes with what comes before and after it.
BUDGET = 510.0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="make gpu", description="Everything that needs a GPU, in one command.")
    found.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {' '.join(SECTIONS)}; default: all")
    found.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/<device>")
    found.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a dry run with tiny shapes")
    found.add_argument("--budget", type=float, default=BUDGET, help="seconds of each section (default %(default)s)")
    found.add_argument("--wheels", help="folder of wheels to use beside what is installed (open_clip and its needs)")
    found.add_argument("--no-build", action="store_true", help="take the compiled library as it is")
    found.add_argument("--apply", type=Path, metavar="TUNE_JSON", help="take up configurations, and do nothing else")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        print(f"SECTIONS: expected some of {' '.join(SECTIONS)}, got {' '.join(unknown)}", file=sys.stderr)
        return 2
    if options.budget <= 0:
        print(f"BUDGET: expected seconds > 0, got {options.budget:g}", file=sys.stderr)
        return 2
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
    if options.apply:
        return apply(options.apply)

    from . import prepare

    if options.wheels:
        print(f"wheels unpacked from {options.wheels} to {prepare.install_wheels(options.wheels)}")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("DEVICE: torch sees no CUDA device; DEVICE=cpu makes a dry run without one", file=sys.stderr)
        return 2
    built = None
    if options.device == "cuda" and not options.no_build:
        built = prepare.build(timeout=0.4 * options.budget)
        print(f"csrc built in {built['seconds']:.0f} s: {', '.join(built['libraries']) or 'nothing'}")
        print(*built["messages"], sep="\n")
    return run(options, built)


def run(options: argparse.Namespace, built: dict[str, object] | None) -> int:
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
    failed, tables = [], []
    for section in options.sections or SECTIONS:
        budget, begin = sessions.Budget(options.budget), time.monotonic()
        try:
            record = importlib.import_module(f".{MODULES.get(section, section)}", __package__).run(session, budget)
        except Exception as error:  # one section's failure is its result; the others still run
            record = {"failed": [f"{type(error).__name__}: {error}"], "traceback": traceback.format_exc()}
            record["table"] = traceback.format_exc().splitlines()[-6:]
        seconds = time.monotonic() - begin
        path = sessions.write(session, section, record, seconds, budget.left_out)
        failed += [f"{section}: {what}" for what in record.get("failed", [])]
        title = f"{section}{' (dry run on a CPU: no number here means anything)' if dry else ''}, {seconds:.0f} s"
        tables.append([f"== {title} -> {path.name}", *record["table"], *(f"left out: {w}" for w in budget.left_out)])
        print(f"{title}: {len(record.get('failed', []))} failed", flush=True)
    where = facts.get("gpu", facts["cpu"])
    print(f"\n{where}, commit {facts['commit']}, source {facts['source']}, torch {facts['torch']}")
    for lines in tables:
        print("", *lines, sep="\n")
    for what in failed:
        print(f"FAILED {what}")
    return 1 if failed else 0


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
