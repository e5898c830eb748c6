"""transformers' own ways to train: the switch of checkpointing, and the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import alt
from tests.patch.compare import assert_same_gradients, images, loss_of

from .all_families import FAMILIES, REMOVED
from .families import TRANSFORMERS, build

pytestmark = pytest.mark.slow

OF_TRANSFORMERS = [name for name, family in FAMILIES.items() if isinstance(family.make(), hf.PreTrainedModel)]


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_the_switch_of_the_whole_model(name: str, reentrant: bool | None) -> None:
    family = FAMILIES[name]
    model, batch = build(family).train(), images(2).requires_grad_()  # reentrant ones need an input with a gradient
    options = None if reentrant is None else {"use_reentrant": reentrant}

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        loss_of(family.run(model, batch)).backward()  # torch.autograd.grad is not for reentrant ones
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    alt.patch_model(model, REMOVED)
    expected = gradients()
    model.gradient_checkpointing_enable(options)
    found = gradients()
    if reentrant:  # the bias of the patches is summed in another order, without a patch too
        assert_same_gradients(found, expected, 1e-14)
    else:
        assert found.keys() == expected.keys()
        assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())
    model.gradient_checkpointing_disable()
    found = gradients()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


class Labelled(torch.utils.data.Dataset[dict[str, Any]]):
    """Images of which the mean tells the label."""

    def __init__(self) -> None:
        self.images = 0.3 * images(32, torch.float32)
        self.labels = torch.arange(32) % 2
        self.images += (2.0 * self.labels - 1)[:, None, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def trainer(model: Any, folder: Path, **options: Any) -> hf.Trainer:
    settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "report_to": []}
    arguments = hf.TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**settings, **options})
    return hf.Trainer(model, arguments, train_dataset=Labelled(), eval_dataset=Labelled())


def test_the_trainer(tmp_path: Path) -> None:
    """It trains, evaluates, saves, resumes, and what it saved is a model of transformers."""
    model = build(TRANSFORMERS["ViTForImageClassification"], torch.float32)
    handle = alt.patch_model(model, REMOVED)
    run = trainer(model, tmp_path, num_train_epochs=4, save_steps=8, gradient_checkpointing=True)
    before = run.evaluate()["eval_loss"]
    run.train()
    after = run.evaluate()["eval_loss"]
    assert after < 0.5 * before
    assert alt.get_handle(run.model).r == handle.r == REMOVED

    plain = hf.AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-16")
    assert type(plain) is hf.ViTForImageClassification
    alt.patch_model(plain, REMOVED)
    batch = images(2, torch.float32)
    with torch.no_grad():
        assert torch.equal(plain(batch).logits, model.eval()(batch).logits)

    again = build(TRANSFORMERS["ViTForImageClassification"], torch.float32)
    alt.patch_model(again, REMOVED)
    run = trainer(again, tmp_path, num_train_epochs=4, save_steps=8, gradient_checkpointing=True)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    with torch.no_grad():
        assert torch.equal(again.eval()(batch).logits, model(batch).logits)
