"""Rows of patches with padding: it is seen by no token, merges with nothing and weighs nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt
from alt.hosts.transformers.siglip2 import PatchRows
from tests.patch.compare import bit_equal, images, max_difference

from .all_families import REMOVED, grids_by_hand
from .families import build
from .padded_families import MASK, PADDED, naflex

FAMILY = PADDED["Siglip2VisionModel"]


def test_what_lies_in_the_padding_changes_nothing() -> None:
    model, inputs = build(FAMILY), naflex(images(2))
    other = dict(inputs, pixel_values=torch.where(MASK[..., None] == 0, 50.0, inputs["pixel_values"]))
    for metric in ("keys", "projection"):
        with alt.patch_model(model, REMOVED, metric=metric):
            first, second = model(**inputs), model(**other)
        assert bit_equal(first.pooler_output, second.pooler_output)
        real = MASK == 1
        assert bit_equal(first.last_hidden_state[real], second.last_hidden_state[real])


def test_padding_stays_alone() -> None:
    model = build(FAMILY)
    with alt.patch_model(model, REMOVED, trace_source=True) as handle:
        model(**naflex(images(2)))
        source, sizes = handle.source[1], handle.sizes[1]
    alone = source[12:].tolist()
    assert len(set(alone)) == 4
    assert not set(alone) & set(source[:12].tolist())
    assert sizes[alone].tolist() == [0, 0, 0, 0]
    assert sizes.sum() == 12


@pytest.mark.parametrize("real", [1, 2, 5])
def test_where_few_patches_are_real_padding_goes_and_they_keep_their_weight(real: int) -> None:
    """Padding that must go adds nothing to the token that it joins."""
    model, inputs = build(FAMILY), naflex(images(2))
    inputs["pixel_attention_mask"] = torch.stack([MASK[0], (torch.arange(16) < real).long()])
    inputs["spatial_shapes"] = torch.tensor([[4, 4], [1, real]])
    with alt.patch_model(model, (7, 4), trace_source=True) as handle:
        merged = model(**inputs)
        assert merged.pooler_output.isfinite().all()
        assert handle.sizes[1].sum() == real
    if real == 1:
        assert max_difference(merged.pooler_output[1], model(**inputs).pooler_output[1]) < 1e-12


def test_a_batch_of_one_size_needs_no_mask() -> None:
    model, inputs = build(FAMILY), naflex(images(2))
    inputs |= {"pixel_attention_mask": torch.ones(2, 16), "spatial_shapes": torch.tensor([[4, 4], [4, 4]])}
    with alt.patch_model(model, REMOVED, prop_attn=True):
        expected = model(**inputs)
        found = model(**{**inputs, "pixel_attention_mask": None})
    assert max_difference(found.pooler_output, expected.pooler_output) < 1e-12


def test_hidden_states_lie_on_the_grid() -> None:
    model, batch = build(FAMILY), images(2)
    grids, _ = grids_by_hand(FAMILY, model, batch)
    expected = model(**naflex(batch), output_hidden_states=True).hidden_states
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model(**naflex(batch), output_hidden_states=True).hidden_states, expected) < 1e-12
        handle.r = REMOVED
        found = model(**naflex(batch), output_hidden_states=True).hidden_states
        assert max_difference(list(found), [expected[0], *grids]) < 1e-11


def test_images_become_rows_of_patches() -> None:
    model, batch = build(FAMILY), images(2, size=(24, 48))
    handle = alt.patch_model(model, REMOVED)
    x, call = handle.encode(batch)
    assert x.shape == (2, 18 - 8, 32)
    assert call.size.sum(1).tolist() == [18, 18]
    rows = handle.host.arguments(model, images(2))
    expected = naflex(images(2))
    assert isinstance(rows, PatchRows)
    assert torch.equal(rows.pixel_values, expected["pixel_values"])
    with pytest.raises(ValueError, match="images must have sides that 8 divides, got 20 x 32 pixels"):
        handle.encode(images(2, size=(20, 32)))


def test_what_cannot_be_is_refused() -> None:
    model, inputs = build(FAMILY), naflex(images(2))
    with alt.patch_model(model, 3, prop_attn=False), pytest.raises(ValueError, match="prop_attn: expected True for a"):
        model(**inputs)
    with alt.patch_model(model, 3), pytest.raises(ValueError, match="output_attentions: a patched Siglip2VisionModel"):
        model(**inputs, output_attentions=True)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_implementation_is_the_same(implementation: str) -> None:
    model = build(FAMILY, torch.float32)
    inputs: dict[str, Any] = naflex(images(2, torch.float32))
    model.set_attn_implementation(implementation)
    expected = model(**inputs).pooler_output
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model(**inputs).pooler_output, expected) < 1e-5
        handle.r = REMOVED
        merged = model(**inputs).pooler_output
        hooks = [part.register_forward_hook(lambda *_: None) for part in FAMILY.attention(model)]
        assert max_difference(model(**inputs).pooler_output, merged) < 1e-5
        for hook in hooks:
            hook.remove()
