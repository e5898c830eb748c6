"""From kept measurements to the README: tables, plots, and a check that they are up to date.

    python benchmarks/report.py                    rewrite the README's section and the plots
    python benchmarks/report.py --check            exit with 1 if the README is not what the kept results say
    python benchmarks/report.py --keep out.json    first keep a run (pytest --benchmark-json=out.json), then rewrite

Kept results live in ``results/<device>/<date>-<commit>.json``, in pytest-benchmark's format without the single
rounds. Of each device the newest result of every benchmark is shown, so a run may be of a part of them. The README's
section lies between two marker comments.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
README = BENCHMARKS.parent / "README.md"
RESULTS = BENCHMARKS / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PLOT, TRADEOFF_PLOT = "speedup.svg", "tradeoff.svg"

Record = dict[str, Any]


def trim(raw: Record) -> Record:
    """A pytest-benchmark file without single rounds, host name and the long list of processor flags."""
    machine = raw["machine_info"]
    if "alt" not in machine:
        raise ValueError("the file has no machine facts of these benchmarks: was it written by `pytest benchmarks`?")
    kept = ("name", "fullname", "group", "params", "extra_info")
    return {
        "machine_info": {"alt": machine["alt"]} | {k: machine[k] for k in ("machine", "system") if k in machine},
        "commit_info": {k: raw.get("commit_info", {}).get(k) for k in ("id", "time", "dirty")},
        "benchmarks": [
            {k: b[k] for k in kept if k in b}
            | {"stats": {k: v for k, v in b["stats"].items() if k not in ("data", "outliers")}}
            for b in raw["benchmarks"]
        ],
        "datetime": raw["datetime"],
        "version": raw["version"],
    }


def keep(path: Path, results: Path) -> Path:
    """Trim ``path`` into the results folder of its device and return where it went."""
    import machine

    record = trim(json.loads(path.read_text()))
    facts = record["machine_info"]["alt"]
    target = results / machine.slug(facts) / f"{record['datetime'][:10]}-{facts['commit']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_rounded(record), indent=1) + "\n")
    return target


def newest(results: Path) -> dict[str, Record]:
    """By device (folder name): its latest record, completed with what older ones measured and it did not.

    Every benchmark carries the commit and day of the run it comes from, as ``origin``.
    """
    merged: dict[str, Record] = {}
    records = [(path.parent.name, json.loads(path.read_text())) for path in results.glob("*/*.json")]
    records = [pair for pair in records if "benchmarks" in pair[1]]  # the others are of `make gpu`
    for device, record in sorted(records, key=lambda pair: pair[1]["datetime"], reverse=True):
        for benchmark in record["benchmarks"]:
            benchmark["origin"] = (state(record), record["datetime"][:10])
        into = merged.setdefault(device, {**record, "benchmarks": []})
        known = {benchmark["fullname"] for benchmark in into["benchmarks"]}
        into["benchmarks"] += [b for b in record["benchmarks"] if b["fullname"] not in known]
    return merged


def state(record: Record) -> str:
    """The commit a record was measured at."""
    facts = record["machine_info"]["alt"]
    return f"{facts['commit']}{' with local changes' if facts.get('modified') else ''}"


def origins(record: Record) -> str:
    """Which commit, and where several runs are shown, which files of benchmarks each is of."""
    files: dict[tuple[str, str], list[str]] = {}
    for benchmark in record["benchmarks"]:
        names = files.setdefault(benchmark.get("origin", (state(record), record["datetime"][:10])), [])
        name = benchmark["fullname"].split("::")[0].rpartition("/")[2].removesuffix(".py")
        if name not in names:
            names.append(name)
    if len(files) == 1:
        return "commit {}, {}".format(*next(iter(files)))
    return "; ".join(f"commit {commit}, {day} for {', '.join(names)}" for (commit, day), names in files.items())


def section(records: dict[str, Record]) -> str:
    """Markdown of every device's newest record."""
    if not records:
        return "No result has been kept yet; `benchmarks/README.md` says how to measure.\n"
    return "\n".join(device_section(device, record) for device, record in sorted(records.items()))


def device_section(device: str, record: Record) -> str:
    facts = record["machine_info"]["alt"]
    on_gpu = facts["device"] == "cuda"
    where = facts["gpu"] if on_gpu else f"{facts['cpu']}, {facts['isa']}, {facts['threads']} thread"
    lines = [
        f"**{where}**, torch {facts['torch']}, {origins(record)}. Every number is the median,"
        " over interleaved rounds, of a ratio within a round, with its 95 % interval; every entrant had first to"
        " agree with a float64 definition." + ("" if facts["full"] else " Short run."),
        "",
        *_operations(record),
        *_towers(record),
        *_memory(record),
        *_training_memory(record),
        f"![speed-ups on {where}](benchmarks/results/{device}/{PLOT})",
        "",
        *_tradeoff(device, record),
    ]
    return "\n".join(lines)


def _operations(record: Record) -> list[str]:
    rows = [b["extra_info"] for b in record["benchmarks"] if "ratio" in b["extra_info"]]
    rows = [info for info in rows if "saving_realised" not in info]
    if not rows:
        return []
    lines = ["| operation | against | speed-up | target | time over its floor |", "|---|---|--:|--:|---|"]
    for info in rows:
        floor = "; ".join(f"{v['median']:.2f} x {name}" for name, v in info["over_floor"].items())
        for i, (rival, ratio) in enumerate(info["ratio"].items()):
            what, least = (operation_name(info), floor) if i == 0 else ("", "")
            target = f"{info['targets'][rival]:g}" if rival in info["targets"] else ""
            lines.append(f"| {what} | {rival} | {interval(ratio)} | {target} | {least} |")
        lines += [f"| | {rival} | not run: {why} | | |" for rival, why in info.get("absent", {}).items()]
    return [*lines, ""]


