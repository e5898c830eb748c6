"""Heat maps of several models side by side: the page, the pictures, and ``alt heatmaps`` over saved models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from alt.cli import build_app
from alt.corpus.verb_groups import group_by_verb
from alt.data.action_names import name_to_text, read_action_names
from alt.data.clips import write_clips
from alt.models import create_text_encoder, save_model
from alt.visualize import (
    ComparedHeat,
    TextMap,
    draw_heat_comparison,
    explain,
    map_text,
    text_heat_map,
    write_heat_comparison,
)
from alt.visualize.draw import colour_of, draw_heat, enlarge

from .conftest import Scene
from .test_page import Reader, self_contained


def flat(value: float, frames: int = 2) -> TextMap:
    return TextMap(np.zeros((frames, 24, 24, 3), np.uint8), np.full((frames, 2, 2), value, np.float32))


def test_columns_of_a_clip_have_one_scale() -> None:
    """A map that is constant at the lowest value of all has the colour of the scale's end, not of its own middle."""
    compared = ComparedHeat("cup", {"low": flat(0.1), "high": flat(0.3)})
    assert compared.scale == pytest.approx((0.1, 0.3))
    frame, low, high = compared.draw(1)
    assert (frame == 0).all()
    for drawn, end in ((low, 0.0), (high, 1.0)):
        assert (drawn == np.rint(0.58 * colour_of(np.array([end])))).all()
    picture = np.asarray(draw_heat_comparison(compared))
    panels = [picture[44 + 10 + row * (240 + 40), 12 + 10 + column * 252] for row in (0, 1) for column in range(3)]
    assert [panel.tolist() for panel in panels] == 2 * [part[0, 0].tolist() for part in (frame, low, high)]


def test_long_clips_show_four_frames() -> None:
    assert ComparedHeat("cup", {"a": flat(0, 16)}).frames == [2, 6, 10, 14]
    assert ComparedHeat("cup", {"a": flat(0, 3)}).frames == [0, 1, 2]


def test_maps_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"same frames for 'cup', got .* \[2, 24, 24\] of a and \[3, 24, 24\] of b"):
        draw_heat_comparison(ComparedHeat("cup", {"a": flat(0), "b": flat(0, 3)}))
    for nothing in ([], [ComparedHeat("cup", {})]):
        with pytest.raises(ValueError, match="compared: expected at least one clip"):
            write_heat_comparison("none.html", nothing)


def test_the_page_has_groups_as_headings_and_escapes_names(scene: Scene, tmp_path: Path) -> None:
    model, evil = scene.model("clip-mean-mini"), "<script>alert(1)</script>"
    name, frames = scene.split.class_names[0], scene.clips.frames[0]
    maps = {evil: map_text(model, frames, name)}
    compared = [ComparedHeat(name, maps, "novel verbs", evil), ComparedHeat(evil, maps, evil)]
    page = self_contained(write_heat_comparison(tmp_path / "page.html", compared, title=evil, note=evil))
    assert len(page.images) == 2 * 4 * 2
    assert page.images[1]["alt"] == f"likeness to “{name}” by {evil}, frame 1"
    words = " ".join(page.words)
    assert words.index("novel verbs") < words.index(name) < words.rindex(evil)


