"""Kept results of `make gpu` become tables of docs/results.md: of a synthetic run as a machine with a GPU leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report as pages
import torch
from gpu import bench, clock, report, session, towers

FACTS = {
    "device": "cuda",
    "gpu": "NVIDIA H100 80GB HBM3",
    "driver": "1.2.3",
    "cuda": "13.0",
    "torch": "2.11.0+cu130",
}
FACTS |= {"triton": "3.6.0", "commit": "abc1234567", "source": "0123456789abcdef", "cpu": "a CPU"}


def kernel(name: str, us: float, **others: float) -> session.Record:
    """A row as `bench.one` makes it."""
    row: session.Record = {"name": name, "shape": "B=256 N=197", "absent": {}, "entrants": {}, "later": []}
    row |= {"flops": 1, "bytes": 1, "sets": 3, "target_us": 10.0, "floor_us": 1.5}
    for entrant, times in {"ours": 1.0, **others}.items():
        found = {"us": us * times, "quartiles_us": [us, us], "how": "graph", "call_us": 60.0, "host_us": 25.0}
        row["entrants"][entrant] = found | {"error": 1e-3, "over_floor": us * times / 1.5, "times_ours": times}
    return row


def tower() -> session.Record:
    row: session.Record = {"name": "ViT-B/16, batch 256, forward", "macs": {0: 100, 8: 75, 13: 59}, "absent": {}}
    row |= {"tokens_left": {0: 197, 8: 101, 13: 41}, "entrants": {}}
    times = {"unmerged, compiled": (0, 15.4), "unmerged, SDPA, compiled": (0, 14.0), "ours r=8, compiled": (8, 10.8)}
    towers.summarize(row, {name: (r, clock.Timed([ms / 1e3] * 5, "host")) for name, (r, ms) in times.items()})
    return row


def written(folder: Path, section: str, record: session.Record, left_out: list[str] = [], **more: Any) -> None:  # noqa: B006
    """By the function that a run writes with."""
    facts = session.Session(torch.device("cpu"), folder, 510.0, FACTS)
    session.write(facts, section, record, 100.0, left_out, **more)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    large = kernel("assignment, K = 100,000", 5200.0, **{"F.gumbel_softmax": 11.0})
    large["entrants"]["F.gumbel_softmax"] |= {"peak_bytes": 31 * 2**30}
    flash = kernel("attention", 90.0, **{"SDPA flash, no bias": 0.95, "xformers": 1.4})
    flash["entrants"]["SDPA flash, no bias"] |= {"easier_problem": True}
    flash["entrants"]["xformers"] |= {"how": "events"}
    flash["absent"] = {"FlashAttention 4": "ModuleNotFoundError: No module named 'cutlass'"}
    rows = [kernel("matching", 7.25, **{"plain torch": 9.0}), flash, large, {"name": "merge", "error": "out of memory"}]
    record = bench.finished({"ceilings": {}, "kernels": rows, "towers": [tower()]})
    folder = tmp_path / "nvidia-h100-80gb-hbm3"
    written(folder, "bench", record, ["ViT-L/14, batch 256, forward: no time left"])
    written(folder, "test", {"failed": ["tests/gpu/a.py::one"]})
    written(folder, "sanitize", {"failed": []})
    (folder / "2026-11-21-abc.json").write_text(json.dumps({"benchmarks": [], "datetime": "2026-11-21"}))
    return tmp_path


def test_tables(results: Path) -> None:
    (run,) = report.kept(results)["nvidia-h100-80gb-hbm3"]
    assert set(run) == {"bench", "test", "sanitize"}
    text = report.section(results)
    assert "**NVIDIA H100 80GB HBM3**, driver 1.2.3, CUDA 13.0" in text
    assert "commit abc1234567 (source 0123456789abcdef)" in text
    assert "| matching<br>B=256 N=197 | ours | 7.25 | 10 | 1.5 | 4.83 | 1 | 60 | 25 |" in text
    assert "|  | plain torch | 65.2 |  |  | 43.5 | 9 | 60 | 25 |" in text
    assert "| SDPA flash, no bias (an easier problem) |" in text
    assert "| xformers (not captured) |" in text
    assert "|  | FlashAttention 4 | not run: ModuleNotFoundError: No module named 'cutlass' |" in text
    assert "| F.gumbel_softmax, 31 GiB beside the inputs | 57,200 |" in text
    assert "| merge |  | not measured: out of memory |" in text
    assert "Section `test`: 1 failed." in text
    assert "Section `sanitize`: nothing failed." in text
    assert "Left out: ViT-L/14, batch 256, forward: no time left." in text
    # 14.0 -> 10.8 ms is 22.9 % of the time for 25 % of the operations: against the faster of the two unmerged ones.
    assert "| ViT-B/16, batch 256, forward | unmerged, compiled | 15.4 | 0.9091 | 1 |  |" in text
    assert "| ours r=8, compiled | 10.8 | 1.296 | 1.333 | 91 % |" in text


def test_every_table_has_as_many_cells_as_heads(results: Path) -> None:
    heads = 0
    for line in report.section(results).splitlines():
        if line.startswith("| ---"):
            assert line.count("|") == heads
        elif line.startswith("|"):
            heads = heads if line.count("|") == heads else line.count("|")
        else:
            heads = 0
    widths = {line.count("|") for line in report.section(results).splitlines() if line.startswith("|")}
    assert widths == {10, 7}, "kernels have nine columns, towers six"


def test_a_half_that_was_run_again_takes_its_place(results: Path) -> None:
    folder = results / "nvidia-h100-80gb-hbm3"
    written(folder, "kernels", bench.finished({"kernels": [kernel("matching", 6.0)], "towers": []}), ended=False)
    path = folder / "kernels.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": "2999-01-01T00:00:00Z"}))
    text = report.section(results)
    assert "| ours | 6 | 10 |" in text
    assert "7.25" not in text
    assert "ours r=8, compiled" in text, "the towers are those of the section bench"
    assert "It was stopped before its end." in text


def test_runs_of_other_sources_stay_apart(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number stands under the commit that it was measured at, and the newest run comes first."""
    monkeypatch.setitem(FACTS, "source", "fedcba9876543210")
    monkeypatch.setitem(FACTS, "commit", "def7654321")
    folder = results / "nvidia-h100-80gb-hbm3"
    written(folder, "kernels", bench.finished({"kernels": [kernel("matching", 6.0)], "towers": []}))
    path = folder / "kernels.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": "2999-01-01T00:00:00Z"}))
    text = report.section(results)
    assert text.index("commit def7654321") < text.index("| ours | 6 | 10 |") < text.index("commit abc1234567")
    assert text.index("commit abc1234567") < text.index("| ours | 7.25 | 10 |")


