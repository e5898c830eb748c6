"""Models by name: sizes, weights, options, refusals."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

import alt
from alt.models.clip import build_clip, check_weights
from alt.models.config import AltConfig
from alt.models.families import FAMILIES, list_models, load_family, parse_name

from .tiny_models import draw

D = 48


def meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return alt.create_model(name, **options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random_corpus(k: int = 9) -> Tensor:
    return nn.functional.normalize(draw(k, D, seed=5, dtype=torch.float32), dim=1)


@pytest.mark.parametrize(
    ("name", "total", "tower", "left"),
    [
        ("alt-b16", 124_026_368, 86_192_640, 101),
        ("alt-l14", 426_836_992, 303_966_208, 65),
        ("alt-b32", None, 87_849_216, 26),
    ],
)
def test_parameters_of_the_paper(name: str, total: int | None, tower: int, left: int) -> None:
    model = meta(name)
    assert count(model.backbone) == tower
    assert total is None or count(model) == total
    m, d = model.config.layers, model.width
    assert count(model) - tower == m * (32 * d**2 + 39 * d) + 16 * d**2 + 10 * d
    assert model.backbone.num_tokens == left
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"meta"}
    third = meta(name, keys="mlp_tokens")
    assert count(third) - count(model) == 8 * d**2 + 5 * d


@pytest.mark.parametrize(("name", "backbone"), [("b32", "ViT-B-32"), ("b16", "ViT-B-16"), ("l14", "ViT-L-14")])
def test_tower_has_open_clips_keys(name: str, backbone: str) -> None:
    """F1: a checkpoint of open_clip fits key by key."""
    with torch.device("meta"):
        clip = open_clip.create_model(backbone, pretrained=None, device="meta")
    theirs = {f"backbone.{key}": tuple(v.shape) for key, v in clip.state_dict().items() if key.startswith("visual.")}
    ours = {key: tuple(v.shape) for key, v in meta(f"alt-{name}").state_dict().items()}
    assert theirs == {key: shape for key, shape in ours.items() if key.startswith("backbone.")}


def test_adapter_heads_and_blocks() -> None:
    for name, layers, heads in (("alt-b16", 4, 8), ("alt-l14", 6, 12), ("alt-mini", 2, 4)):
        blocks = (meta(name) if name != "alt-mini" else alt.create_model(name)).adapter.blocks
        assert len(blocks) == layers
        assert {block.cross_attention.attention.num_heads for block in blocks} == {heads}


def test_random_weights_follow_the_seed() -> None:
    torch.manual_seed(1)
    one = alt.create_model("alt-mini")
    torch.manual_seed(1)
    two = alt.create_model("alt-mini")
    other = alt.create_model("alt-mini")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.backbone.visual.proj, other.backbone.visual.proj)


def test_weights_of_a_file(tmp_path: Path) -> None:
    """Weights that open_clip can load are loaded; tower and logit scale are theirs."""
    torch.manual_seed(3)
    clip = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    with torch.no_grad():
        clip.logit_scale.fill_(3.0)
    path = tmp_path / "clip.pt"
    torch.save(clip.state_dict(), path)
    model = alt.create_model("alt-b32", backbone="ViT-S-32-alt", pretrained=path, r=0, frames=1).eval()
    assert model.config.backbone == "ViT-S-32-alt"
    assert model.logit_scale.item() == pytest.approx(20.0855, abs=1e-3)
    x = draw(1, 1, 3, 224, 224, dtype=torch.float32)
    with torch.no_grad():
        expected = clip.eval().encode_image(x[0])
        result = model.encode(x).x[0, :, 0]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"pretrained: the weights 'nowhere\.pt' of ViT-S-32-alt could not be loaded"):
        alt.create_model("alt-b32", backbone="ViT-S-32-alt", pretrained="nowhere.pt")


def test_activation_is_that_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights want QuickGELU, LAION's do not; without weights the name decides."""
    made = []

    def create(name: str, **options: Any) -> Any:
        made.append((options["pretrained"], options["force_quick_gelu"]))
        raise RuntimeError("no download in a test")

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag, quick in (("openai", True), ("laion2b_s34b_b88k", False), (None, False)):
        with pytest.raises(ValueError, match="no download in a test"):
            build_clip("ViT-B-16", tag)
        assert made[-1] == (tag, quick)
    with pytest.raises(ValueError, match="no download"):
        build_clip("ViT-B-16-quickgelu")
    assert made[-1] == (None, True)
    with pytest.raises(ValueError, match="no download"):
        build_clip("ViT-B-16", "openai", quick_gelu=False)
    assert made[-1] == ("openai", False)
    monkeypatch.undo()
    activation = type(meta("alt-b16", quick_gelu=True).backbone.visual.transformer.resblocks[0].mlp.gelu).__name__
    assert activation == "QuickGELU"


