"""Towers with the Attention class of later open_clip releases, by a stand-in of the same name and signature."""

from __future__ import annotations

import plain_tome
import pytest
import torch
from later_open_clip import later_tower
from test_patch_pooling import pooled_by_hand
from towers import images_for, loss_of, max_difference, parameter_gradients

import alt

CASES = {
    "default block": {"custom": False},
    "custom block": {"custom": True},
    "qk_norm": {"custom": True, "qk_norm": True},
    "scaled_cosine": {"custom": True, "scaled_cosine": True},
    "normformer": {"custom": True, "scale_heads": True, "inner_norm": True},
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def visual(request):
    return later_tower(**request.param)


def test_r_zero_is_the_host(visual):
    batch = images_for(visual)
    expected = visual(batch)
    gradients = parameter_gradients(visual, loss_of(expected))
    alt.patch_clip(visual, 0)
    assert max_difference(visual(batch), expected) < 1e-12
    assert max_difference(parameter_gradients(visual, loss_of(visual(batch))), gradients) < 1e-11


@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "own call"])
def test_merging_against_plain_loops(visual, hooked):
    """Both paths: the fused one and, with a hook on attention, the module's own call with a mask."""
    batch, removed = images_for(visual), [3, 4, 3]
    expected, sizes = plain_tome.tower(visual, batch, removed)
    gradients = parameter_gradients(visual, loss_of(expected))
    handle = alt.patch_clip(visual, removed, trace_source=True)
    calls = []
    if hooked:
        for block in visual.transformer.resblocks:
            block.attn.register_forward_hook(lambda *_: calls.append(1))
    output = visual(batch)
    assert len(calls) == 3 * hooked
    assert max_difference(output, expected) < 1e-11
    assert torch.equal(handle.sizes, sizes)
    again = parameter_gradients(visual, loss_of(output))
    assert max_difference({k: again[k] for k in gradients}, gradients) < 1e-10


def test_scaled_cosine_scale_is_clamped():
    visual = later_tower(custom=True, scaled_cosine=True)
    visual.transformer.resblocks[1].attn.logit_scale.data.fill_(9.0)  # exp(9) is beyond the limit of 100
    batch = images_for(visual)
    expected = visual(batch)
    handle = alt.patch_clip(visual, 0)
    assert max_difference(visual(batch), expected) < 1e-11
    handle.r = 3
    assert max_difference(visual(batch), plain_tome.tower(visual, batch, [3, 3, 3])[0]) < 1e-10


def test_attentional_pool_with_separate_projections():
    visual = later_tower(custom=False, pooler=True)
    batch, removed = images_for(visual), [4, 4, 3]
    expected = visual(batch)
    handle = alt.patch_clip(visual, 0)
    assert max_difference(visual(batch), expected) < 1e-12
    handle.r = removed
    by_hand = []
    for image in batch:
        queries = pooled_by_hand(visual.attn_pool, *plain_tome.trunk(visual, image, removed))
        by_hand.append(plain_tome.layer_norm(visual.ln_post, queries)[0] @ visual.proj)
    assert max_difference(visual(batch), torch.stack(by_hand)) < 1e-11
