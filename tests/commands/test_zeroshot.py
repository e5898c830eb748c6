"""``alt zeroshot`` on generated pictures, with the small CLIP that ships."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel, CLIPProcessor
from typer.testing import CliRunner, Result

from alt.cli import build_app
from alt.data.captions import CaptionedPictures
from alt.data.pixels import fit_picture
from alt.entityworld.world import World
from alt.evaluate import zero_shot
from alt.evaluate.tower_speed import BenchmarkReport, BenchmarkRow
from alt.hosts import find_host
from alt.measure import Interval
from alt.models.prompts import ALT16
from tests.random_weights import publish_clip


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
            "MODEL takes open_clip:NAME or hf:PATH, got 'timm:vit_base': timm's models have no text tower.",
        ),
        (
            ("timm:vit_base_patch16_siglip_224", pictures),
            "have no text tower, but open_clip has one for it: open_clip:ViT-B-16-SigLIP, open_clip:ViT-B-16-SigLIP2.",
        ),
        (("hf:/no/model", pictures), "backbone: transformers finds no model at '/no/model'"),
        (("ViT-B-16", pictures), "MODEL takes open_clip:NAME or hf:PATH, got 'ViT-B-16'."),
        (
            ("open_clip:mini", tmp_path / "none"),
            "expected a folder with one folder of pictures per class, or with captions, found no folder.",
        ),
        (("open_clip:mini", pictures, "--captions", tmp_path / "none.csv"), "none.csv: not a readable caption file"),
        (("open_clip:mini", next(pictures.iterdir())), "at least two, got 0."),
    ):
        result = run(*arguments, "--out", tmp_path / "out")
        assert result.exit_code in (1, 2)
        assert sentence in " ".join(result.stderr.split()), result.stderr
    (pictures / "empty").mkdir()
    result = run("open_clip:mini", pictures, "--out", tmp_path / "out")
    (pictures / "empty").rmdir()
    assert "empty: expected a folder" in result.stderr


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cost and speed are not measured: the first test does that."""

    def benchmark(clip: Any, *, r: list[int], **_: Any) -> Any:
        rows = [BenchmarkRow(value, 1, 1.0, 1.0, Interval(1, 1, 1, 6), None) for value in (None, 0, *r)]
        return BenchmarkReport(tuple(rows), (1, 1), 1, {})

    monkeypatch.setattr(zero_shot, "benchmark", benchmark)


def test_recall_of_captions(tmp_path: Path, no_timing: None) -> None:
    """Pictures of EntityWorld with the captions of their scenes, beside them as img2dataset writes them."""
    world, out = World("cpu"), tmp_path / "out"
    scenes = [entity.unit for entity in world.entities() if entity.category == "scene"]
    images = world.images(40, seed=9)
    (tmp_path / "shards" / "00000").mkdir(parents=True)
    for number, (frame, scene) in enumerate(zip(images.frames, images.scene.tolist(), strict=True)):
        file = tmp_path / "shards" / "00000" / f"{number:09d}.png"
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file)
        file.with_suffix(".txt").write_text(f"{scenes[scene]}\na picture of {scenes[scene]}\n")
    arguments = ("--pretrained", "entity-world", "--sweep", "0,4", "--out", out)
    result = run("open_clip:mini", tmp_path / "shards", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "zeroshot.json").read_text())
    assert (found["pictures"], found["captions"]) == (40, 80)
    unpatched, at_0, merged = found["rows"]
    assert [row["r"] for row in found["rows"]] == [None, 0, 4]
    for way in ("image_to_text", "text_to_image"):
        recalls = [unpatched[f"{way}_{k}"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert recalls == [at_0[f"{way}_{k}"] for k in (1, 5, 10)]
    # Scenes repeat, so a caption has many equal ones, and the first of them is nearest.
    assert unpatched["image_to_text_1"] > 2 * 100 / len(scenes)
    assert merged["r"] == 4
    assert "| r | image to text R@1 % |" in result.stdout
    assert "recall of the nearest" in (out / "zeroshot.svg").read_text()


def test_a_clip_that_transformers_loads(
    pictures: Path, tmp_path: Path, no_timing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights: the accuracy is that of its own image features and texts in every template."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    publish_clip(tmp_path / "clip", image_size=56)
    out = tmp_path / "out"
    result = run(f"hf:{tmp_path / 'clip'}", pictures, "--sweep", "0,5", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "zeroshot.json").read_text())["rows"]
    model, processor = (
        CLIPModel.from_pretrained(tmp_path / "clip").eval(),
        CLIPProcessor.from_pretrained(tmp_path / "clip"),
    )
    listed = zero_shot.list_pictures(pictures)
    with torch.no_grad():
        opened = [Image.open(file) for file in listed.files]
        images = F.normalize(
            model.get_image_features(**processor(images=opened, return_tensors="pt")).pooler_output, dim=-1
        )
        texts = [template.format(name) for template in ALT16 for name in listed.classes]
        inputs = processor(text=texts, return_tensors="pt", padding="max_length", truncation=True)
        each = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1).unflatten(0, (len(ALT16), -1))
    nearest = (images @ F.normalize(each.mean(0), dim=-1).T).argmax(1).tolist()
    expected = 100 * sum(a == b for a, b in zip(nearest, listed.labels, strict=True)) / len(nearest)
    assert found[0]["top1"] == found[1]["top1"] == pytest.approx(expected)


def test_recall_is_that_of_sorted_lists() -> None:
    """Against a list of each query's keys, nearest first. Picture 1 has two captions."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 8, generator=generator), torch.randn(31, 8, generator=generator)
    owners = (0, 1, *range(1, 30))
    pictures = CaptionedPictures(tuple(Path(str(i)) for i in range(30)), ("",) * 31, owners)
    found = zero_shot._score(images, texts, pictures)
    scores = images @ texts.T
    for k in (1, 5, 10):
        texts_of = [[owners[j] for j in row.argsort(descending=True)[:k].tolist()] for row in scores]
        images_of = [row.argsort(descending=True)[:k].tolist() for row in scores.T]
        assert found[f"image_to_text_{k}"] == pytest.approx(
            100 * sum(i in near for i, near in enumerate(texts_of)) / 30
        )
        right = sum(owner in near for owner, near in zip(owners, images_of, strict=True))
        assert found[f"text_to_image_{k}"] == pytest.approx(100 * right / 31)


def test_pictures_are_cropped_or_squeezed_as_the_model_was_trained() -> None:
    wide = numpy.zeros((10, 30, 3), numpy.uint8)
    wide[:, :10] = 255  # the left third, which a crop of the centre loses
    assert fit_picture(wide, (10, 10)).max() == 0
    assert fit_picture(wide, (10, 10), whole=True).float().mean() == pytest.approx(85, abs=5)
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_proj": "linear"}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    siglip, plain = (open_clip.CustomTextCLIP(16, {**vision, "image_size": 224}, text) for _ in range(2))
    siglip.visual.preprocess_cfg = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")  # as its weights set it
    assert find_host(siglip).squeezes(siglip)
    assert not find_host(plain).squeezes(plain)
