"""Models in a folder as the Hub has them. Nothing here uses a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alt.models.alt import AltModel
from alt.models.baselines import ClipMean
from alt.models.video_model import VideoModel
from alt.models.weights import load_model, save_model

from .test_baselines import build
from .test_weights import same_state, with_corpus
from .tiny_models import clips


@pytest.mark.parametrize("cls", [VideoModel, AltModel])
def test_a_folder_and_back(tmp_path: Path, cls: Any) -> None:
    model = with_corpus(r=(3, 1), tau=0.5)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert type(loaded) is AltModel
    assert not loaded.training
    assert same_state(model, loaded)
    assert loaded.config == model.config
    assert loaded.classes == model.classes
    assert list(loaded.corpus) == list(model.corpus)
    assert torch.equal(loaded(clips()).logits, model(clips()).logits)


def test_files_that_others_read(tmp_path: Path) -> None:
    """The weights are the file of save_model; config.json and the card are there for people and the Hub."""
    model = build(ClipMean, r=2)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert same_state(load_model(tmp_path / "model.safetensors"), model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["family"] == "clip-mean"
    assert config["r"] == 2
    card = (tmp_path / "README.md").read_text()
    assert "library_name: alt-kernels" in card
    assert "VideoModel.from_pretrained(" in card
    model.r = 1  # saved again after a change: nothing is left of the configuration that the model was made with
    model.save_pretrained(tmp_path)
    assert VideoModel.from_pretrained(tmp_path).r == 1
    assert json.loads((tmp_path / "config.json").read_text())["r"] == 1


def test_another_class_is_refused(tmp_path: Path) -> None:
    save_model(with_corpus(), tmp_path / "model.safetensors")  # as a training run leaves it, without config.json
    assert type(VideoModel.from_pretrained(tmp_path)) is AltModel
    with pytest.raises(ValueError, match="holds a AltModel, not a ClipMean"):
        ClipMean.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        VideoModel.from_pretrained(tmp_path.parent)
