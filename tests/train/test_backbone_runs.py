"""Runs, evaluations and commands over a CLIP that transformers loads: ``model.backbone=hf:PATH``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

pytest.importorskip("torchmetrics")

from alt.cli import build_app
from alt.corpus import Corpus, Entity
from alt.data.clips import write_clips
from alt.entityworld.mini_clip import load_mini_clip
from alt.errors import UserError
from alt.evaluate.class_texts import open_class_texts
from alt.models.weights import load_model, save_model
from alt.train.build import build_model, check_files
from alt.train.config import load_config

CLASSES = ["lifting cup", "pushing box"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers: a CLIPModel for 24 pixels, and a tokenizer with the words of EntityWorld."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["<start>", *load_mini_clip().tokenizer.vocabulary, "<end>"]
    end = len(known) - 1
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<start>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", end)]
    )
    ends = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "model_max_length": 16}
    trunk = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": end, "pad_token_id": end}
    text = {**trunk, **ids, "vocab_size": len(known), "max_position_embeddings": 16}
    root = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    config = CLIPConfig(text_config=text, vision_config={**trunk, "image_size": 24, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(root)
    PreTrainedTokenizerFast(tokenizer_object=inner, **ends).save_pretrained(root)
    return root


def section(*overrides: str) -> Any:
    small = ["model.name=alt-mini", "model.pretrained=null", "model.r=2", "model.templates=none", "data.preset=tiny"]
    return load_config("entity-world-cpu", [*small, "model.corpus=labels", *overrides])


def test_a_run_and_its_evaluation(folder: Path, tmp_path: Path) -> None:
    config = section(f"model.backbone=hf:{folder}")
    check_files(config)
    model: Any = build_model(config, CLASSES)
    assert model.width == 16
    assert model.corpus.encoder.backbone == f"hf:{folder}"
    saved = load_model(save_model(model, tmp_path / "model.safetensors"))
    said: list[str] = []
    texts = open_class_texts(saved, config.model, said.append)
    texts.name_classes(saved, CLASSES, "the test")
    torch.testing.assert_close(saved.head.embeddings, model.head.embeddings)
    assert not said
    with pytest.raises(UserError, match=r"were embedded by hf:.*: name its folder with model\.backbone=hf:PATH\.$"):
        open_class_texts(saved, section().model, said.append)
    other = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        other.text_projection.weight[0] += 1
    other.save_pretrained(tmp_path / "other")
    for file in folder.glob("token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        UserError, match=r"hf:.*other is another text tower: name the right weights with model\.backbone"
    ):
        open_class_texts(saved, section(f"model.backbone=hf:{tmp_path / 'other'}").model, said.append)


def test_settings_that_do_not_go_together(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model: pretrained: the backbone hf:.* has its weights already"):
        check_files(section(f"model.backbone=hf:{folder}", "model.pretrained=openai"))
    with pytest.raises(UserError, match=r"model\.options\.backbone is not set here but by model\.backbone"):
        section("model.options.backbone=ViT-B-16")
    with pytest.raises(UserError, match=r"model\.pretrained is null, so its text tower is untrained"):
        build_model(section(), CLASSES)


def test_commands(folder: Path, tmp_path: Path) -> None:
    run, app = CliRunner(), build_app()
    target = tmp_path / "cost.json"
    counted = run.invoke(app, ["cost", "xclip-b16", "--backbone", f"hf:{folder}", "--r", "2", "--json", str(target)])
    assert counted.exit_code == 0, counted.output
    found = json.loads(target.read_text())
    assert found["backbone"] == f"hf:{folder}"
    assert found["by_component"]["pooling"] == 8 * 32 * 16  # frames, widths of the tower and of the joint space
    corpus = tmp_path / "a.json"
    Corpus.from_entities([Entity("cup", "red cup", "object", "test")]).save(corpus)
    embedded = run.invoke(app, ["corpus", "embed", str(corpus), str(tmp_path / "b.json"), f"hf:{folder}"])
    assert embedded.exit_code == 0, embedded.output
    assert Corpus.load(tmp_path / "b.json").encoder.backbone == f"hf:{folder}"


def test_heat_maps_beside_the_clip_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """A checkpoint's new classes are embedded by the text tower of the CLIP that stands beside it."""
    path = save_model(build_model(section(f"model.backbone=hf:{folder}"), CLASSES), tmp_path / "alt.safetensors")
    video = torch.randint(256, (1, 4, 3, 24, 24), dtype=torch.uint8)
    listed = write_clips(tmp_path, video, [0], ["spinning ball"], "npy")
    data = ["--data", str(listed), "--labels", str(tmp_path / "labels.csv"), "--html", str(tmp_path / "maps.html")]
    alone = CliRunner().invoke(build_app(), ["heatmaps", str(path), *data])
    assert alone.exit_code == 1
    assert "Here --pretrained names the weights, and an hf:PATH among the models its folder." in alone.stderr
    both = CliRunner().invoke(build_app(), ["heatmaps", f"hf:{folder}", str(path), *data])
    assert both.exit_code == 0, both.output
    assert "spinning ball" in (tmp_path / "maps.html").read_text(encoding="utf-8")
