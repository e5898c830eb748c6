"""``merged_output=True``: the merged tokens instead of the grid, with sizes and source map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import alt
from tests.patch.compare import bit_equal, images, max_difference

from .families import FAMILIES, build, small_llava

REMOVED = (5, 3)
IMAGE = 39  # the token id of an image placeholder


def spread(tokens: Tensor, source: Tensor) -> Tensor:
    """Gives every input token the value of its merged token: what the outputs are without ``merged_output``."""
    return torch.stack([rows[places.long()] for rows, places in zip(tokens, source, strict=True)])


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel", "ViTModel", "Dinov2WithRegistersModel"])
def test_states_are_the_merged_tokens_of_their_layers(name: str) -> None:
    family = FAMILIES[name]
    model, batch = build(family), images(2)
    with alt.patch_model(model, REMOVED):
        grid = model(batch, output_hidden_states=True)
    with alt.patch_model(model, REMOVED, merged_output=True) as handle:
        merged = model(batch, output_hidden_states=True)
        assert merged.last_hidden_state.shape[1] == handle.schedule().tokens[-1] == 8 + family.protected
        assert bit_equal(spread(merged.last_hidden_state, handle.source), grid.last_hidden_state)
        assert bit_equal(merged.pooler_output, grid.pooler_output)
        assert bit_equal(merged.hidden_states[0], grid.hidden_states[0])
        for source, state, whole in zip(handle.sources, merged.hidden_states[1:], grid.hidden_states[1:], strict=True):
            assert bit_equal(spread(state, source), whole)
        assert handle.sizes.sum(1).tolist() == [16 + family.protected] * 2
        assert "merged_output=True" in repr(handle)


def test_features_of_timm_and_protected_patches() -> None:
    """Protected patches follow the special tokens, in row-major order and unmerged."""
    model, batch = build(FAMILIES["timm no pooling"]), images(2)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2, 1:3] = True
    with alt.patch_model(model, REMOVED, protect=mask):
        grid, plain = model.forward_features(batch), model(batch)
        taken = model.forward_intermediates(batch, intermediates_only=True, output_fmt="NLC")
    with alt.patch_model(model, REMOVED, protect=mask, merged_output=True) as handle:
        merged = model.forward_features(batch)
        assert merged.shape[1] == 9
        assert bit_equal(spread(merged, handle.source), grid)
        assert handle.source[:, 1:][:, mask.flatten()].tolist() == [[1, 2]] * 2
        assert bit_equal(spread(model(batch), handle.source), plain)
        found = model.forward_intermediates(batch, intermediates_only=True, output_fmt="NLC")
        for source, layer, whole in zip(handle.sources, found, taken, strict=True):
            assert bit_equal(spread(layer, source[:, 1:] - 1), whole)
        with pytest.raises(ValueError, match=r"output_fmt: expected 'NLC' with merged_output=True, .* got 'NCHW'"):
            model.forward_intermediates(batch)


def prompt(placeholders: int) -> Tensor:
    return torch.tensor([[1, 2, *[IMAGE] * placeholders, 3, 4]] * 2)


def test_the_language_model_of_llava_reads_n_tokens() -> None:
    """Feature layer -2 of three: what two blocks leave. On the grid 16 placeholders, merged 8."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_llava(layers=3)
    tower, batch = model.model.vision_tower, images(2)
    plain = model(input_ids=prompt(16), pixel_values=batch).logits
    r = (*REMOVED, 2)
    with alt.patch_model(tower, r):
        on_grid = model(input_ids=prompt(16), pixel_values=batch)
        assert on_grid.logits.shape == plain.shape
        assert max_difference(on_grid.logits, plain) > 1e-6
        states = tower(batch, output_hidden_states=True).hidden_states[-2]
    with alt.patch_model(tower, r, merged_output=True) as handle:
        count = handle.schedule().tokens[-2] - handle.host.num_protected(tower)
        assert count == 8
        read = model(input_ids=prompt(count), pixel_values=batch)
        assert read.logits.shape[1] == 4 + count
        features = read.image_hidden_states.unflatten(0, (2, -1))
        assert features.shape[1] == count
        # What it reads are the projected regions of layer -2: one each, where the grid repeats them.
        source = handle.sources[-2]
        expected = model.model.multi_modal_projector(states[:, 1:])
        assert max_difference(spread(features, source[:, 1:] - 1), expected) < 1e-12
        generated = model.generate(input_ids=prompt(count), pixel_values=batch, max_new_tokens=2, do_sample=False)
        assert generated.shape[1] == 4 + count + 2
        with pytest.raises(ValueError, match="do not match"):
            model(input_ids=prompt(16), pixel_values=batch)
    assert bit_equal(model(input_ids=prompt(16), pixel_values=batch).logits, plain)


def test_a_model_with_a_head_is_refused_in_one_sentence() -> None:
    """A classifier on the mean of the patches would weigh every region alike."""
    model = build(FAMILIES["CLIPForImageClassification"])
    with pytest.raises(ValueError, match=r"expected the image tower itself.*CLIPForImageC.*; pass model.vision_model"):
        alt.patch_model(model, 2, merged_output=True)
    alt.patch_model(model, 2).remove()
    with pytest.raises(TypeError, match="merged_output must be a bool, got int"):
        alt.patch_model(model.vision_model, 2, merged_output=1)  # type: ignore[arg-type]
