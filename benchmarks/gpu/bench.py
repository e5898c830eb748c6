"""Section `bench`: every kernel beside its floor, its target and its rivals; then whole towers (`towers.py`)."""

from __future__ import annotations

from typing import Any

import torch

from . import cases, clock, entrants, towers
from .cases import Case
from .session import Budget, Record, Session, number, table


def run(session: Session, budget: Budget) -> Record:
    """Kernels first, since a target hangs on each; towers get at least half of the time."""
    record: Record = {"ceilings": clock.ceilings(session.device, session.dry), "kernels": [], "towers": []}
    kernels = Budget(budget.left() * 0.5)
    for name, seconds, build in cases.all_cases(session):
        if kernels.has(0 if session.dry else seconds, name):
            record["kernels"].append(one(session, name, build, record["ceilings"]))
            clock.released()
    budget.left_out += kernels.left_out
    record["towers"] = towers.run(session, budget)
    record["table"] = [*kernel_table(record["kernels"]), "", *towers.lines(record["towers"])]
    bad = [row["name"] for row in record["kernels"] if "error" in row or "ours" not in row.get("entrants", {})]
    record["failed"] = bad + [row["name"] for row in record["towers"] if "error" in row]
    return record


def one(session: Session, name: str, build: Any, ceilings: dict[str, float]) -> Record:
    """Check every entrant, then time those that are right; what fails is a line, not the end."""
    try:
        case: Case = build()
    except Exception as error:
        return {"name": name, "error": entrants.reason(error)}
    row: Record = {"name": case.name, "shape": case.shape, "absent": dict(case.absent), "entrants": {}}
    row |= {"flops": case.flops, "bytes": case.bytes, "target_us": micro(case.target)}
    floor = max(case.bytes / ceilings["bytes_per_s"], case.flops / ceilings["flop_per_s"])
    row["floor_us"] = micro(floor)
    right: dict[str, Record] = {}
    for entrant, function in case.entrants.items():
        found: Record = {}
        try:
            peak = _peak(session.device, lambda f=function: f(0), case.single)
            if peak is not None:
                found["peak_bytes"] = peak
            if entrant not in case.unbiased:
                found["error"] = float(case.gates[entrant](function(0)))
                if not found["error"] <= case.bound:
                    row["absent"][entrant] = f"wrong by {found['error']:.2g}, allowed {case.bound:.2g}: not timed"
                    continue
            else:
                found["easier_problem"] = True
            right[entrant] = found
        except Exception as error:
            row["absent"][entrant] = entrants.reason(error)
            clock.released()
    calls = {
        n: [(lambda i=i, n=n: case.entrants[n](i)) for i in range(1 if case.single else cases.sets(session))]
        for n in right
    }
    rounds, seconds = (2, 0.0) if session.dry else (clock.ROUNDS, 6.0)
    try:
        timed = clock.interleave(calls, session.device, rounds=rounds, seconds=seconds)
    except Exception as error:
        return row | {"error": entrants.reason(error)}
    for entrant, times in timed.items():
        found = right[entrant]
        low, high = clock.spread(times)
        call = calls[entrant][0]
        count = 2 if session.dry else 20
        found |= {"us": micro(times.median), "quartiles_us": [micro(low), micro(high)], "how": times.how}
        found |= {"call_us": micro(_median([clock.once(call, session.device) for _ in range(count)]))}
        found |= {"host_us": micro(clock.host_seconds(call, session.device, count))}
        found["over_floor"] = times.median / floor
        if "ours" in timed:
            found["times_ours"] = clock.ratio(times, timed["ours"])
        row["entrants"][entrant] = found
    return row


def _peak(device: torch.device, call: Any, wanted: bool) -> int | None:
    """Bytes beyond what was held before, of the large problems only."""
    if not wanted or device.type != "cuda":
        return None
    import peak_memory

    return int(peak_memory.peak_beyond_now(call, device)[0])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def micro(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds


def kernel_table(rows: list[Record]) -> list[str]:
    heads = ["kernel, entrant", "us", "target", "floor", "x floor", "x ours", "call us", "host us"]
    lines: list[list[str]] = []
    for row in rows:
        if "error" in row:
            lines.append([f"{row['name']}: {row['error']}"[:70], *[""] * 7])
            continue
        for i, (name, found) in enumerate(row["entrants"].items()):
            title = f"{row['name']}: {name}" if i == 0 else f"    {name}"
            title += "" if found["how"] != "events" else " (not captured)"
            aim = [number(row["target_us"]), number(row["floor_us"])] if i == 0 else ["", ""]
            others = (found[key] for key in ("over_floor", "times_ours", "call_us", "host_us") if key in found)
            cells = [title, number(found["us"]), *aim, *map(number, others)]
            lines.append(cells + ["-"] * (8 - len(cells)))
        lines += [[f"    {name}: {why}"[:70], *[""] * 7] for name, why in row["absent"].items()]
    return table(heads, lines)
