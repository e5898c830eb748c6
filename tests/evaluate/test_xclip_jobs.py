"""X-CLIP in the commands: trained on EntityWorld, evaluated, explained, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import alt
from alt.cli import build_app
from alt.data.clips import write_clips
from alt.evaluate.checkpoint import at_r, open_model
from alt.evaluate.paper_costs import meta_model
from alt.train import fit, load_config

TINY = [
    *("data.preset=tiny", "data.batch_size=4", "data.limit=4", "schedule={steps: 1, warmup_steps: 0}"),
    *("trainer.progress=false", "trainer.validate_every=0", "model.templates=none", "model.corpus=null"),
]


@pytest.mark.parametrize("name", ["xclip-mini", pytest.param("vifi-mini", marks=pytest.mark.slow)])
def test_train_eval_predict(name: str, tmp_path: Path) -> None:
    strategy = "model.options={strategy: full}"
    config = load_config("entity-world-cpu", [*TINY, f"model.name={name}", "model.r=2", strategy])
    run = fit(config, tmp_path / "run", say=lambda line: None)
    model = open_model(run.weights)
    assert model.r == 2
    video = torch.randint(256, (2, 4, 3, 24, 24), dtype=torch.uint8)
    write_clips(tmp_path / "set", video, [0, 1], list(model.classes), "npy")
    folder, runner = tmp_path / "set", CliRunner()
    for arguments in (
        ["eval", str(run.weights), "--data", str(folder / "list.txt"), "--labels", str(folder / "labels.csv")],
        ["predict", str(run.weights), str(folder / "clips" / "000000.npy"), "--html", str(tmp_path / "page.html")],
    ):
        result = runner.invoke(build_app(), arguments)
        assert result.exit_code == 0, result.output
    assert "probability" in result.output
    assert at_r(model, 0).r == 0


def test_the_cost_of_one_model_by_its_parts() -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(build_app(), ["cost", *arguments])

    table = run("xclip-mini", "--frames", "3", "--r", "2", "--classes", "7").output
    assert table.startswith("xclip-mini: 3 frames, r = 2, 7 classes, ")
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("|")][2:] == [
        *("patch embedding", "attention projections", "attention", "matching", "mlp", "pooling", "adapter", "head"),
        *("native", "+ dense merging", "+ layer norm", "paper's convention"),
    ]
    wanted = alt.count_macs(meta_model("xclip-mini", frames=3, r=2, classes=7))
    written = json.loads(run("xclip-mini", "--frames", "3", "--r", "2", "--classes", "7", "--json", "-").output)
    assert written["native"] == wanted.native
    assert written["by_component"] == wanted.by_component
    for arguments, words in (
        (["xclip-b17"], "name: expected one of alt-b32"),
        (["xclip-mini", "--r", "-1"], "r must"),
        (["--frames", "3"], "--frames, --r and --backbone need the name of a model"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert words in result.output
