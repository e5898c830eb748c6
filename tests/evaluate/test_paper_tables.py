"""The papers' tables: rows fit their columns, numbers are those of one home, and results fill their cells."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alt.cli import build_app
from alt.errors import UserError
from alt.evaluate.paper_tables import HEAD, TABLES, Measured, collect, list_configurations, rows_of_table, write_tables
from alt.evaluate.pareto import Point, find_front, list_points
from alt.paper import ADAPTER_PARTS, COMPONENTS, CORPUS_SUBSETS, COSTS
from alt.train.catalogue import names

BY_KEY = {table.key: table for table in TABLES}


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
    found = list_configurations()
    assert len(found) == len(set(found)) > 100
    assert set(found) <= set(names())
    for cell in (cell for table in TABLES for row in table.rows.values() for cell in row):
        assert all(value is None or 0 < value < 100 for value in (cell.iclr, cell.cvpr, cell.printed))


def test_rows_of_x_clip() -> None:
    """Its rows in the ALT paper's tables have configurations, and its own tables show its own numbers."""
    few = BY_KEY["few-shot"].rows["X-CLIP-B/16"]
    assert [(cell.iclr, cell.configuration) for cell in few[:2]] == [
        (53.0, "xclip-b16-hmdb-2shot"),
        (57.3, "xclip-b16-hmdb-4shot"),
    ]
    rows = {row[0]: row[1:] for row in rows_of_table(BY_KEY["xclip-text"], {})}
    assert rows["linear head"] == [None, None, "not run", "32.0", "not run", "81.6"]  # without texts no zero-shot
    text, cells = write_tables({})
    assert "| | UCF-101 0-shot ours | UCF-101 0-shot X-CLIP | HMDB-51 2-shot ours |".replace("| |", "|  |") in text
    assert "X-CLIP paper: components." in text
    column = HEAD.index("X-CLIP")
    printed = {row[0]: row[column] for row in cells if row[1] == "xclip-from-scratch: top-1"}
    assert printed == {"scratch-mean-b32-k400-8f": 45.3, "scratch-xclip-b32-k400-8f": 47.8}


def test_tables_of_maxi() -> None:
    """Each data set has the measure of its table, rivals have no configuration, and the CSV keeps the papers apart."""
    measured = {
        f"maxi-b16-{data}-zero-shot": Measured((20.0, 22.0), (40.0, 42.0), (30.0, 32.0), {}, Path(data))
        for data in ("charades", "uav")
    }
    rows = {row[0]: row[1:] for row in rows_of_table(BY_KEY["maxi-other-sets"], measured)}
    assert rows["MAXI"][:4] == ["31.0 ± 1.4", "23.8", "not run", "22.9"]
    assert rows["MAXI"][-4:] == ["21.0 ± 1.4", "2.7", "41.0 ± 1.4", "9.0"]
    assert rows["CLIP"][:2] == [None, "19.8"]
    share = BY_KEY["maxi-share"].rows
    assert [cell.configuration for cell in share["90 %"]] == [
        *("maxi-b16-ucf-zero-shot", "maxi-b16-k400", "maxi-b16-k600-zero-shot")
    ]
    assert [cell.configuration for cell in share["50 %"]] == [
        *("maxi-share50-b16-ucf-zero-shot", "maxi-share50-b16-k400", "maxi-share50-b16-k600-zero-shot")
    ]
    text, cells = write_tables(measured)
    assert "MAXI paper: few-shot." in text
    by_cell = {(row[0], row[1]): dict(zip(HEAD, row, strict=True)) for row in cells}
    clip = by_cell["maxi-zero-shot: CLIP", "maxi-zero-shot: UCF-101"]
    assert (clip["MAXI"], clip["printed std"], clip["X-CLIP"], clip["ICLR"]) == (69.9, 1.3, None, None)
    same = by_cell["xclip-b16-hmdb-zero-shot", "xclip-zero-shot: HMDB-51"]
    assert (same["X-CLIP"], same["MAXI"], same["printed std"]) == (44.6, None, 5.2)


def test_every_training_of_maxi_is_in_its_tables() -> None:
    found = set(list_configurations())
    trained = {name for name in names() if name.startswith("maxi-") and name not in found}
    assert trained == {"maxi-pairwise-b16-k400"}  # the authors' code, which no table shows


def test_sampling_of_x_clip() -> None:
    rows = BY_KEY["xclip-sampling"].rows
    assert [cell.configuration for cell in rows["32 frames, sparse, dense"]] == [
        *("xclip-b16-k400-32f-sparse-dense-4x3", "xclip-b16-k400-32f-sparse-dense")
    ]
    assert [cell.configuration for cell in rows["8 frames, sparse, sparse"]] == [
        *("xclip-b16-k400-8f-4x3", "xclip-b16-k400-8f")
    ]


def test_costs_are_those_that_the_paper_prints() -> None:
    costs = BY_KEY["k400"].gflops
    assert set(costs) == set(BY_KEY["k400"].rows) - {"PromptingCLIP"}  # which prints none
    ours = [cost for name, cost in costs.items() if name.startswith("ALT")]
    assert ours == [330, 657, 1308, 1245, 2478, 4947]
    assert rows_of_table(BY_KEY["k400"], {})[0][:4] == ["MViTv1-B", 4095, None, "81.2"]


def test_points_and_their_front() -> None:
    measured = Measured((84.0, 85.0), (97.0, 97.0), (80.0, 81.0), {"gmacs_per_video": 318.5}, Path("run"))
    points = list_points({"alt-b16-k400-8f": measured, "r8-k400-8f": measured})
    assert len(points) == len(BY_KEY["k400"].gflops) + 1
    assert [point for point in points if point.kind == "ours"] == [Point("ALT-B/16, 8", 318.5, 84.5, "ours")]
    assert Point("ALT-L/14, 32", 4947, 88.1, "ALT") in points  # the later version's
    front = [point.name for point in find_front(points) if point.kind != "ours"]
    assert front == ["ALT-B/16, 16", "ALT-L/14, 8", "ALT-L/14, 16", "ALT-L/14, 32", "MTV-H"]
    assert [point.name for point in find_front([Point("a", 2, 5, ""), Point("b", 1, 5, ""), Point("c", 1, 4, "")])] == [
        "b"
    ]


def result(configuration: str, top1: float, top5: float = 90.0) -> dict[str, object]:
    setting = {"configuration": configuration, "frames": 8, "crops": 1, "clips": 1, "r": 8, "seed": 3, "commit": "abc"}
    return {"top1": top1, "top5": top5, "mean_average_precision": 12.5, "setting": setting}


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
    assert rows["X-CLIP-B/16"][:2] == ["not run", "65.2 ± 0.4"]
    assert rows["ER-ZSAR"][:2] == [None, "42.1 ± 1.4"]
    text, _ = write_tables(measured)
    assert "| r = 8 | 110 | 82.5 | 82.4 | 82.8 |" in text
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
    assert (tmp_path / "out" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert CliRunner().invoke(build_app(), ["table"]).output.count("not run") > 100