def operation_name(info: Record) -> str:
    function, _, rest = info["title"].partition(", ")
    return f"`{function}`{', ' + rest if rest else ''}<br>{info['shape']}"


def _towers(record: Record) -> list[str]:
    lines: list[str] = []
    for info in (b["extra_info"] for b in record["benchmarks"] if "saving_realised" in b["extra_info"]):
        target = info["saving_target"]
        lines += [
            f"{info['title']}, {info['shape'].removesuffix(', r = 8')}, against open_clip's unpatched tower",
            "",
            "| r | tokens left | GMACs | FLOP ratio | speed-up | share of the FLOP saving realised |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for label, share in info["saving_realised"].items():
            r = label.split(",")[0]
            base, macs = info["macs"]["0"], info["macs"][r]
            aim = f" (target {100 * target:.0f} %)" if label == "8" else ""
            who = label.replace(", plain torch", " (plain-torch merging)")
            lines.append(
                f"| {who} | {info['tokens_left'][r]} | {macs / 1e9:.1f} | {base / macs:.3f} |"
                f" {interval(info['speedup'][label], 3)} | {interval(share, 0, 100)} %{aim} |"
            )
        lines.append("")
    return lines


def _memory(record: Record) -> list[str]:
    rows = [b["extra_info"] for b in record["benchmarks"] if "extra_bytes" in b["extra_info"]]
    if not rows:
        return []
    names = list(rows[0]["extra_bytes"])
    lines = [
        f"| peak memory beyond what was held before the call, over inputs and outputs | {' | '.join(names)} | target |",
        "|---|" + "--:|" * (len(names) + 1),
    ]
    for info in rows:
        cells = [f"{info['over_inputs_and_outputs'][n]:.2f} ({info['extra_bytes'][n] / 2**20:.0f} MiB)" for n in names]
        title = info["title"].split(",")[0]
        lines.append(f"| `{title}` forward and backward, {info['shape']} | {' | '.join(cells)} | {info['target']:g} |")
    return [*lines, ""]


def _training_memory(record: Record) -> list[str]:
    rows = [b["extra_info"] for b in record["benchmarks"] if "step_bytes" in b["extra_info"]]
    if not rows:
        return []
    names = list(rows[0]["step_bytes"])
    lines = [
        f"| peak memory of forward and backward beyond weights and inputs | {' | '.join(names)} | of it gradients |",
        "|---|" + "--:|" * (len(names) + 1),
    ]
    for info in rows:
        cells = [f"{info['step_bytes'][name] / 2**20:.0f} MiB" for name in names]
        lines.append(f"| {info['shape']} | {' | '.join(cells)} | {info['gradient_bytes'] / 2**20:.0f} MiB |")
    return [*lines, ""]


def tradeoff_of(record: Record) -> Record | None:
    """The trade-off across r in a kept record, if it has one."""
    found = [b["extra_info"]["tradeoff"] for b in record["benchmarks"] if "tradeoff" in b["extra_info"]]
    return found[0] if found else None


def _tradeoff(device: str, record: Record) -> list[str]:
    found = tradeoff_of(record)
    if found is None:
        return []
    from alt.evaluate.tradeoff_report import from_record, markdown, paper_markdown

    setting = found["setting"]
    return [
        f"**Accuracy against cost as r grows**, {setting['data']} (chance {setting['chance']:.1f} %),"
        f" {setting['training']}, {len(setting['seeds'])} seed{'s' if len(setting['seeds']) > 1 else ''}:",
        "",
        markdown(from_record(found).rows),
        "The paper's models: GMACs counted here; GFLOPs and accuracies are the paper's (Kinetics-400), not measured"
        " here.",
        "",
        paper_markdown(found["paper"]),
        f"![accuracy against cost](benchmarks/results/{device}/{TRADEOFF_PLOT})",
        "",
    ]


def interval(value: Record, digits: int = 2, scale: float = 1.0) -> str:
    low, median, high = (f"{scale * value[k]:.{digits}f}" for k in ("low", "median", "high"))
    return f"{median} [{low}, {high}]"


def replaced(text: str, body: str) -> str:
    """``text`` with what stands between the markers replaced by ``body``."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected one line {BEGIN} followed by one line {END}")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{body}{END}{rest.split(END)[1]}"


def _rounded(value: Any) -> Any:
    """Six significant digits are more than a timing has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="only compare; exit with 1 if the README is stale")
    action.add_argument("--keep", type=Path, metavar="JSON", help="a pytest-benchmark file to keep")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(BENCHMARKS))
    if options.keep is not None:
        print(f"kept {keep(options.keep, RESULTS).relative_to(BENCHMARKS.parent)}")
    records = newest(RESULTS)
    text = README.read_text()
    from gpu import report as gpu_report

    wanted = replaced(text, section(records) + gpu_report.section(RESULTS))
    if options.check:
        missing = [
            device
            for device, record in records.items()
            for plot in (PLOT, *([TRADEOFF_PLOT] if tradeoff_of(record) else []))
            if not (RESULTS / device / plot).exists()
        ]
        if wanted == text and not missing:
            return 0
        print("README.md does not show the kept results: run `python benchmarks/report.py`", file=sys.stderr)
        return 1
    import plots

    for device, record in records.items():
        plots.draw(record, RESULTS / device / PLOT)
        found = tradeoff_of(record)
        if found is not None:
            from alt.evaluate.tradeoff_report import draw

            draw(found, RESULTS / device / TRADEOFF_PLOT)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
