"""What timm's vision transformers have besides a forward: features, intermediates, stochastic depth, video models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt
from alt.hosts import find_tower
from alt.models.region_encoder import RegionEncoder
from tests.patch.compare import as_clip_images, bit_equal, images, max_difference

from .families import TIMM, Family, build
from .plain_merging import run_blocks

REMOVED = (5, 3)
SOME = {name: TIMM[name] for name in ("distilled", "DINOv2 with registers", "SigLIP", "dynamic image size")}
each = pytest.mark.parametrize("family", SOME.values(), ids=SOME)
CALLS: list[dict[str, Any]] = [
    {},
    {"indices": 1, "output_fmt": "NLC", "return_prefix_tokens": True},
    {"indices": [0], "stop_early": True, "intermediates_only": True},
    {"norm": True, "output_dict": True, "return_prefix_tokens": True},
    {"output_dict": True, "intermediates_only": True},
]


def tensors(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [t for part in output for t in tensors(part)]


@each
@pytest.mark.parametrize("options", CALLS, ids=str)
def test_intermediates_lie_on_the_grid(family: Family, options: dict[str, Any]) -> None:
    model = build(family)
    for size in family.sizes:
        batch = images(2, size=size)
        expected = model.forward_intermediates(batch, **options)
        with alt.patch_model(model, 0):
            found = model.forward_intermediates(batch, **options)
        assert type(found) is type(expected)
        if isinstance(expected, dict):
            assert list(found) == list(expected)
            found, expected = list(found.values()), list(expected.values())
        assert max_difference(tensors(found), tensors(expected)) < 1e-12


@each
def test_merged_intermediates_are_those_of_the_reference(family: Family) -> None:
    model = build(family)
    for size in family.sizes:
        batch = images(2, size=size)
        grids, _ = run_blocks(family.blocks(model), family.embed(model, batch), REMOVED, family.protected)
        wanted = [grid[:, family.protected :] for grid in grids]
        with alt.patch_model(model, REMOVED):
            final, found = model.forward_intermediates(batch, output_fmt="NLC")
            layers = model.get_intermediate_layers(batch, n=2)
        assert max_difference(found, wanted) < 1e-11
        assert max_difference(list(layers), wanted) < 1e-11
        assert max_difference(final, model.norm(grids[-1])) < 1e-11


def test_masks_are_refused_in_one_sentence() -> None:
    model = build(TIMM["token"])
    alt.patch_model(model, 3)
    with pytest.raises(ValueError, match="attn_mask: a patched tower of timm attends to all patches"):
        model(images(2), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="is_causal: a patched"):
        model.forward_features(images(2), is_causal=True)


def test_patch_dropout_and_dropped_attention_weights() -> None:
    for options in ({"patch_drop_rate": 0.5}, {"attn_drop_rate": 0.3}, {"pos_drop_rate": 0.2, "proj_drop_rate": 0.2}):
        model = TIMM["token"].make(**options).double().train()  # type: ignore[call-arg]
        torch.manual_seed(4)
        expected = model(images(2))
        with alt.patch_model(model, 0) as handle:
            torch.manual_seed(4)
            assert max_difference(model(images(2)), expected) < 1e-12
            handle.r = 2
            assert model(images(2)).isfinite().all()


def test_a_hook_on_the_blocks_container_fires() -> None:
    model = build(TIMM["token"])
    shapes: list[int] = []
    model.blocks.register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
    with alt.patch_model(model, REMOVED):
        model(images(2))
    assert shapes == [17 - 8]


@pytest.mark.parametrize("name", ["token", "avg"])
def test_a_head_of_single_tokens_makes_it_the_tower_of_a_video_model(name: str) -> None:
    model, clip = build(TIMM[name]), torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    expected = model(clip.flatten(0, 1)).unflatten(0, (2, 3))
    encoder = RegionEncoder(model, 0)
    shown = as_clip_images(clip, *encoder.statistics)
    tokens = encoder(shown)
    assert max_difference(tokens.frame, expected) < 1e-12
    assert tokens.regions.shape == (2, 3, 16, 10)
    encoder.r = 3
    merged = model(clip.flatten(0, 1)).unflatten(0, (2, 3))
    assert max_difference(encoder(shown).frame, merged) < 1e-12


@pytest.mark.parametrize("name", ["SigLIP", "distilled", "CLIP"])
def test_a_tower_without_such_a_head_says_so(name: str) -> None:
    model = build(TIMM[name])
    with pytest.raises(TypeError, match="expected a timm VisionTransformer with a linear head after the class token"):
        RegionEncoder(model, 3)
    assert not any("Patched" in type(module).__name__ for module in model.modules())


def test_a_fast_norm_is_not_fused() -> None:
    model = build(TIMM["token"])
    host, _ = find_tower(model)
    assert host.is_layer_norm(model.blocks[0].norm2)
    model.blocks[0].norm2._fast_norm = True
    assert not host.is_layer_norm(model.blocks[0].norm2)


def test_the_head_may_be_exchanged_while_patched() -> None:
    model = build(TIMM["avg"])
    with alt.patch_model(model, 3):
        model.reset_classifier(4, "max")
        model.head.double()
        merged = model(images(2))
        assert merged.shape == (2, 4)
        assert bit_equal(merged, model.forward_head(model.forward_features(images(2))))
