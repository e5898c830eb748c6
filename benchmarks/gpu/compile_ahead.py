"""Section `compile`: what `torch.compile` makes for the towers and the rivals, into the cache that they read.

It needs the processor for most of its time, as the tests do for Triton's compiler, so both run side by side
(``agree+compile``). A tower of twelve blocks takes twenty seconds cold and three from the cache.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import cases, clock, entrants, towers
from .session import Budget, Record, Session, number, say, table

TOWER, RIVAL = 25.0, 6.0  # seconds of each, about


def run(session: Session, budget: Budget) -> Record:
    """The headline's towers first. What cannot be compiled is named here, and fails where it is measured."""
    record: Record = {"compiled": [], "absent": {}, "failed": [], "table": []}
    for name, seconds, build in everything(session):
        if not session.dry and not budget.has(seconds, name):
            continue
        begin = time.monotonic()
        try:
            build()()
            clock.synchronize(session.device)
        except Exception as error:
            record["absent"][name] = entrants.reason(error)
        else:
            record["compiled"].append({"name": name, "seconds": time.monotonic() - begin})
            say(f"  compiled in {number(time.monotonic() - begin)} s: {name}")
        record["table"] = lines(record)
        session.keep(record)
        clock.release(session.device)
        torch.compiler.reset()
    return record


def everything(session: Session) -> Iterator[tuple[str, float, Callable[[], Callable[[], Any]]]]:
    """Name, seconds, and what builds the call that compiles."""
    contests = [c for c in towers.contests(session) if c.what == towers.FORWARD]
    dtype = torch.float32 if session.dry else torch.bfloat16

    def tower(c: towers.Contest, name: str) -> Callable[[], Any]:
        base = towers.build(c.vit, session.device, dtype)
        images = towers.images_of(session, c, dtype)[0]
        step = next(e for e in towers.entrants_of(session, base, c) if e.name == name).build()
        return lambda: step(images)

    def rival(build: Callable[[], cases.Case], name: str) -> Callable[[], Any]:
        return lambda: build().entrants[name](0)

    for c in contests[:1]:
        base = towers.build(c.vit, session.device, dtype)
        for name in [e.name for e in towers.entrants_of(session, base, c) if e.compiled]:
            yield f"{c.name}: {name}", TOWER, lambda c=c, name=name: tower(c, name)
    for title, _, build in cases.all_cases(session):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = [] if session.dry else [name for name in build().entrants if entrants.compiles(name)]
        for name in names:
            yield f"{title}: {name}", RIVAL, lambda build=build, name=name: rival(build, name)


def lines(record: Record) -> list[str]:
    rows = [[found["name"], number(found["seconds"])] for found in record["compiled"]]
    return [*table(["compiled ahead", "s"], rows), *(f"{name}: {why}"[:110] for name, why in record["absent"].items())]
