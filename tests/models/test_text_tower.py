"""Models that hold their text tower: what it computes, when it is trained, and how it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import alt
from alt.models import create_text_encoder
from alt.train.config import OptimSection
from alt.train.optim import parameter_groups

from .tiny_models import draw

NAMES = ["lifting cup", "pushing ball"]


def vifi(**options: Any) -> Any:
    return alt.create_model("vifi-mini", pretrained="entity-world", classes=NAMES, **options)


def clips() -> torch.Tensor:
    return draw(2, 4, 3, 24, 24, dtype=torch.float32)


def test_class_texts_are_those_of_the_encoder() -> None:
    encoder = create_text_encoder("vifi-mini", pretrained="entity-world")
    model = vifi().eval()
    plain = alt.create_model("clip-mean-mini", pretrained="entity-world", classes=NAMES).eval()
    torch.testing.assert_close(model.head.embeddings, encoder.embed_classes(NAMES, "none"))
    torch.testing.assert_close(model(clips()).logits, plain(clips()).logits)
    torch.testing.assert_close(model.train()(clips()).logits, plain(clips()).logits)
    assert model.class_text_source == plain.class_text_source
    with pytest.raises(ValueError, match="templates: a model with a text tower reads one text per class, got 2"):
        model.name_classes(NAMES, encoder, ["{}", "lifting {}"])
    model.name_classes(["lifting ball"], encoder, "none")
    torch.testing.assert_close(model.head.embeddings, encoder.embed_classes(["lifting ball"], "none"))


def test_training_reaches_the_tower_and_evaluation_sees_it() -> None:
    model = vifi().train()
    torch.nn.functional.cross_entropy(model(clips()).logits, torch.tensor([0, 1])).backward()
    rates = {name: group["lr"] for group in parameter_groups(model, OptimSection(lr=1.0)) for name in group["members"]}
    tower = {name: p for name, p in model.named_parameters() if name.startswith("text.")}
    assert {rates[name] for name in tower} == {1.0}
    for name, parameter in tower.items():
        assert parameter.grad is not None, name
    before = model.head.embeddings.clone()
    with torch.no_grad():
        for parameter in tower.values():
            parameter.sub_(0.1 * parameter.grad.sign())
    assert torch.equal(model.head.embeddings, before)
    trained = model(clips()).logits
    torch.testing.assert_close(model.eval()(clips()).logits, trained)
    assert (model.head.embeddings - before).abs().max() > 1e-3


def test_held_is_saved_and_not_trained(tmp_path: Path) -> None:
    held = alt.create_model("xclip-mini", pretrained="entity-world", classes=NAMES, text="held", strategy="full")
    assert not [name for name, p in held.named_parameters() if name.startswith("text.") and p.requires_grad]
    assert not [name for name, p in vifi(strategy="frozen").named_parameters() if p.requires_grad]
    again = alt.load_model(alt.save_model(held, tmp_path / "held.safetensors"))
    torch.testing.assert_close(again.text(unit=False), held.head.embeddings)
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in held.named_parameters()}
    assert torch.equal(again.eval()(clips()).logits, held.eval()(clips()).logits)


def test_a_file_written_in_training_has_the_texts_of_its_tower(tmp_path: Path) -> None:
    model = vifi().train()
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.mul_(1.1)
    again = alt.load_model(alt.save_model(model, tmp_path / "trained.safetensors")).eval()
    torch.testing.assert_close(again(clips()).logits, model.eval()(clips()).logits)
    torch.testing.assert_close(again.head.embeddings, again.text(unit=True))


def test_a_start_from_other_classes_embeds_its_own_names(tmp_path: Path) -> None:
    start = vifi().train()
    with torch.no_grad():
        for parameter in start.text.parameters():
            parameter.mul_(1.1)
    alt.save_model(start, tmp_path / "start.safetensors")
    model = alt.create_model("vifi-mini", pretrained="entity-world", classes=["spinning box", "lifting ball", "cup"])
    alt.models.load_weights(model, tmp_path / "start.safetensors", keep_classes=True)
    assert model.classes == ["spinning box", "lifting ball", "cup"]
    torch.testing.assert_close(model.head.embeddings, start.text(model.text.ids, unit=True))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="text: a linear head reads no class texts; expected 'cached', got 'trained'"):
        alt.create_model("vifi-mini", head="linear")
    with pytest.raises(ValueError, match="text must be one of cached, held, trained, got 'loaded'"):
        alt.create_model("clip-mean-mini", text="loaded")
    with pytest.raises(TypeError, match="encoder: a cosine head needs one for the texts of its classes, got None"):
        vifi().name_classes(NAMES, None)
