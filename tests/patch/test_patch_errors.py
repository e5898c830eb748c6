"""What cannot be patched raises one sentence that says what is supported and what came; nothing half-done."""

from __future__ import annotations

import types

import open_clip
import pytest
import torch
from open_clip.transformer import AttentionalPooler, ResidualAttentionBlock, Transformer, VisionTransformer
from test_patch_identity import SMALL_TEXT, SMALL_VISION
from torch import nn
from towers import bit_equal, images, tower

import alt

BLOCK = {"d_model": 32, "n_head": 2}


class OwnTower(VisionTransformer):
    pass


class OwnBlock(ResidualAttentionBlock):
    pass


class OwnAttention(nn.Module):
    def forward(self, x, **kwargs):
        return x


def replaced(path, module):
    def build():
        visual = tower()
        parent, leaf = path.rsplit(".", 1) if "." in path else ("", path)
        setattr(visual.get_submodule(parent), leaf, module)
        return visual

    return build


def changed(change):
    def build():
        visual = tower(attentional_pool=True)
        change(visual, visual.transformer.resblocks[1])
        return visual

    return build


def own_tower():
    visual = tower()
    visual.__class__ = OwnTower
    return visual


def set_forward(visual, block):
    block.forward = block.forward


UNSUPPORTED = {
    "not a module": (
        lambda: "ViT-B-16",
        "Module that .* lists, or its image tower, got the str 'ViT-B-16'; load the model by its library first",
    ),
    "class": (lambda: nn.Linear, "or its image tower, got the class Linear; pass an instance of it"),
    "pipeline": (
        lambda: types.SimpleNamespace(model=nn.Linear(2, 2)),
        r"or its image tower, got SimpleNamespace; pass its model: \.model$",
    ),
    "other module": (
        lambda: nn.Linear(2, 2),
        "supports open_clip's VisionTransformer and .* the image tower.*Linear",
    ),
    "text model": (
        lambda: open_clip.CLIP(16, SMALL_VISION, SMALL_TEXT).transformer,
        "got open_clip.transformer.Transformer",
    ),
    "resnet": (
        lambda: open_clip.CLIP(16, {**SMALL_VISION, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, SMALL_TEXT),
        "cannot merge tokens of open_clip.modified_resnet.ModifiedResNet: it convolves the grid",
    ),
    "timm tower": (
        lambda: open_clip.CustomTextCLIP(
            16,
            {"timm_model_name": "resnet10t", "image_size": 32, "timm_model_pretrained": False},
            SMALL_TEXT,
        ),
        "cannot merge tokens of timm.models.resnet.ResNet: it convolves the grid",
    ),
    "subclass": (own_tower, "exactly .no subclass or wrapper., got test_patch_errors.OwnTower"),
    "compiled": (lambda: torch.compile(tower()), "got torch._dynamo.eval_frame.OptimizedModule; .* model._orig_mod"),
    "data parallel": (
        lambda: nn.DataParallel(tower()),
        "got torch.nn.parallel.*DataParallel; .* model.module",
    ),
    "own block": (replaced("transformer.resblocks.1", OwnBlock(**BLOCK)), "as block 1, exactly.*OwnBlock"),
    "cross-attention": (
        replaced("transformer.resblocks.1", ResidualAttentionBlock(**BLOCK, is_cross_attention=True)),
        "block 1 is built for cross-attention",
    ),
    "own attention": (replaced("transformer.resblocks.1.attn", OwnAttention()), "OwnAttention, whose key projection"),
    "kv bias": (
        replaced("transformer.resblocks.1.attn", nn.MultiheadAttention(32, 2, add_bias_kv=True, batch_first=True)),
        "without add_bias_kv and add_zero_attn",
    ),
    "zero attention": (
        replaced("transformer.resblocks.1.attn", nn.MultiheadAttention(32, 2, add_zero_attn=True, batch_first=True)),
        "without add_bias_kv and add_zero_attn",
    ),
    "other widths": (
        replaced("transformer.resblocks.1.attn", nn.MultiheadAttention(32, 2, kdim=16, vdim=16, batch_first=True)),
        "one packed in_proj_weight",
    ),
    "sequence first": (
        replaced("transformer", Transformer(32, 2, 2, batch_first=False)),
        "batch_first=True; this one has",
    ),
    "own pooler": (
        changed(lambda v, b: setattr(v, "attn_pool", nn.Linear(2, 2))),
        "AttentionalPooler as the attentional pooler",
    ),
    "own pooler attention": (
        changed(lambda v, b: setattr(v.attn_pool, "attn", OwnAttention())),
        "OwnAttention, whose key projection",
    ),
    "forward on the instance": (changed(set_forward), "block 1 has a forward of its own set on the instance"),
}


@pytest.mark.parametrize(("build", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_hosts(build, message):
    model = build()
    with pytest.raises(TypeError, match=message) as caught:
        alt.patch_clip(model, 2)
    assert "\n" not in str(caught.value)
    if isinstance(model, nn.Module):
        assert not any("Patched" in type(module).__name__ for module in model.modules())
        assert not any("_alt_patch" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["prop_attn", "trace_source", "strict"])
def test_flags_are_bools(name):
    with pytest.raises(TypeError, match=f"{name} must be a bool, got int"):
        alt.patch_clip(tower(), 2, **{name: 1})


def test_double_patching():
    model = open_clip.CLIP(16, SMALL_VISION, SMALL_TEXT)
    handle = alt.patch_clip(model, 2)
    for again in (model, model.visual):
        with pytest.raises(ValueError, match=r"already patched: use alt.get_handle"):
            alt.patch_clip(again, 4)
    assert handle.r == 2
    handle.remove()
    alt.patch_clip(model.visual, 4)


def test_handles_of_removed_patches():
    visual = tower()
    handle = alt.patch_clip(visual, 2)
    assert alt.get_handle(visual).r == 2
    alt.unpatch(visual)
    newer = alt.patch_clip(visual, 3)
    for use in (handle.remove, handle.schedule, lambda: handle.r, lambda: setattr(handle, "r", 1), handle.__enter__):
        with pytest.raises(ValueError, match="this handle's patch was removed"):
            use()
    assert newer.r == 3
    newer.remove()
    for function in (alt.unpatch, alt.get_handle):
        with pytest.raises(ValueError, match="VisionTransformer is not patched"):
            function(visual)
    with pytest.raises(TypeError, match=r"torch.nn.Module, got int"):
        alt.get_handle(3)


def test_context_manager_removes_also_on_errors_and_after_a_removal():
    visual = tower()
    expected = visual(images())
    with pytest.raises(KeyError), alt.patch_clip(visual, 3):
        raise KeyError
    with alt.patch_clip(visual, 3) as handle:
        handle.remove()
    assert bit_equal(visual(images()), expected)


def test_handle_is_found_inside_wrappers():
    visual = tower()
    handle = alt.patch_clip(visual, 3)
    for wrapped in (torch.compile(visual), nn.Sequential(nn.Identity(), visual), nn.DataParallel(visual)):
        assert alt.get_handle(wrapped).visual is handle.visual
    two = nn.ModuleList([visual, tower()])
    assert alt.get_handle(two).visual is visual
    alt.patch_clip(two[1], 2)
    with pytest.raises(ValueError, match="2 towers in this ModuleList are patched"):
        alt.get_handle(two)


def test_trace_has_to_be_asked_for():
    visual = tower()
    with alt.patch_clip(visual, 3) as handle:
        visual(images())
        for name in ("sizes", "source", "sources"):
            with pytest.raises(ValueError, match=rf"handle.{name} needs patch_model\(..., trace_source=True\)"):
                getattr(handle, name)
    with alt.patch_clip(visual, 3, trace_source=True) as handle:
        for name in ("sizes", "source", "sources"):
            with pytest.raises(ValueError, match=rf"handle.{name} needs a forward, and there was none"):
                getattr(handle, name)


def test_remove_refuses_where_it_cannot_be_whole():
    visual = tower()
    handle = alt.patch_clip(visual, 3)
    merged = visual(images())
    block = visual.transformer.resblocks[1]
    kept = type(block)
    block.__class__ = type("Wrapped", (kept,), {})
    with pytest.raises(RuntimeError, match="cannot remove the patch: block 1 was sharded, wrapped or given"):
        handle.remove()
    assert bit_equal(visual(images()), merged)
    block.__class__ = kept
    handle.remove()


def test_an_attention_swapped_after_patching_raises():
    visual = tower()
    alt.patch_clip(visual, 3)
    visual.transformer.resblocks[0].attn = OwnAttention()
    with pytest.raises(TypeError, match="whose key projection is unknown"):
        visual(images())


def test_pooler_is_only_patched_where_there_is_one():
    visual = tower(attentional_pool=True)
    with alt.patch_clip(visual, 3):
        assert type(visual.attn_pool).__name__ == "PatchedAttentionalPooler"
    assert type(visual.attn_pool) is AttentionalPooler
