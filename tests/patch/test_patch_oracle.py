"""The patched forward against plain loops per image in float64: values, sizes and gradients."""

from __future__ import annotations

import plain_tome
import pytest
import torch
from towers import images_for, loss_of, max_difference, parameter_gradients, tower

import alt

CASES = {
    "multihead": {},
    "layer_scale": {"ls_init_value": 0.3},
    "qk_norm": {"qk_norm": True, "ls_init_value": 0.3},
    "normformer": {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
    "avg": {"pool_type": "avg"},
}


@pytest.mark.parametrize("removed", [[3, 3, 3], [8, 4, 2], [0, 5, 0], [2, 0, 4]], ids=str)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_values_sizes_and_gradients(options, removed):
    visual = tower(**options)
    batch = images_for(visual).requires_grad_()
    expected, sizes = plain_tome.tower(visual, batch, removed)
    expected_gradients = parameter_gradients(visual, loss_of(expected))
    expected_input = torch.autograd.grad(loss_of(plain_tome.tower(visual, batch, removed)[0]), batch)[0]

    handle = alt.patch_clip(visual, removed, trace_source=True)
    output = visual(batch)
    assert max_difference(output, expected) < 1e-11
    assert torch.equal(handle.sizes, sizes)
    gradients = parameter_gradients(visual, loss_of(visual(batch)))
    assert gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        assert max_difference(gradients[name], expected_gradient) < 1e-10, name
    assert max_difference(torch.autograd.grad(loss_of(output), batch)[0], expected_input) < 1e-10
    # The sizes matter in this test: without them the output is another.
    assert max_difference(output, plain_tome.tower(visual, batch, removed, prop_attn=False)[0]) > 1e-4


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["multihead", "open_clip"])
def test_without_proportional_attention_sizes_still_weigh_the_merges(options):
    visual = tower(**options)
    batch = images_for(visual)
    expected, sizes = plain_tome.tower(visual, batch, [4, 4, 3], prop_attn=False)
    handle = alt.patch_clip(visual, [4, 4, 3], prop_attn=False, trace_source=True)
    assert max_difference(visual(batch), expected) < 1e-11
    assert torch.equal(handle.sizes, sizes)
    assert sizes.max() > 2


def test_float32_is_as_near_to_the_truth_as_the_unpatched_tower():
    """Both are float32 forwards of the same depth: their errors against float64 are of one size."""
    exact, single = tower(), tower(torch.float32)
    single.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    exact.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    batch = images_for(single)
    host_error = (single(batch).double() - exact(batch.double())).abs().max()
    expected, sizes = plain_tome.tower(exact, batch.double(), [3, 3, 3])
    handle = alt.patch_clip(single, 3, trace_source=True)
    error = (single(batch).double() - expected).abs().max()
    assert torch.equal(handle.sizes, sizes), "a float32 near-tie chose another plan: take another seed"
    assert error < 4 * host_error


def test_images_of_a_batch_do_not_touch_one_another():
    visual = tower()
    batch = images_for(visual, 4)
    alt.patch_clip(visual, 4)
    together = visual(batch)
    alone = torch.cat([visual(image[None]) for image in batch])
    assert max_difference(together, alone) < 1e-12


def test_class_token_never_merges_and_every_patch_is_counted_once():
    visual = tower()
    handle = alt.patch_clip(visual, 0.5, trace_source=True)
    visual(images_for(visual))
    for rows, count in zip(handle.sources, handle.schedule().tokens, strict=True):
        assert rows.shape == (3, 17)
        assert (rows[:, 0] == 0).all()
        assert (rows[:, 1:] > 0).all()
        assert [image.unique().numel() for image in rows] == [count] * 3
    counted = torch.stack([torch.bincount(image, minlength=handle.sizes.shape[1]) for image in handle.source])
    assert torch.equal(counted.float(), handle.sizes)
