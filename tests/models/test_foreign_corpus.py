"""A corpus that another text encoder of the same width embedded is refused wherever it meets a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import alt
from alt.corpus import Corpus
from alt.entityworld.mini_clip import load_mini_clip, save_mini_clip
from alt.errors import UserError
from alt.models.header import HEADER_KEY
from alt.models.text import fingerprint_text_tower
from alt.models.weights import load_model, load_weights, read_header, save_model
from alt.train import load_config
from alt.train.build import check_files

CORPUS = Corpus.from_entities([("cup", "", "object"), ("hand", "", "body_part")])
NAMES = r"mini with the weights entity-world \(\w{8}\)", r"mini with the weights other.safetensors \(\w{8}\)"
REFUSED = f"was embedded by {NAMES[0]}, and the model belongs to {NAMES[1]}"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a small CLIP like the shipped one, whose text tower was trained a little further."""
    mini = load_mini_clip("entity-world")
    with torch.no_grad():
        mini.clip.text_projection += 1e-3
    path = tmp_path_factory.mktemp("mini") / "other.safetensors"
    save_mini_clip(mini, path)
    return str(path)


def test_the_fingerprint_survives_another_precision() -> None:
    clip = load_mini_clip("entity-world").clip
    whole = fingerprint_text_tower(clip)
    assert fingerprint_text_tower(clip.to(torch.bfloat16)) == whole
    with torch.no_grad():
        clip.visual.proj.mul_(2)
    assert fingerprint_text_tower(clip) == whole
    with torch.no_grad():
        clip.ln_final.bias.add_(0.01)
    assert fingerprint_text_tower(clip) != whole


def test_refused_when_a_model_is_made_or_loaded(other: str, tmp_path: Path) -> None:
    encoder = alt.create_text_encoder("alt-mini", pretrained="entity-world")
    corpus = CORPUS.embed(encoder)
    path = corpus.save(tmp_path / "c.json")
    model = alt.create_model("alt-mini", pretrained="entity-world", corpus=path)
    assert model.joint_text_source == model.corpus.encoder == encoder.source()
    with pytest.raises(ValueError, match=REFUSED):
        alt.create_model("alt-mini", pretrained=other, corpus=corpus)
    foreign = alt.create_model("alt-mini", pretrained=other, corpus=CORPUS, classes=["cup"])
    loaded = load_model(save_model(foreign, tmp_path / "model.safetensors"))
    assert loaded.joint_text_source == foreign.joint_text_source == loaded.corpus.encoder
    with pytest.raises(ValueError, match=REFUSED):
        loaded.set_corpus(path)
    with pytest.raises(ValueError, match="the text that the model keeps was embedded by mini with"):
        load_weights(model, tmp_path / "model.safetensors", keep_corpus=True)
    load_weights(model, tmp_path / "model.safetensors")  # with its corpus, its classes, and so its encoder
    assert model.joint_text_source == foreign.joint_text_source


def test_the_space_and_the_class_names_have_records_of_their_own() -> None:
    """One is known without classes and holds for corpora; the other has templates, and is lost with bare embeddings."""
    model = alt.create_model("clip-mean-mini", pretrained="entity-world")
    encoder = alt.create_text_encoder("alt-mini", pretrained="entity-world")
    assert (model.joint_text_source, model.class_text_source) == (encoder.source(), None)
    model.name_classes(["cup", "hand"], encoder, ["lifting {}"])
    assert (
        model.class_text_source
        == encoder.source(["lifting {}"])
        == model.joint_text_source._replace(templates=("lifting {}",))
    )
    model.set_classes(["cup", "hand"], torch.eye(2, 48))
    assert (model.joint_text_source, model.class_text_source) == (encoder.source(), None)
    for old, new in (("text_source", "joint_text_source"), ("class_texts", "class_text_source")):
        with pytest.warns(DeprecationWarning, match=f"model.{old} is now model.{new}"):
            assert getattr(model, old) is getattr(model, new)


class NamelessEncoder:
    def embed(self, texts: list[str]) -> torch.Tensor:
        return torch.randn(len(texts), 48)


def test_unknown_encoders_are_not_compared() -> None:
    nameless = CORPUS.embed(NamelessEncoder())
    assert nameless.encoder is None
    alt.create_model("alt-mini", pretrained="entity-world", corpus=nameless)
    untrained = alt.create_model("alt-mini", corpus=CORPUS.embed(alt.create_text_encoder("alt-mini")))
    assert untrained.joint_text_source is None


def test_a_model_file_of_format_1_still_loads(tmp_path: Path) -> None:
    model = alt.create_model("alt-mini", pretrained="entity-world", corpus=CORPUS, classes=["cup"])
    path = save_model(model, tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    assert header.pop("text_encoder")["backbone"] == "mini"
    header |= {"format": 1, "corpus": [["cup", "", "object", "lifting cup"], ["hand", "", "body_part", ""]]}
    save_file(load_file(path), path, {HEADER_KEY: json.dumps(header)})
    loaded = load_model(path)
    assert loaded.joint_text_source is None
    assert loaded.corpus[0].sources == ("lifting cup",)
    assert read_header(path)["text_encoder"] is None


def test_a_run_refuses_it_before_any_weights_are_read(tmp_path: Path) -> None:
    path = CORPUS.embed(alt.create_text_encoder("alt-mini", pretrained="entity-world")).save(tmp_path / "c.json")
    check_files(load_config("entity-world-cpu", [f"model.corpus={path}"]))
    with pytest.raises(UserError, match=r"embedded by mini with .* embeds its texts with ViT-B-16"):
        check_files(load_config("base", [f"model.corpus={path}", "model.pretrained=null"]))
    with pytest.raises(UserError, match=r"embedded by mini with .* embeds its texts with random;"):
        check_files(load_config("entity-world-cpu", [f"model.corpus={path}", "model.texts=random"]))
    with pytest.raises(UserError, match="no entity of category scene"):
        check_files(load_config("entity-world-cpu", [f"model.corpus={path}", "model.corpus_categories=[scene]"]))
    path.write_text("{")
    with pytest.raises(UserError, match="is not a corpus file"):
        check_files(load_config("entity-world-cpu", [f"model.corpus={path}"]))
