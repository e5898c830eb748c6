"""Options of transformers' backbones: stages, norm and form of their maps, hidden states; and models around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import alt
from tests.patch.compare import bit_equal, images, max_difference, randomised

from .all_families import REMOVED, grids_by_hand
from .backbone_families import BACKBONES
from .families import Family, build, dinov2_config, layer_norm

OPTIONS: dict[str, dict[str, Any]] = {
    "maps": {"out_features": ["stem", "stage1", "stage2"]},
    "maps without norm": {"out_indices": [0, 1], "apply_layernorm": False},
    "tokens": {"out_indices": [1, 2], "reshape_hidden_states": False},
    "class tokens": {"out_indices": [0, 2], "apply_layernorm": False, "return_class_token": True},
}
SIZE = (24, 48)


def with_options(family: Family, options: dict[str, Any]) -> Any:
    model = build(family)
    for name, value in options.items():
        setattr(model.config, name, value)
    return model


def by_hand(name: str, model: Any, batch: Tensor) -> list[Tensor]:
    """The maps of every stage, and the class tokens if they are asked for, from merging in plain loops."""
    family, config, rotary = BACKBONES[name], model.config, name.startswith("DINOv3")
    states = [family.embed(model, batch), *grids_by_hand(family, model, batch)[0]]
    norm = layer_norm(model.norm if rotary else model.layernorm)
    maps, class_tokens = [], []
    for stage in config.out_indices:
        normed = config.apply_layernorm or (rotary and stage == 2)
        x = norm(states[stage]) if normed else states[stage]
        class_tokens.append(x[:, 0])
        patches = x[:, family.protected :]
        if config.reshape_hidden_states:
            maps.append(patches.reshape(2, 3, 6, -1).movedim(3, 1))
        else:
            maps.append(patches if rotary else x)
    return maps + (class_tokens if rotary and getattr(config, "return_class_token", False) else [])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_stage_in_every_form(name: str, options: dict[str, Any]) -> None:
    model, batch = with_options(BACKBONES[name], options), images(2, size=SIZE)
    expected, merged = model(batch), by_hand(name, model, batch)
    with alt.patch_model(model, 0) as handle:
        found = model(batch)
        assert type(found) is type(expected)
        assert list(found) == list(expected)
        assert max_difference(found, expected) < 1e-12
        handle.r = REMOVED
        found = model(batch)
        assert max_difference(found, merged) < 1e-11
        assert bit_equal(model(batch, return_dict=False), found)


@pytest.mark.parametrize("name", BACKBONES)
def test_hidden_states_beside_the_maps(name: str) -> None:
    model, batch = build(BACKBONES[name]), images(2)
    expected, last = model(batch, output_hidden_states=True), [-1]
    states = [BACKBONES[name].embed(model, batch), *grids_by_hand(BACKBONES[name], model, batch)[0]]
    with alt.patch_model(model, 0) as handle:
        found = model(batch, output_hidden_states=True)
        assert list(found) == list(expected)
        assert max_difference(found, expected) < 1e-12
        if name == "DINOv3ViTBackbone":  # an attribute that is no field
            assert max_difference(found.last_hidden_state, expected.last_hidden_state) < 1e-12
        handle.r = REMOVED
        assert max_difference(model(batch, output_hidden_states=True).hidden_states, states) < 1e-11
        chosen = model(batch, output_hidden_states=last).hidden_states
        assert [state is None for state in chosen] == [True, True, False]
        with pytest.raises(ValueError, match=f"output_attentions: a patched {name} has attention between merged"):
            model(batch, output_attentions=True)
    assert bit_equal(model(batch, output_hidden_states=True), expected)


def test_merged_tokens_lie_on_no_grid() -> None:
    model, batch = build(BACKBONES["Dinov2WithRegistersBackbone"]), images(2)
    with alt.patch_model(model, REMOVED, merged_output=True) as handle:
        with pytest.raises(ValueError, match=r"feature_maps: a patched Dinov2WithR.* merged_output=True makes none"):
            model(batch)
        model.config.reshape_hidden_states = False
        (tokens,) = model(batch).feature_maps
        assert tokens.shape == (2, handle.schedule().tokens[-1], 32)


def test_a_depth_model_reads_the_maps() -> None:
    """The neck and the head of Depth Anything, whose backbone alone is patched."""
    config = hf.DepthAnythingConfig(
        backbone_config=dinov2_config(out_indices=[1, 2], reshape_hidden_states=False), patch_size=8,
        reassemble_hidden_size=32, reassemble_factors=[1, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8,
        head_hidden_size=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = randomised(hf.DepthAnythingForDepthEstimation(config).double(), 0.05).eval()
    batch = images(2)
    with pytest.raises(TypeError, match=r"pass its Dinov2Backbone: model\.backbone$"):
        alt.patch_model(model, 2)
    expected = model(batch).predicted_depth
    with alt.patch_model(model.backbone, 0) as handle:
        assert max_difference(model(batch).predicted_depth, expected) < 1e-12
        handle.r = 3
        merged = model(batch).predicted_depth
        assert merged.shape == expected.shape
        assert max_difference(merged, expected) > 1e-6
