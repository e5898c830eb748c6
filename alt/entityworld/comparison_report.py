"""Results of the comparison on disk: JSON with everything, tables in the paper's layout, orderings.

The paper's numbers have their own columns and are marked as such: their data, models and sizes differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alt.evaluate.spread import Spread, spread
from alt.files import read_json, replacing
from alt.measure import describe_machine
from alt.tables import to_csv, to_markdown

from .comparison_tables import TABLES, Numbers
from .orderings import Ordering, Results

__all__ = ["markdown", "records", "update_document", "write"]

ZERO = ("zero-shot transfer-a", "zero-shot transfer-b")
COLUMNS = ("seen", "2-shot", "zero-shot")


def measures(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Returns every measure over the seeds, and the mean of the zero-shot splits as "zero-shot"."""
    rows = [dict(run) for run in runs]
    seeds = [int(row.pop("seed", number)) for number, row in enumerate(rows)]
    for row in rows:
        known = [row[name] for name in ZERO if name in row]
        if known:
            row["zero-shot"] = sum(known) / len(known)
    return {name: spread([row[name] for row in rows], seeds) for name in rows[0] if all(name in row for row in rows)}


def markdown(results: Results, found: Sequence[Ordering], setting: Mapping[str, Any]) -> str:
    """Returns the whole report as one text."""
    by_method = {name: measures(runs) for name, runs in results.items() if runs}
    seeds = max((len(runs) for runs in results.values()), default=0)
    what = setting.get("what", "Embedded benchmark")
    parts = [f"{what}. Top-1 in percent, mean ± standard deviation over {seeds} seeds.\n"]
    if any(ordering.holds is not None for ordering in found):
        parts += ["## Orderings\n", _orderings(found)]
    parts += ["## All methods\n", _methods(by_method)]
    if setting.get("speed"):
        parts += ["## Cost of the whole models\n", _COSTS, _costs(setting["speed"])]
    for title, (source, rows) in TABLES.items():
        run = [row for row in rows if row[1] in by_method]
        if len(run) > 1:
            parts += [f"## {title}\n", f"The paper's columns: {source}.\n", _table(run, by_method)]
    return "\n".join(parts)


def _orderings(found: Sequence[Ordering]) -> str:
    """Returns the statements whose methods were run."""
    words = {True: "yes", False: "no"}
    head = ["", "statement", "has to hold", "holds", "found", "seeds"]
    rows = [
        [o.key, o.statement, "yes" if o.gated else "reported", words[o.holds], o.found, o.seeds]
        for o in found
        if o.holds is not None
    ]
    return to_markdown(head, rows, left=5)


def _methods(by_method: Mapping[str, Mapping[str, Spread]]) -> str:
    names = ["seen", "seen appearance", "seen motion", "seen compositional", "reversed"]
    names += ["zero-shot transfer-a", "zero-shot transfer-b", "zero-shot k600", "2-shot", "4-shot", "8-shot", "16-shot"]
    names += ["linear probe", "planted", "wrong", "match p=1", "match p=0.9", "match p=0.5", "match p=0.3"]
    names = [name for name in names if any(name in found for found in by_method.values())]
    rows = [
        [
            method,
            len(next(iter(found.values())).values),
            f"{found['gmacs'].mean:.4f}" if "gmacs" in found else None,
            *(found.get(name) for name in names),
        ]
        for method, found in by_method.items()
    ]
    return to_markdown(["method", "seeds", "GMACs", *names], rows)


_COSTS = """Speed and memory of one forward pass of eight clips on one thread, all methods in one interleaved run.
Speed is relative to the first method; a dash: the machine was too busy to measure it.
"""


def _costs(speed: Mapping[str, Mapping[str, float | None]]) -> str:
    first = next(iter(speed.values()))["frames/s"]
    head = ["method", "GMACs", "parameters, M", "trained, M", "speed", "peak, MiB"]
    rows = []
    for method, measured in speed.items():
        counts = [f"{measured[name]:.4f}" for name in ("gmacs", "parameters", "trained parameters")]
        memory, rate = measured["peak bytes"], measured["frames/s"]
        rows.append([method, *counts, f"{rate / first:.2f}" if rate and first else None, memory and memory / 2**20])
    return to_markdown(head, rows)


def _table(rows: Sequence[tuple[str, str, Numbers]], by_method: Mapping[str, Mapping[str, Spread]]) -> str:
    head = ["", "method here", *(f"{name}, here" for name in COLUMNS)]
    head += [f"{name}, the paper's" for name in ("full", "2-shot", "zero-shot")]
    body = [
        [what, method, *(by_method.get(method, {}).get(name) for name in COLUMNS), *printed]
        for what, method, printed in rows
    ]
    return to_markdown(head, body, left=2)


def records(methods: Mapping[str, Mapping[str, Spread]]) -> tuple[list[str], list[list[Any]]]:
    """Returns head and rows of a long table: one row per method and measure, with its values and their seeds."""
    head = ["method", "measure", "mean", "std", "n", "values", "seeds"]
    rows: list[list[Any]] = []
    for method, found in methods.items():
        for measure, value in found.items():
            values = " ".join(f"{v:.4f}" for v in value.values)
            seeds = " ".join(str(seed) for seed in value.seeds)
            rows.append([method, measure, value.mean, value.std, len(value.values), values, seeds])
    return head, rows


def write(
    out: str | os.PathLike[str], results: Results, found: Sequence[Ordering], setting: Mapping[str, Any]
) -> list[Path]:
    """Writes results.json, results.csv and results.md into the folder ``out`` and returns their paths."""
    folder = Path(out)
    record = {
        "setting": dict(setting),
        "machine": describe_machine("cuda" if torch.cuda.is_available() else "cpu"),
        "orderings": [ordering._asdict() for ordering in found],
        "results": {name: [dict(run) for run in runs] for name, runs in results.items()},
    }
    by_method = {name: measures(runs) for name, runs in results.items() if runs}
    texts = {
        "results.json": json.dumps(record, indent=1, ensure_ascii=False) + "\n",
        "results.csv": to_csv(*records(by_method)),
        "results.md": markdown(results, found, setting),
    }
    for name, text in texts.items():
        with replacing(folder / name, "the results") as file:
            file.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def update_document(document: str | os.PathLike[str], results: str | os.PathLike[str]) -> None:
    """Replaces the text between the marks of a Markdown document by the tables of a results.json.

    The marks are the lines ``<!-- results: begin -->`` and ``<!-- results: end -->``.

    Raises:
        ValueError: the document has no marks.
    """
    path = Path(document)
    text = path.read_text(encoding="utf-8")
    record = read_json(results)
    begin, end = (f"<!-- results: {place} -->\n" for place in ("begin", "end"))
    if begin not in text or end not in text:
        raise ValueError(f"document: expected the lines {begin.strip()!r} and {end.strip()!r} in {path}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    where = record["machine"]
    told = (
        f"Made at commit {where['commit']} with torch {where['torch']} on {where['cpu']}, {where['threads']} thread(s)."
    )
    tables = markdown(record["results"], [Ordering(**row) for row in record["orderings"]], record["setting"])
    body = f"{told}\n\n{tables}".replace("\n## ", "\n### ")
    with replacing(path, "the document") as file:
        file.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:
        sys.exit("usage: python -m alt.entityworld.comparison_report RESULTS.json DOCUMENT.md")
    update_document(sys.argv[2], sys.argv[1])
