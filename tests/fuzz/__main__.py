"""``python -m tests.fuzz``: mutated inputs of every kind, read in child processes with a limit of memory.

A child that dies names the input that killed it, and the next one goes on after it. Exit status 1 after any failure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections import Counter

from .kinds import KINDS
from .run import Outcome, read_inputs

ROOM = 3 << 30  # bytes of address space beyond what the imports take: a decoded input, and its copies on the way
GROWTH = (1 << 30) + (1 << 28)  # bytes of memory that one input may take


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=240, help="mutated inputs of each kind (240)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (0)")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="one kind; repeatable")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    if options.child is not None:
        _read(kinds[0], range(options.child, options.inputs), options.seed)
        return
    bad: list[str] = []
    print(f"{'kind':16s} {'inputs':>6s} {'read':>6s} {'refused':>7s} {'failed':>6s} {'largest growth':>14s}")
    for kind in kinds:
        outcomes = read_in_children(kind, options.inputs, options.seed)
        counts = Counter(outcome.verdict for outcome in outcomes)
        growth = max((outcome.growth for outcome in outcomes), default=0) / 1024
        print(
            f"{kind:16s} {len(outcomes):6d} {counts['read']:6d} {counts['refused']:7d} {counts['failed']:6d} "
            f"{growth:10.0f} MiB",
            flush=True,
        )
        for outcome in outcomes:
            if outcome.growth * 1024 > GROWTH:
                bad.append(f"{kind} {outcome.number}: {outcome.growth >> 10} MiB of memory, {outcome.message}")
            if outcome.verdict == "failed":
                bad.append(f"{kind} {outcome.number}: {outcome.message}")
    for line in bad[:50]:
        print(line)
    sys.exit(1 if bad else 0)


def read_in_children(kind: str, count: int, seed: int) -> list[Outcome]:
    """Returns the outcomes of all inputs of a kind, by as many children as it takes."""
    found: list[Outcome] = []
    while len(found) < count:
        command = [sys.executable, "-m", "tests.fuzz", "--kind", kind, "--seed", str(seed), "--inputs", str(count)]
        child = subprocess.run(
            [*command, "--child", str(len(found))],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines = [line for line in child.stdout.splitlines() if line.startswith("[")]
        found += [Outcome(*json.loads(line)) for line in lines]
        if len(found) < count:
            last = child.stderr.strip().splitlines()[-1:] or [""]
            found.append(Outcome(kind, len(found), "failed", f"the process died ({child.returncode}): {last[0]}", 0))
            if not lines and child.returncode > 0:  # not even its imports
                break
    return found


def _read(kind: str, numbers: range, seed: int) -> None:
    first = True
    for outcome in read_inputs(kind, numbers, seed):
        if first:  # the imports of the reader are done
            with open("/proc/self/statm", encoding="ascii") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
            first = False
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
