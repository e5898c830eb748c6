"""Kept results of `make gpu` as Markdown for docs/results.md; imported by ``benchmarks/report.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alt.tables import to_markdown

Record = dict[str, Any]


METHOD = (
    "Kernel times are medians over interleaved rounds of CUDA-graph replays over rotated random inputs; every"
    " entrant had first to agree with a float64 definition. Floors are bytes and operations over this machine's"
    " own copy bandwidth and matrix rate. Towers run in bfloat16; the share of the saving is (1 - t_r / t_0) / (1"
    " - F_r / F_0), t_0 of the fastest unmerged entrant of the same rounds."
)


def kept(results: Path) -> dict[str, list[dict[str, Record]]]:
    """By device (folder name) the runs, newest first: sections measured from one source. Dry runs do not count."""
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for path in sorted(results.glob("*/*.json")):
        record = json.loads(path.read_text())
        if is_section(record) and not record["dry_run"]:
            found.setdefault(path.parent.name, {}).setdefault(record["facts"]["source"], {})[record["section"]] = record

    def finished(sections: dict[str, Record]) -> str:
        return max(record["finished"] for record in sections.values())

    return {device: sorted(runs.values(), key=finished, reverse=True) for device, runs in found.items()}


def is_section(record: Record) -> bool:
    return "section" in record and "facts" in record


def section(results: Path) -> str:
    """Empty where no result of a GPU has been kept."""
    found = kept(results)
    lines = [["", METHOD] if found else [], *(["", *_run(sections)] for runs in found.values() for sections in runs)]
    return "".join("\n".join(part) + "\n" for part in lines if part)


def _run(sections: dict[str, Record]) -> list[str]:
    newest = max(sections.values(), key=lambda record: record["finished"])
    facts = newest["facts"]
    lines = [
        f"**{facts['gpu']}**, driver {facts['driver']}, CUDA {facts['cuda']}, torch {facts['torch']}, Triton"
        f" {facts['triton']}, commit {facts['commit']} (source {facts['source']}), {newest['finished'][:10]}.",
        "",
    ]
    for name in ("agree", "test", "sanitize"):
        if name in sections:
            bad, counts = sections[name]["failed"], sections[name].get("counts", {})
            passed = sum(found.get("passed", 0) for found in counts.values())
            told = f"{len(bad)} failed" if bad else "nothing failed"
            lines.append(f"Section `{name}`: {told}{f', {passed} passed' if passed else ''}.{_late(sections[name])}")
    for rows, table in (("kernels", _kernels), ("towers", _towers)):
        # `bench` is both of its halves, each of which may have been run again alone.
        found = [r for r in sections.values() if r["section"] in ("bench", rows) and r.get(rows)]
        if found:
            latest = max(found, key=lambda record: record["finished"])
            lines += ["", *table(latest), _late(latest).strip()]
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]


def _late(record: Record) -> str:
    stopped = "" if record.get("ended", True) else " It was stopped before its end."
    return stopped + (f" Left out: {'; '.join(record['left_out'])}." if record["left_out"] else "")


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _kernels(record: Record) -> list[str]:
    head = ["kernel", "entrant", "us", "target", "floor", "time over floor", "over ours", "call, us", "launch, us"]
    body: list[list[str]] = []
    for row in record["kernels"]:
        if "error" in row:
            body.append([row["name"], "", f"not measured: {row['error']}", *[""] * 6])
            continue
        for i, (name, found) in enumerate(row["entrants"].items()):
            name += " (an easier problem)" if found.get("easier_problem") else ""
            name += " (not captured)" if found.get("how") == "events" else ""
            if "peak_bytes" in found:
                name += f", {found['peak_bytes'] / 2**30:.2g} GiB beside the inputs"
            title = f"{row['name']}<br>{row['shape']}" if i == 0 else ""
            aim = (_number(row["target_us"]), _number(row["floor_us"])) if i == 0 else ("", "")
            values = (found["over_floor"], found.get("times_ours"), found["call_us"], found.get("host_us"))
            body.append([title, name, _number(found["us"]), *aim, *map(_number, values)])
        body += [["", name, f"not run: {why}", *[""] * 6] for name, why in row["absent"].items()]
    return [*to_markdown(head, body, left=2).splitlines(), ""]


def _towers(record: Record) -> list[str]:
    if not record["towers"]:
        return []
    head = ["tower", "entrant", "ms", "speed-up over the fastest unmerged", "FLOP ratio", "share of the saving"]
    body: list[list[str]] = []
    for row in record["towers"]:
        if "error" in row:
            body.append([row["name"], f"not measured: {row['error']}", *[""] * 4])
            continue
        timed = {name: found for name, found in row["entrants"].items() if "ms" in found}
        for i, (name, found) in enumerate(timed.items()):
            ratio = row["macs"]["0"] / row["macs"][str(found["r"])]
            share = found.get("saving_realised")
            cells = (_number(found["ms"], 4), _number(found.get("speedup"), 4), _number(ratio, 4))
            part = "" if share is None else f"{100 * share:.0f} %"
            body.append([row["name"] if i == 0 else "", name, *cells, part])
        body += [["", name, f"not run: {why}", *[""] * 3] for name, why in row["absent"].items()]
    return [*to_markdown(head, body, left=2).splitlines(), ""]