def test_dry_runs_and_nothing_show_nothing(tmp_path: Path) -> None:
    assert report.section(tmp_path) == ""
    dry = session.Session(torch.device("cpu"), tmp_path / "x", 60.0, FACTS, dry=True)
    session.write(dry, "bench", {"kernels": [kernel("matching", 1.0)], "towers": []}, 1.0, [])
    assert report.section(tmp_path) == ""


def test_the_page_of_results_holds_them(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that a person runs, on a README, a page and results of its own."""
    own, page = results / "README.md", results / "results.md"
    own.write_text(f"# x\n{pages.BEGIN}\nold\n{pages.END}\nend\n")
    monkeypatch.setattr(pages, "README", own)
    monkeypatch.setattr(pages, "PAGE", page)
    monkeypatch.setattr(pages, "RESULTS", results)
    monkeypatch.setattr(pages, "newest", lambda _: {})
    assert pages.main([]) == 0
    assert "| ours r=8, compiled | 10.8 | 1.296 | 1.333 | 91 % |" in page.read_text()
    assert own.read_text().endswith("end\n")
    assert pages.main(["--check"]) == 0
    page.write_text(page.read_text().replace("91 %", "99 %"))
    assert pages.main(["--check"]) == 1


def test_a_result_is_whole_whenever_the_process_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off leaves the file of before."""
    written(tmp_path, "kernels", {"kernels": [1]}, ended=False)

    def broken(self: Path, text: str) -> int:
        with open(self, "w") as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", broken)
        with pytest.raises(OSError, match="could not save the result"):
            written(tmp_path, "kernels", {"kernels": [1, 2]})
    assert json.loads((tmp_path / "kernels.json").read_text())["kernels"] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]
