"""Writes docs/results.md, its plots and the README's five rows from the kept measurements, or checks them.

    python benchmarks/report.py                    rewrite the page, the plots and the README's rows
    python benchmarks/report.py --check            exit with 1 if one of them differs from the kept results
    python benchmarks/report.py --keep out.json    first keep a run (pytest --benchmark-json=out.json), then rewrite

Kept results are in ``results/<device>/<date>-<commit>.json``, in pytest-benchmark's format without single rounds. The
page shows the newest result of every benchmark per device, so a run may cover a part of them. The README's rows are
between two marker comments.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import report_forms

from alt.tables import to_markdown

BENCHMARKS = Path(__file__).resolve().parent
README = BENCHMARKS.parent / "README.md"
PAGE = BENCHMARKS.parent / "docs" / "results.md"
PLOTS = "plots"  # beside the page
RESULTS = BENCHMARKS / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PLOT, TRADEOFF_PLOT = "speedup.svg", "tradeoff.svg"

HEAD = """# Results

Written by `python benchmarks/report.py` from `benchmarks/results`; a test fails if this page differs from them.
For the method of measurement and its rules, see
[benchmarks/README.md](https://github.com/alt-kernels/alt-kernels/blob/main/benchmarks/README.md).
On a CPU only ratios are claimed, with one thread.
"""
GATED = ", with its 95 % interval; every entrant had first to agree with a float64 definition."
NO_GPU = "The kernels for GPUs have not been measured yet.\n"

Record = dict[str, Any]


def trim(raw: Record) -> Record:
    """Returns a pytest-benchmark file without single rounds, host name and the long list of processor flags."""
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
    """Trims ``path`` into the results folder of its device and returns the new path.

    A run of other benchmarks on the same day at the same commit is joined: they stay in the file.
    """
    from alt.measure import machine_slug

    record = trim(json.loads(path.read_text()))
    facts = record["machine_info"]["alt"]
    target = results / machine_slug(facts) / f"{record['datetime'][:10]}-{facts['commit']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        measured = {benchmark["fullname"] for benchmark in record["benchmarks"]}
        earlier = json.loads(target.read_text())["benchmarks"]
        record["benchmarks"] += [b for b in earlier if b["fullname"] not in measured]
    target.write_text(json.dumps(_rounded(record), indent=1) + "\n")
    return target


def newest(results: Path) -> dict[str, Record]:
    """Returns the latest record per device (folder name), with older results for benchmarks that it lacks.

    Every benchmark has the commit and day of its run, as ``origin``.
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
    """Returns the commit at which a record was measured, and whether its rounds were few."""
    facts = record["machine_info"]["alt"]
    changed = " with local changes" if facts.get("modified") else ""
    return f"{facts['commit']}{changed}{'' if facts['full'] else ' (few rounds)'}"


def origins(record: Record) -> str:
    """Returns the commit, or for several runs each commit with its benchmark files."""
    files: dict[tuple[str, str], list[str]] = {}
    for benchmark in record["benchmarks"]:
        names = files.setdefault(benchmark.get("origin", (state(record), record["datetime"][:10])), [])
        name = benchmark["fullname"].split("::")[0].rpartition("/")[2].removesuffix(".py")
        if name not in names:
            names.append(name)
    if len(files) == 1:
        return "commit {}, {}".format(*next(iter(files)))
    return "; ".join(f"commit {commit}, {day} for {', '.join(names)}" for (commit, day), names in files.items())


def page(records: dict[str, Record]) -> str:
    """Returns the Markdown of every device's newest record."""
    if not records:
        return f"{HEAD}\nNo result has been kept yet; `benchmarks/README.md` says how to measure.\n"
    return "\n".join([HEAD, *(device_section(device, record) for device, record in sorted(records.items()))])


def readme_rows(records: dict[str, Record]) -> str:
    """Returns the README's table: the towers at r = 8, and the step that the video model adds, on one device.

    It is the device on which one of these was measured last.
    """
    shown = {day: record for record in records.values() for day in [_last_day(_in_readme(record))] if day}
    if not shown:
        return "No result has been kept yet.\n"
    record = shown[max(shown)]
    head = ["measured on " + where(record["machine_info"]["alt"]), "against", "speed-up"]
    return to_markdown(head, readme_entries(record), left=2)


def _last_day(benchmarks: list[Record]) -> str:
    """Returns the day of the newest of some benchmarks, "" of none."""
    return max((benchmark["origin"][1] for benchmark in benchmarks), default="")


def _in_readme(record: Record) -> list[Record]:
    """Returns the patched image towers and the assignment with its backward pass."""
    return [b for b in record["benchmarks"] if _is_image_tower(b["extra_info"]) or _is_assignment(b["extra_info"])]


def _is_image_tower(info: Record) -> bool:
    return "saving_realised" in info and "against" not in info


def _is_assignment(info: Record) -> bool:
    return bool(info.get("title") == "cosine_gumbel_assign, forward and backward")


def readme_entries(record: Record) -> list[tuple[str, str, str]]:
    """Returns (what, against, speed-up) per row: ours beside plain PyTorch's merging, then the assignment."""
    found = []
    infos = [benchmark["extra_info"] for benchmark in _in_readme(record)]
    for info in filter(_is_image_tower, infos):
        fewer = f"{info['macs']['0'] / info['macs']['8']:.2f} x fewer operations"
        for label, who in (("8", f"r = 8, {fewer}"), ("8, plain torch", "r = 8, merging in plain PyTorch")):
            if label in info["speedup"]:
                speedup = interval(info["speedup"][label])
                found.append((f"{info['title']}, {who}", "open_clip's unpatched tower", speedup))
    for info in filter(_is_assignment, infos):
        rival = "F.gumbel_softmax"
        found.append((f"`cosine_gumbel_assign`, forward and backward, {info['shape']}", f"`{rival}`",
                      interval(info["ratio"][rival])))  # fmt: skip
    return found


def where(facts: Record) -> str:
    """Returns the name of the processor on which a record was measured."""
    return (
        str(facts["gpu"]) if facts["device"] == "cuda" else f"{facts['cpu']}, {facts['isa']}, {facts['threads']} thread"
    )


def plot_file(device: str, plot: str) -> str:
    """Returns the plot's path relative to the page."""
    return f"{PLOTS}/{device}-{plot}"


def has_speedups(record: Record) -> bool:
    """Returns True if something of the record was timed beside a rival."""
    return any("ratio" in benchmark["extra_info"] for benchmark in record["benchmarks"])


def device_section(device: str, record: Record) -> str:
    facts = record["machine_info"]["alt"]
    lines = [
        f"## {where(facts)}",
        "",
        f"torch {facts['torch']}, {origins(record)}. Every number is the median,"
        " over interleaved rounds, of a ratio within a round" + (GATED if has_speedups(record) else "."),
        "",
        *_operations(record),
        *_towers(record),
        *report_forms.sections(record),
        *_memory(record),
        *_training_memory(record),
        *_host_time(record),
        *([f"![speed-ups on {where(facts)}]({plot_file(device, PLOT)})", ""] if has_speedups(record) else []),
        *_tradeoff(device, record),
    ]
    return "\n".join(lines)


def _operations(record: Record) -> list[str]:
    rows = [b["extra_info"] for b in record["benchmarks"] if "ratio" in b["extra_info"]]
    rows = [info for info in rows if "saving_realised" not in info]
    if not rows:
        return []
    body: list[list[str]] = []
    for info in rows:
        floor = "; ".join(f"{v['median']:.2f} x {name}" for name, v in info["over_floor"].items())
        for i, (rival, ratio) in enumerate(info["ratio"].items()):
            what, least = (operation_name(info), floor) if i == 0 else ("", "")
            target = f"{info['targets'][rival]:g}" if rival in info["targets"] else ""
            body.append([what, rival, interval(ratio), target, least])
        body += [["", rival, f"not run: {why}", "", ""] for rival, why in info.get("absent", {}).items()]
    return [to_markdown(["operation", "against", "speed-up", "target", "time over its floor"], body, left=2)]


def operation_name(info: Record) -> str:
    function, _, rest = info["title"].partition(", ")
    return f"`{function}`{', ' + rest if rest else ''}<br>{info['shape']}"


def _towers(record: Record) -> list[str]:
    lines: list[str] = []
    head = ["r", "tokens left", "GMACs", "FLOP ratio", "speed-up", "share of the FLOP saving realised"]
    for info in (b["extra_info"] for b in record["benchmarks"] if "saving_realised" in b["extra_info"]):
        target = info.get("saving_target")
        body = []
        for label, ratio in info["speedup"].items():
            r = label.split(",")[0]
            base, macs = info["macs"]["0"], info["macs"][r]
            aim = f" (target {100 * target:.0f} %)" if label == "8" and target is not None else ""
            who = {"0": "0 (our attention, nothing merged)"}.get(label, label)
            who = who.replace(", plain torch", " (plain-torch merging)")
            share = info["saving_realised"].get(label)
            realised = "" if share is None else f"{interval(share, 0, 100)} %{aim}"
            body.append([who, info["tokens_left"][r], macs / 1e9, f"{base / macs:.3f}", interval(ratio, 3), realised])
        against = info.get("against", "open_clip's unpatched tower")
        title = f"{info['title']}, {info['shape'].removesuffix(', r = 8')}, against {against}"
        lines += [title, "", to_markdown(head, body)]
    return lines


def _memory(record: Record) -> list[str]:
    rows = [b["extra_info"] for b in record["benchmarks"] if "extra_bytes" in b["extra_info"]]
    if not rows:
        return []
    names = list(rows[0]["extra_bytes"])
    body = []
    for info in rows:
        cells = [f"{info['over_inputs_and_outputs'][n]:.2f} ({info['extra_bytes'][n] / 2**20:.0f} MiB)" for n in names]
        title = info["title"].split(",")[0]
        body.append([f"`{title}` forward and backward, {info['shape']}", *cells, f"{info['target']:g}"])
    head = ["peak memory beyond what was held before the call, over inputs and outputs", *names, "target"]
    return [to_markdown(head, body)]


def _training_memory(record: Record) -> list[str]:
    rows = [b["extra_info"] for b in record["benchmarks"] if "step_bytes" in b["extra_info"]]
    if not rows:
        return []
    names = list(rows[0]["step_bytes"])
    body = []
    for info in rows:
        sizes = [*(info["step_bytes"][name] for name in names), info["gradient_bytes"]]
        body.append([info["shape"], *(f"{size / 2**20:.0f} MiB" for size in sizes)])
    head = ["peak memory of forward and backward beyond weights and inputs", *names, "of it gradients"]
    return [to_markdown(head, body)]


def _host_time(record: Record) -> list[str]:
    found = next((b["extra_info"]["host_time"] for b in record["benchmarks"] if "host_time" in b["extra_info"]), None)
    if found is None:
        return []
    modes = list(next(iter(found.values()))["ratio"])
    body = []
    for name, entry in found.items():
        cells = [
            f"{entry['ratio'][m]['median']:.1f} ({entry['calls'][m]})" if m in entry["ratio"] else "" for m in modes
        ]
        body.append([f"`{name}`" if "_" in name or "." in name else name, *cells])
    head = ["host time of a call, in `torch.add` of the same mode (Python calls)", *modes]
    note = (
        "Triton's launches on a driver that starts nothing (`benchmarks/host_time.py`): CPU time, median over rounds"
        " of the ratio within a round."
    )
    return [note, "", to_markdown(head, body)]


def tradeoff_of(record: Record) -> Record | None:
    """Returns the trade-off over r in a kept record, if there is one."""
    found = [b["extra_info"]["tradeoff"] for b in record["benchmarks"] if "tradeoff" in b["extra_info"]]
    return found[0] if found else None


def _tradeoff(device: str, record: Record) -> list[str]:
    found = tradeoff_of(record)
    if found is None:
        return []
    from alt.evaluate.tradeoff_report import from_record, markdown, paper_markdown

    setting = found["setting"]
    return [
        "### Accuracy against cost as r grows",
        "",
        f"{setting['data']} (chance {setting['chance']:.1f} %),"
        f" {setting['training']}, {len(setting['seeds'])} seed{'s' if len(setting['seeds']) > 1 else ''}:",
        "",
        markdown(from_record(found).rows),
        "The paper's models: GMACs counted here; GFLOPs and accuracies are the paper's (Kinetics-400), not measured"
        " here.",
        "",
        paper_markdown(found["paper"]),
        f"![accuracy against cost]({plot_file(device, TRADEOFF_PLOT)})",
        "",
    ]


def interval(value: Record, digits: int = 2, scale: float = 1.0) -> str:
    low, median, high = (f"{scale * value[k]:.{digits}f}" for k in ("low", "median", "high"))
    return f"{median} [{low}, {high}]"


def replace_rows(text: str, body: str) -> str:
    """Returns ``text`` with ``body`` between the markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected one line {BEGIN} followed by one line {END}")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{body}{END}{rest.split(END)[1]}"


def _rounded(value: Any) -> Any:
    """Rounds numbers to six significant digits, more than a timing has."""
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
    from gpu import report as gpu_report

    wanted = {
        PAGE: page(records) + "\n## GPUs\n" + (gpu_report.section(RESULTS) or f"\n{NO_GPU}"),
        README: replace_rows(README.read_text(), readme_rows(records)),
    }
    drawn = {
        PAGE.parent / plot_file(device, plot): record
        for device, record in records.items()
        for plot, shown in ((PLOT, has_speedups(record)), (TRADEOFF_PLOT, tradeoff_of(record)))
        if shown
    }
    if options.check:
        stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text() != text]
        stale += [path.name for path in drawn if not path.exists()]
        if stale:
            print(
                f"{', '.join(stale)}: differs from the kept results; run `python benchmarks/report.py`", file=sys.stderr
            )
        return 1 if stale else 0
    for path, record in drawn.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _draw(path, record)
    for path, text in wanted.items():
        path.write_text(text)
    return 0


def _draw(path: Path, record: Record) -> None:
    if path.name.endswith(TRADEOFF_PLOT):
        from alt.evaluate.tradeoff_report import draw

        draw(tradeoff_of(record), path)
    else:
        import plots

        plots.draw(record, path)


if __name__ == "__main__":
    sys.exit(main())