def test_mini_with_corpus_and_classes() -> None:
    model = alt.create_model("alt-mini", corpus=random_corpus(), classes=(["a", "b"], random_corpus(2))).eval()
    assert model.config.frames == 4
    output = model(draw(2, 4, 3, 24, 24, dtype=torch.float32))
    assert output.logits.shape == (2, 2)
    assert output.index.shape == (2, 4, 37 - 4 * 2)
    assert model.classes == ["a", "b"]


def test_texts_are_embedded_with_the_models_own_clip(tmp_path: Path) -> None:
    from alt.corpus import Corpus, Entity
    from alt.models import create_text_encoder

    entities = [Entity("cup", "a red cup", "object", "test"), Entity("ball", "a blue ball", "object", "test")]
    encoder = create_text_encoder("alt-mini", pretrained="entity-world")
    path = tmp_path / "corpus.json"
    Corpus.from_entities(entities).save(path)
    for corpus in (Corpus.from_entities(entities), path):
        model = alt.create_model("alt-mini", pretrained="entity-world", corpus=corpus, classes=["cup", "ball"])
        torch.testing.assert_close(model.alignment.entities, encoder.embed(model.corpus.texts))
        torch.testing.assert_close(model.head.embeddings, encoder.embed(["cup", "ball"]))
    linear = alt.create_model("alt-mini", corpus=random_corpus(), classes=["any", "words"], head="linear")
    assert linear.head.weight.shape == (2, D)
    for head in ("linear", "cosine"):  # "cup" would be three classes
        with pytest.raises(TypeError, match="classes: expected a sequence of names, got one str 'cup'"):
            alt.create_model("alt-mini", classes="cup", head=head)
    with pytest.raises(ValueError, match=r"r must be .*, got '8'"):
        alt.create_model("alt-mini", r="8")


def test_options_reach_the_configuration() -> None:
    model = alt.create_model("alt-mini", frames=3, r=[2, 0, 1, 0], align_tokens="cls", layers=1, sim_scale=1)
    assert model.config == AltConfig(
        backbone="mini", quick_gelu=False, frames=3, r=(2, 0, 1, 0), align_tokens="cls", layers=1, sim_scale=1
    )
    assert AltConfig(**model.config.to_dict()) == model.config
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.r = 3  # type: ignore[misc]


def test_list_of_models() -> None:
    names = list_models()
    assert {"alt-b16", "alt-b32", "alt-l14", "alt-mini", "clip-mean-b16", "clip-one-mini", "mit-l14"} <= set(names)
    assert all("-".join(parse_name(name)) == name for name in names)
    assert names == alt.list_models()
    assert list_models("mit-*") == ["mit-b32", "mit-b16", "mit-l14", "mit-l14-336", "mit-mini"]
    assert parse_name("xclip-l14-336") == ("xclip", "l14-336")
    assert [parse_name(family) for family in FAMILIES] == [(family, "b16") for family in FAMILIES]
    assert list_models("*-one-b16") == ["clip-one-b16"]
    assert list_models("b16") == []


