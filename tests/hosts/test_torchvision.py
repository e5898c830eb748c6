"""torchvision's vision transformer: hooks of its encoder, other heads, video models, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import alt
from alt.models.region_encoder import RegionEncoder
from tests.patch.compare import as_clip_images, bit_equal, images, max_difference

from .families import build
from .plain_merging import run_blocks
from .torch_families import TORCHVISION

REMOVED = (5, 3)
FAMILY = TORCHVISION["linear head"]
BOTH = pytest.mark.parametrize("name", TORCHVISION)


def test_hooks_of_the_encoder_see_what_they_saw() -> None:
    """Its input without positions, its output normed; merged, the output has the rows that are left."""
    model, batch = build(FAMILY), images(2)
    seen: dict[str, Any] = {}
    model.encoder.register_forward_hook(lambda module, args, output: seen.update(input=args[0], output=output))
    model.encoder.layers.register_forward_hook(lambda module, args, output: seen.update(blocks=output))
    plain = model(batch)
    before = dict(seen)
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model(batch), plain) < 1e-12
        assert max_difference(list(seen.values()), list(before.values())) < 1e-12
        handle.r = REMOVED
        merged = model(batch)
        assert bit_equal(seen["input"], before["input"])
        assert bit_equal(seen["output"], model.encoder.ln(seen["blocks"]))
        assert bit_equal(merged, model.heads(seen["output"][:, 0]))
        assert seen["output"].shape[1] == handle.schedule().tokens[-1] == 9


@BOTH
def test_it_is_the_tower_of_a_video_model(name: str) -> None:
    model, video = build(TORCHVISION[name]), torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    expected = model(video.flatten(0, 1)).unflatten(0, (2, 3))
    encoder = RegionEncoder(model, 0)
    shown = as_clip_images(video, *encoder.statistics)
    tokens = encoder(shown)
    assert max_difference(tokens.frame, expected) < 1e-12
    # Of two blocks that merge nothing, the regions are the head on each patch.
    tower = encoder.tower
    grids, _ = run_blocks(FAMILY.blocks(tower), FAMILY.embed(tower, video.flatten(0, 1)), (0, 0), 1)
    wanted = model.heads(model.encoder.ln(grids[-1]))[:, 1:].unflatten(0, (2, 3))
    assert max_difference(tokens.regions, wanted) < 1e-11
    encoder.r = REMOVED
    assert max_difference(encoder(shown).frame, model(video.flatten(0, 1)).unflatten(0, (2, 3))) < 1e-12


def test_another_head_while_patched() -> None:
    model, batch = build(FAMILY), images(2)
    with alt.patch_model(model, REMOVED):
        merged = model(batch)
        head, model.heads = model.heads, nn.Identity()
        assert max_difference(head(model(batch)), merged) < 1e-12
        model.heads = nn.Linear(32, 4).double()
        assert model(batch).shape == (2, 4)
    model.heads = nn.Identity()
    with pytest.raises(TypeError, match=r"whose head ends in a torch.nn.Linear, got one that ends in Identity"):
        RegionEncoder(model, 3)


def test_protected_patches_and_other_sizes() -> None:
    model = build(FAMILY)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2] = True
    with alt.patch_model(model, REMOVED, protect=mask, trace_source=True) as handle:
        model(images(2))
        assert handle.source[:, 1:][:, mask.flatten()].tolist() == [[1, 2, 3, 4]] * 2
        with pytest.raises(AssertionError, match="Wrong image"):  # the host's own words
            model(images(2, size=(24, 48)))


def test_a_feature_extractor_of_a_patched_model_is_refused() -> None:
    model = build(FAMILY)
    with alt.patch_model(model, REMOVED), pytest.raises(TypeError, match=r"torch.fx cannot trace a patched tower"):
        create_feature_extractor(model, ["encoder"])
    extractor = create_feature_extractor(model, ["encoder"])
    with pytest.raises(TypeError, match="got torch"):
        alt.patch_model(extractor, 3)
