"""Pictures, the page, and ``alt predict`` from the checkpoint to the file."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from alt.cli import build_app
from alt.data.clips import write_clip
from alt.models import save_model
from alt.visualize import (
    Agreement,
    HeatRow,
    Truth,
    explain,
    heat_rows,
    measure_agreement,
    share_in_clip,
    write_example_page,
    write_page,
    write_pictures,
)
from alt.visualize.draw import colour_of, draw_entities, draw_heat, enlarge, entity_keys

from .conftest import Scene


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def self_contained(path: Path) -> Reader:
    text = path.read_text(encoding="utf-8")
    page = Reader(text)
    assert all(link.startswith("data:") for link in page.links)
    assert not {"script", "iframe", "object", "embed"} & page.tags
    for word in ("http:", "https:", "url(", "@import"):
        assert word not in text
    for image in page.images:
        assert image["alt"]
        assert image["src"] is not None
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition("base64,")[2])))
        picture.load()
    return page


@pytest.mark.parametrize("r", [0, 2])
def test_page_is_one_file_with_all_in_it(scene: Scene, tmp_path: Path, r: int) -> None:
    model = scene.model(r=r)
    path = write_example_page(model, scene.clips.frames[0], tmp_path, note="<true> & class")
    assert [p.name for p in tmp_path.iterdir()] == ["example.html"]
    assert path.stat().st_size < 600_000
    page = self_contained(path)
    words = " ".join(page.words)
    found = explain(model, scene.clips.frames[0])
    assert "<true> & class" in words
    assert all(entity.unit in words for entity in found.entities[:12])
    assert found.classes[0].name in words
    titles = {str(image["alt"]).partition(",")[0] for image in page.images}
    assert {"frame", "merged regions", "entities", f"likeness to “{found.classes[0].name}”"} <= titles
    assert "not in the clip" not in words
    assert "In the clip" not in words


def test_names_from_files_cannot_put_anything_into_the_page(scene: Scene, tmp_path: Path) -> None:
    """A class, an entity, a category, a title and a text of heat maps that would be markup, script or style."""
    evil = '"><script>alert(1)</script><img src=https://x onerror=alert(1)>'
    found = explain(scene.model(), scene.clips.frames[0])
    entities = tuple(e._replace(unit=evil, category="</style>" + evil) for e in found.entities)
    found = dataclasses.replace(
        found,
        classes=tuple(c._replace(name=evil) for c in found.classes),
        entities=entities,
        frames=tuple(tuple(e._replace(unit=evil) for e in frame) for frame in found.frames),
        units=(evil,) * len(found.units),
    )
    rows = [HeatRow("cosine", "x", f"likeness to “{evil}”", np.zeros((4, 6, 6), np.float32))]
    truth = Truth(evil, {evil: (evil,)})
    plain, known = tmp_path / "plain.html", tmp_path / "known.html"
    write_page(plain, found, rows, title=evil, note=evil)
    write_page(known, found, rows, title=evil, note=evil, truth=truth, agreement=Agreement(1, 1.0, 1.0, {evil: 1.0}))
    for path in (plain, known):
        text = path.read_text(encoding="utf-8")
        page = Reader(text)
        assert not {"script", "iframe", "object", "embed"} & page.tags
        assert all("onerror" not in image for image in page.images)
        assert all(link.startswith("data:") for link in page.links)
        assert "<script" not in text
        assert evil in " ".join(page.words)


def test_truth_stands_beside_what_was_chosen(scene: Scene, tmp_path: Path) -> None:
    model = scene.model(r=2)
    pairs = [(explain(model, frames), scene.truth(i)) for i, frames in enumerate(scene.clips.frames[:12])]
    known = measure_agreement(pairs)
    for number, (found, truth) in enumerate(pairs):
        page = Reader(
            write_page(tmp_path / "page.html", found, [], truth=truth, agreement=known).read_text(encoding="utf-8")
        )
        words = " ".join(" ".join(page.words).split())
        rank = [score.name for score in found.classes].index(truth.name) + 1
        assert ("Right: the clip shows" in words) == (rank == 1), number
        assert f"the clip shows “{truth.name}”" in words
        assert rank == 1 or f"which is number {rank} with" in words
        share = sum(e.share for e in found.entities if e.unit in truth.entities[e.category])
        assert share == pytest.approx(share_in_clip(found, truth))
        assert f"{100 * share:.0f} % of the tokens chose an entity that is in this clip" in words
        listed = found.entities[:12]
        wrong = [e for e in listed if e.unit not in truth.entities[e.category]]
        assert words.count("not in the clip") == len(wrong)
        for category, units in truth.entities.items():
            assert all(unit in words for unit in units), category
    assert f"In 12 other clips the most probable class is right in {100 * known.top1:.0f} %" in words


def test_heat_maps_are_those_of_what_is_in_the_clip(scene: Scene, tmp_path: Path) -> None:
    truth = scene.truth(0)
    known = Agreement(9, 0.5, 1.0, {"object": 0.7, "body_part": 0.5, "scene": 0.49, "motion": 0.0})
    path = write_example_page(scene.model(), scene.clips.frames[0], tmp_path, truth=truth, agreement=known)
    titles = dict.fromkeys(str(image["alt"]).rpartition(",")[0] for image in self_contained(path).images)
    maps = [title for title in titles if title.startswith("likeness")]
    assert maps == [f"likeness to “{truth.entities[c][0]}”" for c in ("object", "body_part")]
    assert list(titles)[-1] == "entities"  # what can be trusted least comes last


def test_agreement_counts_clips(scene: Scene) -> None:
    """By hand on made-up answers: two clips, the second of another class and with another object."""
    found = explain(scene.model(), scene.clips.frames[0])
    first = {category: next(e for e in found.entities if e.category == category) for category in ("object", "scene")}
    right = Truth(found.classes[0].name, {"object": ("none", first["object"].unit), "scene": (first["scene"].unit,)})
    wrong = Truth(found.classes[3].name, {"object": ("none",), "scene": (first["scene"].unit,), "taste": ("sour",)})
    known = measure_agreement([(found, right), (found, wrong)])
    assert known == Agreement(2, 0.5, 1.0, {"scene": 1.0, "object": 0.5, "taste": 0.0})
    assert list(known.categories) == ["scene", "object", "taste"]
    assert measure_agreement([(found, Truth("no such class", {}))]) == Agreement(1, 0.0, 0.0, {})
    with pytest.raises(ValueError, match="clips: expected at least one, got none"):
        measure_agreement([])


def test_entity_picture_has_the_colour_of_each_patch(scene: Scene) -> None:
    found = explain(scene.model(r=2), scene.clips.frames[2])
    keys = entity_keys(found)
    assert len({key.badge for key in keys.values()}) == len(keys)
    black = np.zeros((240, 240, 3), np.uint8)
    drawn = draw_entities(black, found.entity_map(0), keys)
    for (y, x), number in np.ndenumerate(found.entity_map(0)):
        patch = drawn[40 * y + 3 : 40 * y + 8, 40 * x + 3 : 40 * x + 8].reshape(-1, 3)  # beside badge and outline
        assert (patch == np.rint(0.55 * np.array(keys[int(number)].colour))).all()


def test_heat_picture_is_monotonic_and_small_frames_are_enlarged() -> None:
    light = colour_of(np.linspace(0, 1, 64)).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(light) > -0.6).all()
    assert light[-1] - light[0] > 150
    picture = np.arange(24 * 24 * 3, dtype=np.uint32).reshape(24, 24, 3).astype(np.uint8)
    large = enlarge(picture)
    assert large.shape == (240, 240, 3)
    assert np.array_equal(large[5::10, 5::10], picture)
    assert enlarge(large) is not None
    assert enlarge(np.zeros((224, 224, 3), np.uint8)).shape == (224, 224, 3)
    drawn = draw_heat(np.full((8, 8, 3), 90, np.uint8), np.array([[0.0, 1], [0, 1]]), 0, 1)
    assert len(np.unique(drawn[:, :4].reshape(-1, 3), axis=0)) == 1
    assert (drawn[:, 4:] >= drawn[:, :1]).all()


def test_baseline_page_says_that_nothing_is_aligned(scene: Scene, tmp_path: Path) -> None:
    model = scene.model("mit-mini")
    found = explain(model, scene.clips.frames[0])
    path = write_page(tmp_path / "page.html", found, heat_rows(model, scene.clips.frames[0], found))
    page = self_contained(path)
    assert "This model aligns no regions to entities" in " ".join(page.words)
    assert any(str(image["alt"]).startswith("where “") for image in page.images)


def test_pictures_of_names_with_dollars_and_quotes(scene: Scene, tmp_path: Path) -> None:
    """matplotlib would read $...$ as a formula and fail on a wrong one; Pillow's own font lacks curly quotes."""
    model = scene.model()
    found = explain(model, scene.clips.frames[0])
    odd = "cost of $\\frac{ “a” $"
    found = dataclasses.replace(
        found,
        entities=tuple(e._replace(unit=odd, category="$\\x$") for e in found.entities),
        units=(odd,) * len(found.units),
    )
    rows = heat_rows(model, scene.clips.frames[0], found, ["cup"])
    another = rows[0]._replace(heat=-rows[0].heat)  # of a text with the same file name
    paths = write_pictures(tmp_path, found, [*rows, another])
    names = ["regions", "entities", "cosine_cup", "gradient_cup", "cosine_cup_2", "ranked"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    for path in paths:
        assert np.asarray(Image.open(path).convert("L")).std() > 5, path
    assert paths[2].read_bytes() != paths[4].read_bytes()


@pytest.fixture(scope="module")
def saved(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_model(scene.model(), folder / "model.safetensors")
    save_model(scene.model("clip-mean-mini"), folder / "mean.safetensors")
    write_clip(folder / "clip", scene.clips.frames[0])
    write_clip(folder / "clip.npy", scene.clips.frames[0])
    write_clip(folder / "short.npy", scene.clips.frames[0][:2])
    return folder


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["predict", *map(str, arguments)])


def test_predict_prints_and_writes(scene: Scene, saved: Path, tmp_path: Path) -> None:
    result = predict(saved, saved / "clip", "--html", tmp_path / "p.html", "--pictures", tmp_path / "all", "--top", 3)
    assert result.exit_code == 0, result.output
    found = explain(scene.model(), scene.clips.frames[0])
    for name in (*(c.name for c in found.classes[:3]), *(e.unit for e in found.entities[:3])):
        assert name in result.output
    assert found.classes[3].name not in result.output
    self_contained(tmp_path / "p.html")
    names = {p.stem for p in (tmp_path / "all").iterdir()}
    assert {"regions", "entities", "ranked"} <= names
    assert sum(name.startswith("gradient_") for name in names) == sum(name.startswith("cosine_") for name in names) > 1


def test_predict_json_at_another_r(scene: Scene, saved: Path) -> None:
    result = predict(saved / "model.safetensors", saved / "clip.npy", "--json", "-", "--r", 4, "--top", 2)
    assert result.exit_code == 0, result.output
    kept = json.loads(result.stdout)
    found = explain(scene.model(r=4), scene.clips.frames[0])
    assert [c["name"] for c in kept["classes"]] == [c.name for c in found.classes[:2]]
    assert kept["entities"][0]["unit"] == found.entities[0].unit
    assert kept["frames"][3]["source_map"] == found.regions(3).tolist()
    assert len(kept["frames"][0]["entity_of_region"]) == 21


def test_predict_repeats_the_frames_of_a_short_clip_and_says_so(saved: Path) -> None:
    result = predict(saved / "model.safetensors", saved / "short.npy")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"Warning: {saved / 'short.npy'} has 2 of 4 frames, which repeat in order\n"


def test_predict_errors_are_one_sentence(saved: Path) -> None:
    model = saved / "model.safetensors"
    for arguments, words in (
        ((model, saved / "none"), "no such file or folder"),
        ((saved / "none.safetensors", saved / "clip"), "no such checkpoint"),
        ((saved / "clip.npy", saved / "clip"), "not a model"),
        ((model, saved / "clip", "--r", "x"), "--r takes a number"),
        ((model, saved / "clip", "--text", "cupp", "--html", saved / "no.html"), "nearest: 'cup'"),
    ):
        result = predict(*arguments)
        assert result.exit_code == (2 if "--r" in arguments else 1), (arguments, result.output)
        assert result.stderr.startswith("Error: ")
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (saved / "no.html").exists()
    assert "aligns no regions" in predict(saved / "mean.safetensors", saved / "clip").output
