"""Section `compile`: what `torch.compile` makes for the towers and the rivals, into the cache that they read.

It needs the processor for most of its time, as the tests do for Triton's compiler, so both run side by side
(``agree+compile``). A tower of twelve blocks takes twenty seconds cold and three from the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import cases, clock, entrants, towers
from .session import Budget, Record, Session, number, say, table

TOWER, RIVALS = 25.0, 10.0  # seconds of a tower, and of all rivals of a kernel, about


def run(session: Session, budget: Budget) -> Record:
    """The headline's towers first. What cannot be compiled is named here, and fails where it is measured."""
    record: Record = {"compiled": [], "absent": {}, "failed": [], "table": []}
    for name, seconds, work in everything(session):
        if not session.dry and not budget.has(seconds, name):
            continue
        try:
            for part, call in work():
                begin = time.monotonic()
                try:
                    call()
                    clock.synchronize(session.device)
                except Exception as error:
                    record["absent"][part] = entrants.reason(error)
                else:
                    record["compiled"].append({"name": part, "seconds": time.monotonic() - begin})
                    say(f"  compiled in {number(time.monotonic() - begin)} s: {part}")
        except Exception as error:  # it cannot even be built
            record["absent"][name] = entrants.reason(error)
        record["table"] = lines(record)
        session.keep(record)
        clock.release(session.device)
        torch.compiler.reset()
    return record


Parts = Iterator[tuple[str, Callable[[], Any]]]


def everything(session: Session) -> Iterator[tuple[str, float, Callable[[], Parts]]]:
    """Name, seconds, and what builds the calls that compile: one tower each, all rivals of a kernel from one case."""
    contest = next(c for c in towers.contests(session) if c.what == towers.FORWARD)

    def tower(name: str) -> Parts:
        yield f"{contest.name}: {name}", towers.call_of(session, contest, name)

    def rivals(title: str, build: Callable[[], cases.Case]) -> Parts:
        case = build()
        for name in filter(entrants.compiles, case.entrants):
            yield f"{title}: {name}", lambda name=name: case.entrants[name](0)

    base = towers.build(contest.vit, session.device, torch.float32)
    for name in [e.name for e in towers.entrants_of(session, base, contest) if e.compiled]:
        yield f"{contest.name}: {name}", TOWER, lambda name=name: tower(name)
    for title, _, build in () if session.dry else cases.all_cases(session):
        yield title, RIVALS, lambda title=title, build=build: rivals(title, build)


def lines(record: Record) -> list[str]:
    rows = [[found["name"], number(found["seconds"])] for found in record["compiled"]]
    return [*table(["compiled ahead", "s"], rows), *(f"{name}: {why}"[:110] for name, why in record["absent"].items())]
