"""Section `bench`: every kernel beside its floor, its target and its rivals; then whole towers (`towers.py`).

Sections `kernels` and `towers` are its halves, each with a budget of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import cases, clock, entrants, towers
from .cases import Case
from .session import Budget, Record, Session, number, say

PARTS = ("kernels", "towers")
QUICK = 4.0  # seconds of a case without what has to be compiled by `torch.compile`, about


def run(session: Session, budget: Budget, parts: Sequence[str] = PARTS) -> Record:
    """Kernels first, since a target hangs on each; towers get at least half of the time."""
    record: Record = {"kernels": [], "towers": []}

    def keep() -> None:
        session.keep(finished(record))

    if "kernels" in parts:
        record["ceilings"] = clock.ceilings(session.device, session.dry)
        clock.release(session.device)
        keep()
        part = Budget(budget.left() * (0.5 if "towers" in parts else 1.0))
        kernels(session, part, record, keep)
        budget.left_out += part.left_out
    if "towers" in parts:
        towers.run(session, budget, record["towers"], keep)
    return finished(record)


def finished(record: Record) -> Record:
    rows, others = record["kernels"], record["towers"]
    table = [*kernel_lines(rows), *([""] if rows and others else []), *towers.lines(others)]
    bad = [row["name"] for row in rows if "error" in row or "ours" not in row.get("entrants", {})]
    return record | {"table": table, "failed": bad + [row["name"] for row in others if "error" in row]}


def kernels(session: Session, budget: Budget, record: Record, keep: Callable[[], None]) -> None:
    """Every case first without what is slow to compile, so that each target has its row; then with all rivals."""
    listed = list(cases.all_cases(session))
    places: dict[str, int] = {}
    for name, _, build in listed:
        if session.dry or budget.has(QUICK, name):
            row = one(session, name, build, record["ceilings"], quick=not session.dry)
            places[name] = len(record["kernels"])
            record["kernels"].append(row)
            _report(row)
            keep()
            clock.release(session.device)
    for name, seconds, build in listed:
        if name not in places or not (late := record["kernels"][places[name]].get("later")):
            continue
        if budget.has(seconds, f"{name}: {', '.join(late)}"):
            row = one(session, name, build, record["ceilings"])
            if "error" not in row:
                record["kernels"][places[name]] = row
            _report(row)
            keep()
            clock.release(session.device)


def _report(row: Record) -> None:
    ours = row.get("entrants", {}).get("ours", {})
    say(f"  {row['name']}: {row['error'] if 'error' in row else number(ours.get('us')) + ' us'}")


def one(session: Session, name: str, build: Any, ceilings: dict[str, float], *, quick: bool = False) -> Record:
    """Check every entrant, then time those that are right; what fails is a line, not the end.

    Args:
        quick: leave out what `torch.compile` has to compile, and name it under "later".
    """
    try:
        case: Case = build()
    except Exception as error:
        return {"name": name, "error": entrants.reason(error)}
    late = frozenset(filter(entrants.compiles, case.entrants)) if quick else frozenset()
    case = case.without(late)
    floors = case.floors(ceilings)
    floor = max(floors.values())
    row: Record = {"name": case.name, "shape": case.shape, "absent": dict(case.absent), "entrants": {}}
    row |= {"flops": case.flops, "bytes": case.bytes, "sets": case.sets, "later": sorted(late)}
    row |= {"target_us": micro(case.target.here(floors)), "floor_us": micro(floor)}
    row["floors_us"] = {name: micro(seconds) for name, seconds in floors.items()}
    right: dict[str, Record] = {}
    for entrant, function in case.entrants.items():
        try:
            found, why = check(session, case, entrant, function)
        except Exception as error:
            found, why = {}, entrants.reason(error)
            clock.release(session.device)
        if why:
            row["absent"][entrant] = why
        else:
            right[entrant] = found
    calls = {n: [(lambda i=i, n=n: case.entrants[n](i)) for i in range(case.sets)] for n in right}
    rounds, seconds = (2, 0.0) if session.dry else (clock.ROUNDS, 6.0)
    failed: dict[str, Exception] = {}
    timed = clock.interleave(
        calls, session.device, rounds=rounds, seconds=seconds, launched=entrants.FOREIGN, failed=failed
    )
    for entrant, times in timed.items():
        try:
            found = right[entrant] | measured(session, times, calls[entrant][0])
        except Exception as error:
            failed[entrant] = error
            clock.release(session.device)
            continue
        row["entrants"][entrant] = found | {"over_floor": times.median / floor}
    if "ours" in row["entrants"]:
        for entrant, found in row["entrants"].items():
            found["times_ours"] = clock.ratio(timed[entrant], timed["ours"])
    for entrant, error in failed.items():  # its own row, not ours
        row["absent"][entrant] = f"while it was timed: {entrants.reason(error)}"
    return row


def check(session: Session, case: Case, entrant: str, function: Callable[[int], Any]) -> tuple[Record, str]:
    """Returns an entrant's error and peak memory, and the reason if it must not be timed."""
    found: Record = {}
    if case.peak and session.device.type == "cuda":
        from alt.measure import measure_peak

        function(0)  # libraries take their workspaces
        found["peak_bytes"] = measure_peak(lambda: function(0), session.device).bytes
    if entrant in case.unbiased:
        function(0)
        return found | {"easier_problem": True}, ""
    found["error"] = float(case.gates[entrant](function(0)))
    wrong = not found["error"] <= case.bound
    return found, f"wrong by {found['error']:.2g}, allowed {case.bound:.2g}: not timed" if wrong else ""


def measured(session: Session, times: clock.Timed, call: Callable[[], object]) -> Record:
    low, high = clock.spread(times)
    count = 2 if session.dry else 20
    found: Record = {"us": micro(times.median), "quartiles_us": [micro(low), micro(high)], "how": times.how}
    found |= {"why": times.why} if times.why else {}
    found["call_us"] = micro(sorted(clock.once(call, session.device) for _ in range(count))[count // 2])
    found["host_us"] = micro(clock.host_seconds(call, session.device, count))
    return found


def micro(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds


def kernel_lines(rows: list[Record]) -> list[str]:
    """Two lines a kernel, since a whole run has to fit a screen: all numbers are in the file."""
    lines = []
    for row in rows:
        ours = row.get("entrants", {}).get("ours")
        if "error" in row or ours is None:
            lines.append(
                f"{row['name']}: {row.get('error') or 'ours: ' + row['absent'].get('ours', 'not timed')}"[:160]
            )
            continue
        aim = "" if row["target_us"] is None else f", target {number(row['target_us'])}"
        lines.append(
            f"{row['name']}: {number(ours['us'])} us{_how(ours)}{aim}, floor {number(row['floor_us'])}"
            f" ({number(ours['over_floor'])} x), call {number(ours['call_us'])}, host {number(ours['host_us'])}"
        )
        others = [f"{n} {number(f['times_ours'])} x{_how(f)}" for n, f in row["entrants"].items() if n != "ours"]
        if others:
            lines.append(f"    {'; '.join(others)}")
        lines += [f"    {name}: {why}"[:110] for name, why in row["absent"].items()]
    return lines


def _how(found: Record) -> str:
    return " (not captured)" if found["how"] == "events" else ""
