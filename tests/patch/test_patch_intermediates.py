"""forward_intermediates of a patched tower: the full grid, constant over every merged region."""

from __future__ import annotations

import itertools

import pytest
import torch
from towers import VARIANTS, bit_equal, images_for, max_difference, tower

import alt

OPTIONS = [
    {},
    {"indices": 1},
    {"indices": [0, -1], "output_fmt": "NLC"},
    {"indices": [1], "stop_early": True, "output_extra_tokens": True},
    {"indices": [0], "stop_early": True, "intermediates_only": True, "normalize_intermediates": True},
    {"normalize_intermediates": True, "output_fmt": "NLC", "output_extra_tokens": True},
]
TOWERS = ["plain", "qk_norm", "avg", "wide_image", "attentional"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", TOWERS)
def test_r_zero_is_the_host(name, options):
    if name == "attentional" and options.get("normalize_intermediates"):
        options = options | {"normalize_intermediates": False}  # ln_post has the pooler's width: the host raises
    visual = tower(**VARIANTS[name])
    batch = images_for(visual)
    expected = visual.forward_intermediates(batch, **options)
    handle = alt.patch_clip(visual, 0)
    output = visual.forward_intermediates(batch, **options)
    assert output.keys() == expected.keys()
    assert max_difference(output, expected) < 1e-12
    handle.r = 3 if name != "wide_image" else 2
    merged = visual.forward_intermediates(batch, **options)
    assert merged.keys() == expected.keys()
    shapes = [[t.shape for t in value] if isinstance(value, list) else value.shape for value in merged.values()]
    assert shapes == [[t.shape for t in v] if isinstance(v, list) else v.shape for v in expected.values()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("removed", [[3, 3, 3], [0, 4, 0], [8, 0, 3]], ids=str)
def test_every_token_has_the_value_of_the_row_it_went_into(removed, checkpointing):
    visual = tower()
    visual.set_grad_checkpointing(checkpointing)
    batch = images_for(visual)
    handle = alt.patch_clip(visual, removed, trace_source=True)
    rows = []
    for block in visual.transformer.resblocks:
        block.register_forward_hook(lambda module, inputs, output: rows.append(output.detach()))
    output = visual.forward_intermediates(batch, output_fmt="NLC", output_extra_tokens=True)
    assert len(rows) == 3
    sources = handle.sources
    for i in range(3):
        full = torch.cat([output["image_intermediates_prefix"][i], output["image_intermediates"][i]], 1)
        expected = torch.stack([x[row.long()] for x, row in zip(rows[i], sources[i], strict=True)])
        assert torch.equal(full, expected)
        # Constant inside a region, different between regions.
        for image, row in zip(full, sources[i], strict=True):
            for a, b in itertools.combinations(range(17), 2):
                assert torch.equal(image[a], image[b]) == bool(row[a] == row[b])
    assert bit_equal(output["image_features"], visual(batch))


def test_nchw_is_the_grid_in_reading_order():
    visual = tower(image_size=(24, 48))
    batch = images_for(visual)
    alt.patch_clip(visual, 2)
    grid = visual.forward_intermediates(batch)["image_intermediates"]
    flat = visual.forward_intermediates(batch, output_fmt="NLC")["image_intermediates"]
    for y, x in zip(grid, flat, strict=True):
        assert y.shape == (3, 32, 3, 6)
        assert torch.equal(y.flatten(2).transpose(1, 2), x)


def test_gradient_of_an_unmerged_map_is_the_sum_over_each_region():
    visual = tower()
    alt.patch_clip(visual, [3, 4, 2])
    captured = []
    visual.transformer.resblocks[1].register_forward_hook(lambda m, i, output: captured.append(output))
    handle = alt.get_handle(visual)
    weight = torch.randn(3, 16, 32, dtype=torch.float64)
    grid = visual.forward_intermediates(images_for(visual), indices=[1], output_fmt="NLC")["image_intermediates"][0]
    gradient = torch.autograd.grad((grid * weight).sum(), captured[0])[0]
    handle.remove()
    with alt.patch_clip(visual, [3, 4, 2], trace_source=True) as handle:
        visual(images_for(visual))
        source = handle.sources[1]
    expected = torch.zeros_like(gradient)
    for b, (row, w) in enumerate(zip(source, weight, strict=True)):
        for token in range(16):
            expected[b, row[token + 1]] += w[token]
    assert max_difference(gradient, expected) < 1e-12


def test_patch_dropout_in_training_has_no_grid():
    visual = tower(patch_dropout=0.5).train()
    alt.patch_clip(visual, 1)
    with pytest.raises(ValueError, match=r"a token for each of the 4 x 4 patches, got 8: patch dropout is active"):
        visual.forward_intermediates(images_for(visual))
    assert visual.eval().forward_intermediates(images_for(visual))["image_intermediates"][0].shape == (3, 32, 4, 4)


def test_bad_format():
    visual = tower()
    alt.patch_clip(visual, 1)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NLC', got 'NHWC'"):
        visual.forward_intermediates(images_for(visual), output_fmt="NHWC")
