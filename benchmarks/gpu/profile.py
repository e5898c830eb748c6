"""Section `profile`: what the time of a tower is made of, kernel by kernel.

The sum over the kernels of a step says where merging's saving goes: which kernels shrink with the tokens, which are
added, and which are the host model's own. Only ViT-B/16 is looked at; a compiled tower takes half a minute to compile.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from . import clock, entrants, towers
from .session import Budget, Record, Session, number, table

STEPS = 4
SHOWN = 12  # kernels of a tower in the table; all are in the file
NAME = 64  # characters of a kernel's name in the table
#: Entrants of the towers, by what is run; the rest of a contest is not looked at.
WANTED = {
    towers.FORWARD: ("unmerged, SDPA, eager", "unmerged, our attention, eager", "ours r=8, eager", "ours r=13, eager"),
    towers.TRAINING: ("unmerged, SDPA, eager", "unmerged, our attention, eager", "ours r=8, eager"),
}
COMPILED = ("unmerged, SDPA, compiled", "unmerged, our attention, compiled", "ours r=8, compiled")


def run(session: Session, budget: Budget) -> Record:
    record: Record = {"profiles": [], "failed": [], "table": []}
    found = {c.what: c for c in towers.contests(session)[:3]}
    looks = [(what, name) for what, names in WANTED.items() for name in names]
    if not session.dry:
        looks += [(towers.FORWARD, name) for name in COMPILED]
    for what, name in looks:
        title = f"{found[what].name}: {name}"
        if not session.dry and not budget.has(45.0 if name in COMPILED else 4.0, title):
            continue
        call = towers.call_of(session, found[what], name)
        try:
            record["profiles"].append({"name": title, **look(session, call)})
        except Exception as error:
            record["failed"].append(f"{title}: {entrants.reason(error)}")
        session.keep(record | {"table": lines(record["profiles"])})
        del call
        clock.release(session.device)
        torch.compiler.reset()
    return record | {"table": lines(record["profiles"])}


def look(session: Session, call: Callable[[], Any]) -> Record:
    """Returns microseconds per step: of all kernels, of the gaps between them, and of every kernel with its count."""
    on_gpu = session.device.type == "cuda"
    for _ in range(3):
        call()
    once = statistics.median(clock.once(call, session.device) for _ in range(2 if session.dry else 7))
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            call()
        clock.synchronize(session.device)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [e for e in seen.events() if e.device_type == kind]
    micros: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        micros[event.name] += event.time_range.elapsed_us() / STEPS
        counts[event.name] += 1
    spans = sorted((e.time_range.start, e.time_range.end) for e in events)
    gaps, end = 0.0, spans[0][0] if spans else 0.0
    for start, stop in spans:
        gaps += max(start - end, 0.0)
        end = max(end, stop)
    kernels = [{"name": n, "us": us, "count": counts[n] / STEPS} for n, us in micros.most_common()]
    return {"call_us": 1e6 * once, "kernels_us": sum(micros.values()), "gaps_us": gaps / STEPS, "kernels": kernels}


def lines(profiles: list[Record]) -> list[str]:
    cells = []
    for found in profiles:
        total = f"call {number(found['call_us'], 4)}, gaps {number(found['gaps_us'])}"
        cells.append([found["name"], number(found["kernels_us"], 4), total])
        for kernel in found["kernels"][:SHOWN]:
            name = " ".join(kernel["name"].replace("void ", "").split())[:NAME]
            cells.append([f"    {name}", number(kernel["us"]), f"{kernel['count']:g}"])
    return table(["tower, kernel", "us", "launches"], cells)
