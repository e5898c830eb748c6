"""r = 0 is the unpatched model to rounding; a removed patch leaves nothing; keys never change."""

from __future__ import annotations

import copy
import io
import pickle

import open_clip
import pytest
import torch
from compare import assert_same_gradients
from open_clip.transformer import LayerNormFp32
from towers import VARIANTS, bit_equal, images_for, loss_of, max_difference, parameter_gradients, randomised, tower

import alt

SMALL_VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0}
SMALL_TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}


def snapshot(module):
    """Classes, attributes and values of every module of a tower."""
    return [
        (name, type(part), {k: v for k, v in part.__dict__.items() if not k.startswith("_")}, sorted(part.__dict__))
        for name, part in module.named_modules()
    ]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_r_zero_is_the_unpatched_tower_to_rounding(options, training):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        visual = tower(dtype, **options).train(training)
        batch = images_for(visual)

        def run(visual=visual, batch=batch):
            torch.manual_seed(3)  # patch drop-out draws the same tokens
            output = visual(batch)
            return output, parameter_gradients(visual, loss_of(output))

        expected, expected_gradients = run()
        alt.patch_clip(visual, 0)
        output, gradients = run()
        assert max_difference(output, expected) < tolerance
        assert_same_gradients(gradients, expected_gradients, tolerance)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_remove_is_bit_equal_and_leaves_nothing(options):
    visual = tower(torch.float32, **options).eval()
    batch = images_for(visual)
    before, keys, output = snapshot(visual), list(visual.state_dict()), visual(batch)
    identities = [id(p) for p in visual.parameters()]

    handle = alt.patch_clip(visual, 3, trace_source=True)
    assert list(visual.state_dict()) == keys
    assert [id(p) for p in visual.parameters()] == identities
    merged = visual(batch)
    assert not (merged[0].shape == output[0].shape and bit_equal(merged, output))
    handle.remove()

    assert snapshot(visual) == before
    assert list(visual.state_dict()) == keys
    assert bit_equal(visual(batch), output)


def test_layer_norm_in_float32_under_a_bfloat16_tower():
    """open_clip's low-precision layout: linear layers in bfloat16, LayerNormFp32 with float32 weights."""
    visual = tower(torch.float32, norm_layer=LayerNormFp32)
    exact = copy.deepcopy(visual)
    for module in visual.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or type(module).__name__.endswith("Attention"):
            module.to(torch.bfloat16)
    visual.proj.data = visual.proj.data.bfloat16()
    batch = images_for(exact)
    truth, expected = exact(batch), visual(batch.bfloat16())
    alt.patch_clip(visual, 0)
    output = visual(batch.bfloat16())
    assert output.dtype == expected.dtype == torch.bfloat16
    assert (output.float() - truth).abs().max() < 1.5 * (expected.float() - truth).abs().max()
    alt.get_handle(visual).r = 3
    assert visual(batch.bfloat16()).isfinite().all()


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP", "CoCa"])
def test_whole_models_only_the_image_tower_changes(kind):
    vision = dict(SMALL_VISION)
    if kind == "CoCa":
        vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True, "attn_pooler_queries": 4}
        text = SMALL_TEXT | {"embed_cls": True, "output_tokens": True}
        decoder = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
        model = open_clip.CoCa(32, multimodal_cfg=decoder, text_cfg=text, vision_cfg=vision)
    else:
        model = getattr(open_clip, kind)(32, vision, SMALL_TEXT)
    randomised(model).eval()
    batch = torch.randn(2, 3, 32, 32)
    text = torch.randint(1, 40, (2, 8))
    before, embedding, caption = snapshot(model), model.encode_image(batch), model.encode_text(text)
    with alt.patch_clip(model, 0) as handle:
        assert max_difference(model.encode_image(batch), embedding) < 1e-5
        handle.r = 3
        assert max_difference(model.encode_image(batch), embedding) > 1e-3
        assert bit_equal(model.encode_text(text), caption)
        changed = {n.split(".")[0] for n, part in model.named_modules() if "Patched" in type(part).__name__}
        assert changed == {"visual"}
        assert alt.get_handle(model).visual is handle.visual is model.visual
    assert snapshot(model) == before
    assert bit_equal(model.encode_image(batch), embedding)


def test_ordinary_calls_of_patched_parts_are_the_hosts():
    visual = tower(attentional_pool=True)
    tokens = torch.randn(2, 9, 32, dtype=torch.float64)
    parts = (visual.transformer, visual.transformer.resblocks[1], visual.attn_pool, visual._pool)
    expected = [part(tokens) for part in parts] + [visual.transformer.forward_intermediates(tokens)]
    alt.patch_clip(visual, 3)
    output = [part(tokens) for part in parts] + [visual.transformer.forward_intermediates(tokens)]
    assert bit_equal(output, expected)


def test_copies_and_pickles_are_patched_and_independent():
    model = open_clip.CLIP(16, SMALL_VISION, SMALL_TEXT).eval()
    batch = torch.randn(2, 3, 32, 32)
    handle = alt.patch_clip(model, 3, inflection=0.5, prop_attn=False, trace_source=True)
    expected = model.encode_image(batch)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    for twin in copies:
        found = alt.get_handle(twin)
        assert (found.r, found.inflection, found.schedule(17)) == (3, 0.5, handle.schedule(17))
        with pytest.raises(ValueError, match="needs a forward"):
            _ = found.sizes
        assert bit_equal(twin.encode_image(batch), expected)
        alt.unpatch(twin)
        with pytest.raises(ValueError, match="not patched"):
            alt.get_handle(twin)
    assert handle.sizes.shape == (2, handle.schedule().tokens[-1])  # the original kept its patch and trace
    assert bit_equal(model.encode_image(batch), expected)


def test_state_dicts_travel_between_patched_and_unpatched():
    visual, other = tower(), tower()
    for parameter in other.parameters():
        parameter.data.mul_(2)
    alt.patch_clip(visual, 3)
    other.load_state_dict(visual.state_dict(), strict=True)
    alt.patch_clip(other, 3)
    assert bit_equal(visual(images_for(visual)), other(images_for(other)))
