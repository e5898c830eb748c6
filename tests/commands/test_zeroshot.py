"""``alt zeroshot`` on generated pictures, with the small CLIP that ships."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from alt.cli import build_app
from alt.entityworld.world import World
from alt.evaluate import zero_shot


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["zeroshot", *map(str, arguments)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of EntityWorld in one folder per scene."""
    folder, world = tmp_path_factory.mktemp("scenes"), World("cpu")
    scenes = [entity.unit for entity in world.entities() if entity.category == "scene"]
    images = world.images(60, seed=9)
    for number, (frame, scene) in enumerate(zip(images.frames, images.scene.tolist(), strict=True)):
        home = folder / scenes[scene].replace(" ", "_")
        home.mkdir(exist_ok=True)
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(home / f"{number}.png")
    return folder


def test_accuracy_cost_and_speed(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = zero_shot.measure_zero_shot
    monkeypatch.setattr(zero_shot, "measure_zero_shot", partial(measure, seconds=0))
    out = tmp_path / "out"
    result = run("open_clip:mini", pictures, "--pretrained", "entity-world", "--sweep", "0,2,4", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "zeroshot.json").read_text())
    assert found["pictures"] == 60
    rows = found["rows"]
    assert [row["r"] for row in rows] == [None, 0, 2, 4]
    chance = 100 / len(found["classes"])
    assert rows[0]["top1"] == rows[1]["top1"] > 2 * chance
    assert all(row["top1"] <= row["top5"] for row in rows)
    costs = [row["gmacs"] for row in rows]
    assert costs[0] == costs[1] > costs[2] > costs[3]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert "r = 4" in (out / "zeroshot.svg").read_text()
    assert "| unpatched |" in result.stdout
    assert (out / "zeroshot.md").read_text() in result.stdout


def test_bad_input_is_one_sentence(pictures: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (
            ("timm:vit_base", pictures),
            "MODEL takes open_clip:NAME, got 'timm:vit_base': timm's models have no text tower.",
        ),
        (("ViT-B-16", pictures), "MODEL takes open_clip:NAME, got 'ViT-B-16'."),
        (
            ("open_clip:mini", tmp_path / "none"),
            "expected a folder with one folder of pictures per class, found no folder.",
        ),
        (("open_clip:mini", next(pictures.iterdir())), "at least two, got 0."),
    ):
        result = run(*arguments, "--out", tmp_path / "out")
        assert result.exit_code in (1, 2)
        assert sentence in " ".join(result.stderr.split()), result.stderr
    (pictures / "empty").mkdir()
    result = run("open_clip:mini", pictures, "--out", tmp_path / "out")
    (pictures / "empty").rmdir()
    assert "empty: expected a folder" in result.stderr
