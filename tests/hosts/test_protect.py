"""``protect=``: patches of the caller's choice never merge, exactly, in every kind of tower."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import alt
from tests.patch.compare import bit_equal, images, loss_of, max_difference, parameter_gradients

from .all_families import IMAGES
from .families import FAMILIES, Family, build
from .plain_merging import run_blocks

NAMES = ("CLIPVisionModel", "SiglipModel", "Dinov2WithRegistersModel", "timm avg", "timm max")
MOVED = (
    "SiglipModel",
    "timm EVA-02",
    "timm RoPE mixed",
    "DINOv3ViTModel",
    "Siglip2VisionModel",
    "torchvision linear head",
)
REMOVED = (4, 2)
#: 5 of the 16 patches; masks of two images, with as many.
MASK = torch.zeros(4, 4, dtype=torch.bool)
MASK[1, 1:4] = MASK[3, 0] = MASK[0, 2] = True
EACH = torch.stack([MASK, MASK.flip(0, 1)])


def order_of(mask: Tensor, special: int) -> list[int]:
    """Special tokens, protected patches, the others."""
    flat = mask.flatten().tolist()
    marked, others = ([i for i, on in enumerate(flat) if on is which] for which in (True, False))
    return [*range(special), *(special + i for i in marked + others)]


def by_hand(family: Family, model: Any, batch: Tensor, masks: Tensor) -> tuple[Any, list[list[float]]]:
    tower = family.tower(model)
    x = family.embed(tower, batch)
    orders = [order_of(mask, family.protected) for mask in masks]
    x = torch.stack([rows[order] for rows, order in zip(x, orders, strict=True)])
    grids, sizes = run_blocks(family.blocks(tower), x, REMOVED, family.protected + int(masks[0].sum()))
    back = [torch.tensor(order).argsort() for order in orders]
    grid = torch.stack([rows[order] for rows, order in zip(grids[-1], back, strict=True)])
    return family.finish(model, grid), sizes


@pytest.mark.parametrize("name", NAMES)
def test_protected_patches_never_merge(name: str) -> None:
    """Outputs and gradients equal the equations on the tokens in the order special, protected, others."""
    family = FAMILIES[name]
    model, batch = build(family), images(2)
    for masks, protect in ((MASK.expand(2, 4, 4), MASK), (EACH, EACH)):
        expected, sizes = by_hand(family, model, batch, masks)
        expected_gradients = parameter_gradients(model, loss_of(expected))
        with alt.patch_model(model, REMOVED, protect=protect, trace_source=True) as handle:
            found = family.run(model, batch)
            gradients = parameter_gradients(model, loss_of(found))
            assert max_difference(found, expected) < 1e-11
            for key, gradient in expected_gradients.items():
                assert max_difference(gradients[key], gradient) < 1e-10 * (1 + gradient.abs().max()), key
            assert handle.sizes.tolist() == sizes
            assert len(handle.sources) == len(REMOVED)
            for source in handle.sources:
                for row, mask in zip(source[:, family.protected :], masks.flatten(1), strict=True):
                    alone = [(row == place).sum().item() for place in row[mask]]
                    assert alone == [1] * int(mask.sum())
        model.zero_grad()


def test_the_mask_belongs_to_the_handle() -> None:
    """It is set between calls, copied and pickled with the model, and removed without a trace."""
    family = FAMILIES["CLIPVisionModel"]
    model, batch = build(family), images(2)
    plain = family.run(model, batch)
    handle = alt.patch_model(model, REMOVED)
    merged = family.run(model, batch)
    handle.protect = MASK.numpy()
    assert handle.protect is not None
    assert handle.protect.tolist() == [MASK.flatten().tolist()]
    protected = family.run(model, batch)
    assert not bit_equal(protected, merged)
    assert "protect=5 patches" in repr(handle)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert bit_equal(family.run(twin, batch), protected)
    handle.protect = MASK.flatten()
    assert bit_equal(family.run(model, batch), protected)
    for nothing in (None, torch.zeros(4, 4, dtype=torch.bool)):
        handle.protect = nothing
        assert handle.protect is None
        assert bit_equal(family.run(model, batch), merged)
    handle.remove()
    assert bit_equal(family.run(model, batch), plain)


@pytest.mark.parametrize("name", MOVED)
def test_positions_and_padding_move_with_their_patches(name: str) -> None:
    """At r = 0 it is the model itself, although the tokens changed places; merged, the protected patches stay alone."""
    family = IMAGES[name]
    model, batch = build(family), images(2)
    plain = family.run(model, batch)
    with alt.patch_model(model, 0, protect=MASK, trace_source=True) as handle:
        assert max_difference(family.run(model, batch), plain) < 1e-12
        handle.r = (3, 2)
        family.run(model, batch)
        for row in handle.source[:, family.protected :]:
            assert [(row == place).sum().item() for place in row[MASK.flatten()]] == [1] * 5


@pytest.mark.filterwarnings("ignore:r=")
def test_the_schedule_counts_protected_patches() -> None:
    """A block loses at most half of what is neither special nor protected; frames of one sequence keep theirs."""
    model = build(FAMILIES["CLIPVisionModel"], torch.float32)
    handle = alt.patch_model(model, 4, protect=MASK)
    assert handle.schedule().removed == (4, 3)  # 11 patches may merge: 4, then half of 7
    with pytest.warns(UserWarning, match="block"):
        handle.protect = MASK | torch.eye(4, dtype=torch.bool)
    handle.protect = MASK
    x, call = handle.encode(images(4, torch.float32), frames=2)
    assert x.shape[1] == 1 + 2 * 16 - 8 - 7
    assert call.size is not None
    assert call.size[:, 1 : 1 + 2 * 5].tolist() == [[1.0] * 10] * 2
    handle.remove()
    with pytest.raises(ValueError, match="r=4 is more than block"):
        alt.patch_model(model, 4, protect=MASK, strict=True)


def test_hidden_states_and_intermediates_stay_in_place() -> None:
    """A protected patch has its own value in the grid of every layer: that of a tower in which nothing else merges."""
    model = build(FAMILIES["timm avg"])
    batch = images(2)
    plain = model.forward_intermediates(batch, intermediates_only=True, output_fmt="NLC")
    with alt.patch_model(model, (5, 0), protect=MASK):
        found = model.forward_intermediates(batch, intermediates_only=True, output_fmt="NLC")
    # The first block attends before it merges, so the protected patches leave it as without merging.
    assert max_difference(found[0][:, MASK.flatten()], plain[0][:, MASK.flatten()]) < 1e-12
    assert max_difference(found[0], plain[0]) > 1e-3


@pytest.mark.parametrize(
    ("mask", "error", "sentence"),
    [
        (MASK.int(), TypeError, "protect must be a bool mask over patches, .* got int32"),
        ("class", TypeError, "protect must be a bool mask over patches, .* got str"),
        (np.ones((4, 4)), TypeError, "got ndarray"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), ValueError, r"got shape \[1, 1, 4, 4\]"),
        (torch.stack([MASK, ~MASK]), ValueError, "as many patches in every image, .* got 5 to 11"),
    ],
)
def test_bad_masks_are_one_sentence(mask: Any, error: type[Exception], sentence: str) -> None:
    model = build(FAMILIES["CLIPVisionModel"])
    with pytest.raises(error, match=sentence):
        alt.patch_model(model, 2, protect=mask)
    handle = alt.patch_model(model, 2)
    with pytest.raises(error, match=sentence):
        handle.protect = mask
    assert handle.protect is None


def test_a_mask_that_does_not_fit_is_one_sentence() -> None:
    family = FAMILIES["CLIPVisionModel"]
    model = build(family)
    handle = alt.patch_model(model, 2, protect=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"protect has 5 patches per image, got 16; set handle.protect"):
        family.run(model, images(2))
    handle.protect = EACH
    with pytest.raises(ValueError, match="protect has masks for 2 images, got 3 images"):
        family.run(model, images(3))
