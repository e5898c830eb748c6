"""LoRA by peft on the projections of every family's attention: exact at r = 0, trained, and merged into the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from torch import nn

import alt
from tests.patch.compare import assert_same_gradients, images, loss_of, max_difference, parameter_gradients

from .all_families import FAMILIES, REMOVED
from .families import Family, build

pytestmark = pytest.mark.slow


def projections(family: Family, model: nn.Module) -> list[str]:
    """The linear layers of attention. ``MultiheadAttention`` has one name for all of its own.

    timm reads the weight of ``qkv`` itself where a bias lies beside it: an adapter of it does nothing until it is
    merged (test_rotary.py), so it is left out.
    """
    attentions = family.attention(family.tower(model))
    found = []
    for name, module in model.named_modules():
        for attention in attentions:
            whole = isinstance(attention, nn.MultiheadAttention)
            if module is attention if whole else isinstance(module, nn.Linear) and module in attention.children():
                read = name.endswith("qkv") and getattr(attention, "q_bias", None) is not None
                found += [] if read else [name]
    return found


def adapted(family: Family) -> tuple[Any, Any]:
    """A model with random adapters, and the model inside that runs."""
    base = build(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=projections(family, base), init_lora_weights=False)
        model = peft.get_peft_model(base, config).double().eval()
    return model, model.base_model.model


@pytest.fixture(autouse=True)
def _layers_that_call_their_attention() -> Iterator[None]:
    """torch's fused encoder layer reads the weights of its attention, and so skips adapters; a patched one does not."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_all_projections(name: str) -> None:
    family: Family = FAMILIES[name]
    batch = images(2)
    plain = family.run(build(family), batch)
    model, inner = adapted(family)
    expected = family.run(inner, batch)
    gradients = parameter_gradients(model, loss_of(expected))
    assert max_difference(expected, plain) > 1e-3, "the adapters do something"
    whole = copy.deepcopy(model).merge_and_unload().eval()
    with alt.patch_model(inner, 0) as handle:
        found = family.run(inner, batch)
        assert max_difference(found, expected) < 1e-12
        assert_same_gradients(parameter_gradients(model, loss_of(found)), gradients, 1e-12)
        handle.r = REMOVED
        found = family.run(inner, batch)
        with alt.patch_model(whole, REMOVED):
            assert max_difference(family.run(whole, batch), found) < 1e-11
        assert_a_step_lowers_the_loss(family, model, inner)
        trained = family.run(inner, batch)
        merged = model.merge_and_unload()
        assert max_difference(family.run(merged, batch), trained) < 1e-11
        assert alt.get_handle(merged).r == REMOVED


def assert_a_step_lowers_the_loss(family: Family, model: Any, inner: Any) -> None:
    """By what the gradients promise; every adapter has one.

    peft's gradients of a ``MultiheadAttention`` are up to a fifth too small, with and without a patch.
    """
    before = loss_of(family.run(inner, images(2)))
    gradients = parameter_gradients(model, before)
    assert all("lora_" in name and bool(gradient.any()) for name, gradient in gradients.items())
    promised = 1e-6
    packed = any(isinstance(part, nn.MultiheadAttention) for part in inner.modules())
    rate = promised / sum(gradient.square().sum().item() for gradient in gradients.values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter -= rate * gradients[name]
        assert before - loss_of(family.run(inner, images(2))) == pytest.approx(promised, rel=0.3 if packed else 1e-3)
