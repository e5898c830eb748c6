"""The sweep over r: rows, checks of a curve, files, plot, and the commands with their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("torchmetrics")
from typer.testing import CliRunner, Result

import alt
from alt.cli import build_app
from alt.data.clips import write_clips
from alt.evaluate.paper_costs import paper_costs
from alt.evaluate.speed_and_memory import peak_memory, throughput
from alt.evaluate.tradeoff import (
    Point,
    Tradeoff,
    TradeoffRow,
    find_anomalies,
    group_by_curve,
    is_monotone,
    rows_of,
)
from alt.evaluate.tradeoff_report import from_record, write
from alt.models.weights import save_model
from alt.paper import COSTS

NAMES = ["lifting", "pushing", "turning"]


def row(r: int, accuracy: float, *, trained: int | None = 0, slope: float = 0.0, gmacs: float | None = None):
    return TradeoffRow("ALT", r, slope, trained, 10.0 - r if gmacs is None else gmacs, accuracy, 1.0, 5, 100.0, 2**20)


def model(r: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    made = alt.create_model("alt-mini", r=r, corpus=torch.randn(9, 48), classes=(NAMES, torch.randn(3, 48)))
    return made.eval()


def test_rows_hold_mean_spread_and_falling_costs() -> None:
    found = {Point("ALT", r): [50.0 - r, 52.0 - r] for r in (0, 2, 4)}
    made: list[Point] = []

    def model_at(point: Point) -> torch.nn.Module:
        made.append(point)
        return model(point.r)

    rows = rows_of({**found, Point("ALT", 2, 0.0, 2): [49.0]}, model_at, measure=False)
    assert len(made) == 3  # what a point costs does not depend on how it was trained
    assert is_monotone(rows)
    assert [row.accuracy_mean for row in rows] == [51.0, 49.0, 47.0, 49.0]
    assert rows[0].accuracy_std == pytest.approx(2**0.5)
    assert rows[-1].accuracy_std is None
    assert rows[1].gmacs == rows[-1].gmacs == alt.count_macs(model(2)).native_g
    assert [row.regime for row in rows] == ["no merging", *["off-the-shelf (trained at r=0)"] * 2, "in training"]


def test_a_curve_that_rises_is_complained_about() -> None:
    assert find_anomalies([row(0, 50.0), row(2, 51.9), row(4, 49.0)]) == []
    found = find_anomalies([row(0, 50.0), row(2, 49.0), row(4, 51.5)])
    assert found == ["ALT, off-the-shelf (trained at r=0): 2.5 points more at r = 4 than at r = 2"]
    assert find_anomalies([row(0, 50.0), row(4, 40.0), row(6, 45.0, trained=6)]) == []  # another regime
    assert not is_monotone([row(0, 50.0), row(2, 50.0, gmacs=10.0)])


def test_every_curve_starts_without_merging() -> None:
    groups = group_by_curve([row(0, 50), row(4, 48), row(2, 49), row(2, 49, trained=2), row(2, 47, slope=-1.0)])
    assert [[r.r for r in rows] for rows in groups.values()] == [[0, 2, 4], [0, 2], [0, 2]]


def test_speed_and_memory_of_several_models() -> None:
    models = {"r=0": model(0), "r=6": model(6)}
    speed = throughput(models, clips=4, seconds=0.1)
    assert all(value > 0 for value in speed.values())
    memory = peak_memory(models, clips=16)
    if Path("/proc/self/clear_refs").exists():
        small, large = memory["r=6"], memory["r=0"]
        assert small is not None
        assert large is not None
        one = 16 * 4 * 37 * 64 * 4  # tokens of all frames, once
        assert one < small < 40 * one
        assert large > one


def test_files_and_plot(tmp_path: Path) -> None:
    found = Tradeoff((row(0, 50.0), row(2, 49.0), row(2, 49.5, trained=2)), {"data": "a toy", "seeds": [0, 1]})
    paths = write(found, paper_costs(COSTS[:1]), tmp_path / "out")
    assert sorted(path.suffix for path in paths) == [".csv", ".json", ".md", ".png", ".svg"]
    record = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    assert from_record(record) == found
    paper = record["paper"][0]
    assert (paper["paper_prints_gflops"], paper["paper_prints_top1_single_view"]) == (141, 82.6)
    text = (tmp_path / "out" / "tradeoff.md").read_text()
    assert "| ALT | constant | in training | 2 | 8 | 49.5 ± 1.0 | 5 | 100 | 1.0 |" in text
    assert "the paper prints" in text
    assert paths[-1].read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "out" / "tradeoff.svg").read_bytes()
    write(found, paper_costs(COSTS[:1]), tmp_path / "again")
    assert (tmp_path / "again" / "tradeoff.svg").read_bytes() == svg


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (7, 6, 3, 30, 40), generator=generator, dtype=torch.uint8)
    data = write_clips(tmp_path / "data", clips, [0, 1, 2, 0, 1, 2, 0], NAMES, form="npy")
    return {
        "checkpoint": save_model(model(), tmp_path / "model.safetensors"),
        "data": data,
        "labels": data.with_name("labels.csv"),
    }


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_eval_of_a_checkpoint_any_r(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["eval", files["checkpoint"], "--data", files["data"], "--labels", files["labels"], "--batch", 3]
    done = run(*arguments, "--views", "4x3x2", "--r", "5", "--json", out)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["videos"] == 7
    assert (found["setting"]["r"], found["setting"]["views"]) == (5, 6)
    changed = model(5)
    assert found["setting"]["gmacs_per_video"] == alt.count_macs(changed, views=6).native_g
    assert list(found["per_class"]) == NAMES
    assert "top-1" in done.output
    plain = run(*arguments)
    assert plain.exit_code == 0
    assert "r = 2" in plain.output


def test_sweep_of_a_checkpoint_on_data(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the paper's nine rows is printed beside it; test_cost_of_models.py counts them all."""
    monkeypatch.setattr("alt.evaluate.paper_costs.paper_costs", lambda: paper_costs(COSTS[:1]))
    out = tmp_path / "sweep"
    done = run(
        *("tradeoff", "--checkpoint", files["checkpoint"], "--data", files["data"], "--labels", files["labels"]),
        *("--sweep", "0,4", "--no-measure", "--out", out),
    )
    assert done.exit_code == 0, done.output
    rows = from_record(json.loads((out / "tradeoff.json").read_text())).rows
    assert [(r.r, r.inflection, r.trained_r) for r in rows] == [(0, 0.0, 2), (4, 0.0, 2), (4, -1.0, 2)]
    assert rows[1].gmacs < rows[0].gmacs
    assert "GMACs counted here; GFLOPs and accuracies are the paper's" in done.output


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"checkpoint": "nowhere.safetensors"}, 1, "nowhere.safetensors: no such checkpoint"),
        ({"data": "nowhere.txt"}, 1, "nowhere.txt"),
        ({"views": "2x2"}, 2, "1 or 3 spatial crops, got 2"),
        ({"r": "many"}, 2, "--r takes a number"),
        ({"r": "1,2"}, 2, "--r: "),
        ({"r": "-1"}, 2, "--r: "),
        ({"precision": "int4"}, 2, "'fp32'"),
        ({"device": "gpu"}, 2, "--device takes auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "cuda:99"}, 1, "this machine has "),
        ({"labels": "other"}, 1, "number 1 is 'pulling' there and 'pushing' in the checkpoint"),
    ],
)
def test_bad_input_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, change: dict, status: int, message: str
) -> None:
    given = {**files, "views": "1x1", "r": "2", "precision": "fp32", "device": "cpu", **change}
    if given["labels"] == "other":
        given["labels"] = tmp_path / "other.csv"
        given["labels"].write_text("id,name\n0,lifting\n1,pulling\n2,turning\n")
    checkpoint = given.pop("checkpoint")
    done = run("eval", checkpoint, *[part for name, value in given.items() for part in (f"--{name}", value)])
    assert done.exit_code == status
    assert message in done.output
    assert done.output.startswith("Error: ")
    assert len(done.output.strip().splitlines()) == 1
    assert "Traceback" not in done.output


def test_checkpoint_without_data_is_one_sentence(files: dict[str, Path]) -> None:
    done = run("tradeoff", "--checkpoint", files["checkpoint"])
    assert done.exit_code == 2
    assert "--checkpoint and --data go together" in done.output
    assert run("tradeoff", "--sweep", "0,x").output.startswith("Error: --sweep takes whole numbers")