@pytest.fixture(scope="module")
def files(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, and two models of other classes: one with a text tower of its own, which was trained."""
    folder = tmp_path_factory.mktemp("files")
    write_clips(folder, scene.clips.frames[:2], [0, 1], scene.split.class_names[:2], "npy")
    model = scene.model("vifi-mini")
    encoder = create_text_encoder("vifi-mini", pretrained="entity-world")
    model.name_classes(["lifting cup"], encoder, "none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    model.refresh_texts()
    (folder / "tuned").mkdir()
    save_model(model, folder / "tuned" / "model.safetensors")
    save_model(scene.model("mit-mini"), folder / "mit.safetensors")
    (folder / "names.txt").write_text(f"{scene.split.class_names[1]}\nsitting\n")
    return folder


def heatmaps(files: Path, *arguments: object) -> Result:
    data = ("--data", files / "list.txt", "--labels", files / "labels.csv")
    return CliRunner().invoke(build_app(), ["heatmaps", *map(str, (*arguments, *data))])


def test_clip_before_training_stands_beside_checkpoints(scene: Scene, files: Path, tmp_path: Path) -> None:
    models = ("open_clip:mini", files / "tuned", files / "mit.safetensors", "--pretrained", "entity-world")
    output = ("--html", tmp_path / "maps.html", "--pictures", tmp_path / "all", "--dictionary", files / "names.txt")
    result = heatmaps(files, *models, *output)
    assert result.exit_code == 0, result.output
    page = Reader((tmp_path / "maps.html").read_text(encoding="utf-8"))
    names = scene.split.class_names[:2]
    groups = group_by_verb(names, [names[1], "sitting"])
    words = [word for word in page.words if word.strip()]
    columns = [word for word in words if word in ("CLIP", "tuned", "mit")]
    assert columns == 2 * ["CLIP", "tuned", "mit"]
    headings = [word for word in words if word.endswith(" verbs")]
    assert headings == [group for group in ("in-dictionary verbs", "novel verbs") if group in groups]
    assert len(list((tmp_path / "all").glob("*.png"))) == 2
    # the first clip's maps by hand: CLIP with bare names, and the tuned tower's own text
    clip = scene.model("clip-mean-mini")
    expected = map_text(clip, scene.clips.frames[0], names[0])
    tuned = scene.model("vifi-mini")
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.05)
        text = tuned.text.embed(
            create_text_encoder("vifi-mini", pretrained="entity-world").tokenise([names[0]]), unit=True
        )[0]
    heat = text_heat_map(explain(tuned, scene.clips.frames[0]), text)
    maps = {"CLIP": expected, "tuned": TextMap(expected.pictures, heat)}
    maps["mit"] = map_text(scene.model("mit-mini"), scene.clips.frames[0], names[0])
    whole = ComparedHeat(names[0], maps)
    (drawn,) = (tmp_path / "all").glob(f"*_{names[0].replace(' ', '_')}.png")
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(draw_heat_comparison(whole)))
    assert not np.array_equal(expected.heat, heat)
    assert draw_heat(enlarge(expected.pictures[0]), heat[0], *whole.scale).shape == (240, 240, 3)


def test_errors_are_one_sentence(scene: Scene, files: Path, tmp_path: Path) -> None:
    page = ("--html", tmp_path / "no.html")
    save_model(scene.model("mit-mini", head="linear"), tmp_path / "linear.safetensors")
    save_model(scene.model("mit-mini", frames=3), tmp_path / "three.safetensors")
    tuned = files / "tuned"
    for arguments, words in (
        ((tuned,), "Say what to write: --html FILE"),
        ((files / "none", *page), "there is no model at"),
        ((tuned, "--dictionary", "k401", *page), "--dictionary: 'k401' is neither a file nor one of"),
        ((tmp_path / "linear.safetensors", *page), "its linear head has no texts"),
        ((files / "mit.safetensors", tmp_path / "three.safetensors", *page), "has weights for 3 frames, got 4"),
        (("open_clip:mini", *page), "open_clip:NAME needs its weights: --pretrained TAG"),
        (("open_clip:none", "--pretrained", "x", *page), "open_clip:none: "),
    ):
        result = heatmaps(files, *arguments)
        assert result.exit_code in (1, 2), (arguments, result.output)
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "no.html").exists()


def test_groups_of_published_names() -> None:
    k400 = [name_to_text(name) for name in read_action_names("k400")]
    names = ["clap", "kiss", "draw sword", "chew", "pour", "fall floor", "ride horse", "eat", "playing daf"]
    found = group_by_verb(names, k400)
    assert found == [*3 * ["in-dictionary verbs"], *3 * ["novel verbs"], *3 * ["general verbs"]]
    assert group_by_verb(["horse riding", "cleaning"], ["ride bike", "cartwheel"]) == [
        *("in-dictionary verbs", "novel verbs"),
    ]
    with pytest.raises(ValueError, match="dictionary: expected at least one name, got none"):
        group_by_verb(["clap"], [])
