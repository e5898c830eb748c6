"""LoRA adapters of peft on every projection of a tower: r = 0 as unpatched, r > 0 as the merged weights."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from towers import images, loss_of, max_difference, tower

import alt

# target_modules or target_parameters of LoraConfig, and what becomes of block.attn.
CASES = {
    "whole MultiheadAttention": ({}, ["attn"], None, "MultiheadAttention"),
    "in_proj of MultiheadAttention": ({}, None, ["attn.in_proj_weight"], "ParamWrapper"),
    "mlp of MultiheadAttention": ({}, ["c_fc", "c_proj"], None, "MultiheadAttention"),
    "out_proj and mlp of Attention": ({"qk_norm": True}, ["out_proj", "c_fc"], None, "Attention"),
    "in_proj of Attention": ({"qk_norm": True}, None, ["attn.in_proj_weight"], "ParamWrapper"),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def adapted(request):
    """A tower under LoRA with random adapters, and the same tower with the adapters added to its weights."""
    options, modules, parameters, attention = request.param
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=modules or [], target_parameters=parameters, init_lora_weights=False
    )
    model = peft.get_peft_model(tower(**options), config).double()
    visual = model.base_model.model
    assert type(visual.transformer.resblocks[0].attn).__name__ == attention
    merged = copy.deepcopy(model).merge_and_unload()
    return model, visual, merged


def test_r_zero_is_the_unpatched_model(adapted):
    model, visual, _merged = adapted
    expected, keys = model(images()), list(model.state_dict())
    handle = alt.patch_clip(visual, 0)
    assert max_difference(model(images()), expected) < 1e-11
    assert list(model.state_dict()) == keys
    handle.remove()
    assert max_difference(model(images()), expected) < 1e-12


def test_merging_is_that_of_the_merged_weights(adapted):
    model, visual, merged = adapted
    handle = alt.patch_clip(visual, 3, trace_source=True)
    with alt.patch_clip(merged, 3, trace_source=True) as reference:
        expected = merged(images())
        assert max_difference(model(images()), expected) < 1e-11
        assert torch.equal(handle.source, reference.source)
    with model.disable_adapter():  # back to the base weights, matching included
        off = model(images())
    assert max_difference(off, expected) > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train(adapted, checkpointing):
    model, visual, _merged = adapted
    visual.set_grad_checkpointing(checkpointing)
    alt.patch_clip(visual, 3)
    loss_of(model(images())).backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_" in n]
    assert gradients
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_disabled_adapters_match_by_the_base_weights(adapted):
    model, visual, _merged = adapted
    base = copy.deepcopy(model).unload()
    with model.disable_adapter(), alt.patch_clip(visual, 3), alt.patch_clip(base, 3):
        assert max_difference(model(images()), base(images())) < 1e-11


def test_adapters_added_to_a_patched_tower():
    config = peft.LoraConfig(r=4, target_modules=["attn", "c_fc"], init_lora_weights=False)
    early, late = (peft.get_peft_model(v, config).double() for v in (_patched(tower()), tower()))
    late.load_state_dict(early.state_dict())
    alt.patch_clip(late.base_model.model, 3)
    assert max_difference(early(images()), late(images())) < 1e-12
    alt.unpatch(early)
    alt.unpatch(late)
    assert max_difference(early(images()), late(images())) < 1e-12


def _patched(visual):
    alt.patch_clip(visual, 3)
    return visual
