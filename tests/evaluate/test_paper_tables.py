"""The paper's tables: every configuration has the numbers of the paper, and results fill the cells of theirs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alt.cli import build_app
from alt.errors import UserError
from alt.evaluate.paper_tables import collect, rows_of_table, write_tables
from alt.paper import ADAPTER_PARTS, COMPONENTS, CORPUS_SUBSETS, COSTS
from alt.paper_tables import TABLES, list_configurations
from alt.train.config import TrainConfig, load_config
from alt.validation import flatten

BY_KEY = {table.key: table for table in TABLES}

# What the paper says of every run, whatever the table (hyper-parameters, section 1.5 of our notes on it).
EVERYWHERE = {
    "optim.betas": [0.9, 0.98],
    "optim.eps": 1e-8,
    "optim.weight_decay": 1e-3,
    "schedule.warmup_epochs": 5,
    "schedule.min_ratio": 0.01,
    "augmentation.crop_scales": [1.0, 0.875, 0.75, 0.66],
    "augmentation.color_jitter": 0.8,
    "augmentation.grayscale": 0.2,
    "augmentation.switch": 0.5,
    "data.size": 224,
    "data.resize": 256,
    "model.pretrained": "openai",
    "model.templates": "alt16",
    "evaluation.crops": 1,
}
MIXED = {"augmentation.mixup": 0.8, "augmentation.cutmix": 1.0, "augmentation.label_smoothing": 0.1}
ONE_HOT = {"augmentation.mixup": 0, "augmentation.cutmix": 0, "augmentation.label_smoothing": 0}
TRAINED = {"optim.lr": 8e-6, "optim.new_multiplier": 10, "data.batch_size": 256, "optim.few_shot_multiplier": 1}
FULL = {**TRAINED, "schedule.epochs": 30, "evaluation.protocol": "supervised"}
FEW = {**TRAINED, "schedule.epochs": 50, "data.batch_size": 64, "optim.few_shot_multiplier": 10, "model.frames": 32,
       "evaluation.frames": 32, "evaluation.clips": 1, "evaluation.protocol": "few-shot"}  # fmt: skip
ZERO = {**TRAINED, "schedule.epochs": 10, "model.frames": 32, "evaluation.frames": 32, "evaluation.clips": 1,
        "evaluation.protocol": "zero-shot"}  # fmt: skip
PROBE = {"optim.lr": 4e-4, "optim.new_multiplier": 1, "schedule.epochs": 30, "task": "linear-probe", "model.frames": 32,
         "evaluation.frames": 32, "evaluation.clips": 1, "evaluation.protocol": "linear-probe"}  # fmt: skip


def expected(name: str) -> dict[str, object]:
    """The numbers of the paper for a configuration, by what its name says."""
    words = name.split("-")
    wanted: dict[str, object] = {**EVERYWHERE, **MIXED, "augmentation.flip": 0 if "ssv2" in words else 0.5}
    if "probe" in words:
        wanted |= {**PROBE, **ONE_HOT}
        last = words[-1].removeprefix("split")
        wanted["evaluation.splits"] = [int(last)] if last.isdigit() else [1, 2, 3]
    elif words[-1].endswith("shot") and words[-2] == "zero":
        wanted |= ZERO
        splits = [1, 2, 3] if words[0] == "alt" and "k600" not in words else [1]  # ablations: the first split
        wanted["evaluation.splits"] = splits
        if "k600" in words:
            wanted |= {"evaluation.subset": 160, "evaluation.draws": 3}
    elif words[-1].endswith("shot"):
        shots = int(words[-1].removesuffix("shot"))
        wanted |= {**FEW, "data.shots": shots, "evaluation.splits": [1]}
        if "ssv2" not in words:
            wanted |= {"data.train_list": "train1.txt", "data.val_list": "test1.txt"}
    else:
        frames = int(words[-1].removesuffix("f"))
        wanted |= {**FULL, "model.frames": frames, "evaluation.frames": frames}
        wanted["evaluation.clips"] = 3 if words[0] == "alt" else 1
    if words[0] == "alt":
        large = words[1] == "l14"
        wanted |= {"model.name": f"alt-{words[1]}", "model.r": 8, "model.options.layers": 6 if large else 4}
    if words[0].startswith("r") and words[0][1:].isdigit():
        wanted["model.r"] = int(words[0][1:])
    if words[0] == "strategy":
        wanted["model.options.strategy"] = words[1]
    return wanted


@pytest.mark.parametrize("name", list_configurations())
def test_configurations_are_those_of_the_paper(name: str) -> None:
    values = flatten(load_config(name))
    wanted = expected(name)
    assert len(wanted) > 20
    assert {key: values.get(key, "(default)") for key in wanted} == wanted


def test_rows_that_differ_in_one_part() -> None:
    """Ablations: the switch that the row names, and nothing else beside it."""

    def options(name: str) -> dict[str, object]:
        return load_config(name).model.options

    assert options("decoder-none-k400-8f") == {"self_attention": False, "convolution": False}
    assert options("decoder-attention-hmdb-2shot") == {"convolution": False}
    assert options("decoder-convolution-ucf-zero-shot") == {"self_attention": False}
    assert options("decoder-both-k400-8f") == {}
    assert load_config("decoder-none-hmdb-2shot").model.init_from == "runs/decoder-none-k400-32f/model.safetensors"
    assert options("components-align-k400-8f") == {"align_tokens": "cls"}
    assert load_config("components-align-k400-8f").model.r == 0
    assert load_config("components-none-k400-8f").model.name == "mit-b16"
    kinds = {"body": ("body_part",), "object": ("object",), "scene": ("scene",), "motion": ("motion",), "all": None}
    assert {row: load_config(f"corpus-{row}-k400-8f").model.corpus_categories for row in kinds} == kinds
    assert options("corpus-none-k400-8f") == {"queries": "random"}


def test_both_homes_of_the_papers_numbers_agree() -> None:
    """alt.paper serves the comparison on generated clips, the tables serve alt table."""
    for key, ablation in (("components", COMPONENTS), ("corpus", CORPUS_SUBSETS), ("decoder", ADAPTER_PARTS)):
        rows = [tuple(cell.iclr for cell in cells) for cells in BY_KEY[key].rows.values()]
        assert rows == list(ablation.rows.values())
        assert BY_KEY[key].iclr == ablation.table
    tokens = {f"r = {cost.r}": cost.top1 for cost in COSTS if cost.top1 is not None}
    assert {name: cells[0].iclr for name, cells in BY_KEY["tokens"].rows.items()} == tokens
    assert [cells[0].cvpr for cells in BY_KEY["tokens"].rows.values()] == [83.1, 83.0, 82.8, 82.2]
    views = [cost.three_views for cost in COSTS if cost.three_views is not None]
    assert [cells[0].iclr for name, cells in BY_KEY["k400"].rows.items() if name.startswith("ALT")] == views


def test_every_row_fits_its_columns_and_every_configuration_ships() -> None:
    for table in TABLES:
        assert all(len(cells) == len(table.columns) for cells in table.rows.values()), table.key
    assert len(list_configurations()) == len(set(list_configurations())) > 60
    assert all(isinstance(load_config(name), TrainConfig) for name in list_configurations()[:3])


def result(configuration: str, top1: float, top5: float = 90.0) -> dict[str, object]:
    setting = {"configuration": configuration, "frames": 8, "crops": 1, "clips": 1, "r": 8, "seed": 3, "commit": "abc"}
    return {"top1": top1, "top5": top5, "setting": setting}


def test_results_fill_the_cells_of_their_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    several = [result("alt-b16-k600-zero-shot", value, value + 20) for value in (67.0, 68.0, 69.0)]
    (folder / "results.json").write_text(json.dumps({"protocol": "x", "top1": {}, "results": several}))
    (tmp_path / "one.json").write_text(json.dumps(result("r8-k400-8f", 82.51)))
    measured = collect([folder, tmp_path / "one.json"])
    rows = {row[0]: row[1:] for row in rows_of_table(BY_KEY["k600-zero-shot"], measured)}
    assert rows["ALT-B/16"] == ["68.0 ± 1.0", "68.1 ± 0.6", None, "88.0 ± 1.0", "88.1 ± 0.4", None]
    assert rows["ALT-L/14"][0] == "not run"
    assert rows["X-CLIP-B/16"][:2] == [None, "65.2 ± 0.4"]
    text, _ = write_tables(measured)
    assert "| r = 8 | 82.5 | 82.4 | 82.8 |" in text
    assert "ICLR version: Table 8; CVPR version: Table C5." in text
    assert f"- `r8-k400-8f`: 8 x 1 x 1, r = 8, seed 3, commit abc, {tmp_path / 'one.json'}" in text
    (tmp_path / "two.json").write_text(json.dumps(result("r8-k400-8f", 80.0)))
    with pytest.raises(UserError, match=r"two\.json and .*one\.json are both results of r8-k400-8f"):
        collect([tmp_path / "one.json", tmp_path / "two.json"])
    (tmp_path / "two.json").write_text("[1]")
    for broken, says in (("two.json", "that names its configuration"), ("none.json", "not a result of alt eval")):
        with pytest.raises(UserError, match=says):
            collect([tmp_path / broken])


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(result("alt-b16-hmdb-2shot", 61.0)))
    shown = CliRunner().invoke(build_app(), ["table", str(tmp_path / "one.json")])
    assert shown.exit_code == 0, shown.output
    assert "### Few-shot, first split, 32 frames, single view" in shown.output
    written = CliRunner().invoke(build_app(), ["table", str(tmp_path / "one.json"), "--out", str(tmp_path / "out")])
    assert written.exit_code == 0, written.output
    with (tmp_path / "out" / "tables.csv").open(newline="") as file:
        rows = {(row["configuration"], row["column"]): row for row in csv.DictReader(file)}
    found = rows["alt-b16-hmdb-2shot", "few-shot: HMDB 2"]
    assert (found["ours"], found["ICLR"], found["CVPR"], found["results"]) == ("61.0", "64.0", "64.3", "1")
    assert rows["alt-b16-hmdb-4shot", "few-shot: HMDB 4"]["ours"] == ""
    assert CliRunner().invoke(build_app(), ["table"]).output.count("not run") > 60