@pytest.mark.parametrize("name", list_models())
def test_every_listed_pair_can_be_made(name: str) -> None:
    model = meta(name)
    size = model.backbone.image_size[0]
    assert size == {"mini": 24, "336": 336}.get(name.rpartition("-")[2], 224)
    tokens = model.encode(torch.empty(1, model.config.frames, 3, size, size, device="meta"))
    assert tokens.x.shape[-1] == model.width


def test_missing_weights_are_found_without_building_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", None)
    check_weights("ViT-B-16", None)
    check_weights("ViT-B-16", "openai")
    check_weights("mini", "entity-world")
    (tmp_path / "clip.pt").touch()
    check_weights("ViT-B-16", tmp_path / "clip.pt")
    for backbone, pretrained, words in (
        (
            "ViT-B-16",
            "opanai",
            "pretrained: there is no file opanai and no such tag of ViT-B-16; its tags",
        ),
        ("ViT-B-16", tmp_path / "none.pt", "pretrained: there is no file "),
        ("ViT-Q-1", "openai", "backbone: open_clip has no model 'ViT-Q-1'"),
        ("mini", "openai", "pretrained: expected 'entity-world' or a file of a small CLIP, found no openai"),
    ):
        with pytest.raises(ValueError, match=words):
            check_weights(backbone, pretrained)


def test_every_family_can_be_made() -> None:
    for family, entry in FAMILIES.items():
        assert load_family(family).config_class is entry.config
        model = alt.create_model(f"{family}-mini", classes=(["a", "b"], random_corpus(2)))
        if family == "alt":
            model.set_corpus(random_corpus())
        output = model.eval()(draw(2, 4, 3, 24, 24, dtype=torch.float32))
        assert output.logits.shape == (2, 2), family
        assert torch.isfinite(output.logits).all(), family


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("alt-b17", {}, ValueError, "name: expected one of alt-b32, .* got 'alt-b17'"),
        ("b16", {}, ValueError, "name: expected one of"),
        (None, {}, ValueError, "name: expected one of"),
        ("alt-mini", {"colour": 1}, TypeError, "colour is not a setting; known are backbone"),
        (
            "alt-mini",
            {"reduction": "max"},
            ValueError,
            "reduction must be one of mean, .* got 'max'",
        ),
        ("alt-mini", {"head": None}, ValueError, "head must be one of cosine, literal, linear, got None"),
        ("alt-mini", {"hard": 1}, TypeError, "hard must be true or false, got 1"),
        ("alt-mini", {"frames": 0}, ValueError, "frames must be 1 or more, got 0"),
        ("alt-mini", {"layers": True}, TypeError, "layers must be a whole number, got True"),
        ("alt-mini", {"conv_kernel": 4}, ValueError, "conv_kernel must be an odd number of frames, got 4"),
        ("alt-mini", {"heads": 5}, ValueError, "heads: expected a divisor of the joint width 48, got 5"),
        ("alt-mini", {"tau": 0.0}, ValueError, "tau must be above 0, got 0"),
        ("alt-mini", {"sim_scale": "1"}, TypeError, "sim_scale must be a number, got '1'"),
        ("alt-mini", {"r": -1}, ValueError, "r must"),
        ("alt-mini", {"quick_gelu": True}, ValueError, "quick_gelu: the mini model was trained without it"),
        ("alt-mini", {"corpus": torch.zeros(3, 7)}, ValueError, r"corpus: expected embeddings \[K, 48\]"),
        ("alt-b16", {"backbone": "ViT-Q-1"}, ValueError, "backbone: open_clip has no model 'ViT-Q-1'"),
        (
            "alt-b16",
            {"backbone": "RN50"},
            TypeError,
            "image tower: expected an open_clip Vision.* ModifiedResNet",
        ),
    ],
)
def test_refusals(name: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        alt.create_model(name, **options)


def test_importing_the_package_loads_no_open_clip() -> None:
    code = "import sys, alt.models; alt.list_models(); print('open_clip' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert printed.stdout.strip() == "False"
