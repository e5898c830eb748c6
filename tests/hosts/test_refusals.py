"""What cannot be patched is refused in one sentence: the class, the reason, and what to pass instead."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers as hf
from torch import nn

import alt
from alt.hosts import supported_hosts
from alt.models.messages import insert_messages

from . import supported_table
from .all_families import FAMILIES
from .families import MLP, SMALL, build, clip_config, timm_tower

TINY_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "patch_size": 4, "window_size": 2}


class Wrapper(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def timm_model(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **options)


CASES: dict[str, tuple[Any, str]] = {
    "wrapper": (lambda: Wrapper(clip=hf.CLIPModel(clip_config())), r"got .*Wrapper; pass its CLIPModel: model\.clip$"),
    "nested": (
        lambda: Wrapper(towers=nn.ModuleList([nn.Identity(), timm_tower()])),
        r"pass its VisionTransformer: model\.towers\[1\]$",
    ),
    "data parallel": (lambda: nn.DataParallel(timm_tower()), r"pass its VisionTransformer: model\.module$"),
    "compiled": (
        lambda: torch.compile(hf.ViTModel(hf.ViTConfig(**SMALL, **MLP))),
        r"pass its ViTModel: model\._orig_mod$",
    ),
    "something else": (lambda: nn.Linear(2, 2), r"models that alt.supported_hosts\(\) lists .* got torch.*Linear$"),
    "text model": (
        lambda: hf.CLIPModel(clip_config()).text_model,
        r"got transformers\.models\.clip\.modeling_clip\.CLIPTextModel$",
    ),
    "backbone": (
        lambda: hf.PixioBackbone(hf.PixioConfig(**SMALL)),
        r"got transformers\.models\.pixio\.modeling_pixio\.PixioBackbone$",
    ),
    "hf swin": (lambda: hf.SwinModel(hf.SwinConfig(**TINY_SWIN)), "modeling_swin.SwinModel: it attends inside windows"),
    "hf beit": (lambda: hf.BeitModel(hf.BeitConfig(**SMALL, **MLP)), "BeitModel: .* table of relative positions"),
    "timm swin": (lambda: timm_model("swin_tiny_patch4_window7_224"), "SwinTransformer: it attends inside windows"),
    "timm beit": (lambda: timm_model("beit_base_patch16_224"), "Beit: .* table of relative positions"),
    "timm relpos": (lambda: timm_model("vit_relpos_small_patch16_224"), "RelPos: .* table of relative positions"),
    "timm hiera": (lambda: timm_model("hiera_tiny_224"), "Hiera: it is hierarchical"),
    "timm tnt": (lambda: timm_model("tnt_s_legacy_patch16_224"), "TNT: each of its tokens holds a sequence"),
    "timm mixer": (lambda: timm_model("mixer_s32_224"), "MlpMixer: it mixes tokens by their place, without attention"),
    "timm resnet": (lambda: timm_model("resnet18"), "ResNet: it convolves the grid"),
    "timm parallel blocks": (
        lambda: timm_tower(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
        r"timm's Block as block 0, exactly .*ParallelScalingBlock$",
    ),
    "timm post-norm blocks": (
        lambda: timm_tower(block_fn=timm.models.vision_transformer.ResPostBlock),
        r"timm's Block as block 0, exactly .*ResPostBlock$",
    ),
    "timm differential attention": (
        lambda: timm_tower(attn_layer="diff", embed_dim=64),
        r"timm's Attention as the attention of block 0, exactly .*DiffAttention$",
    ),
    "open_clip resnet": (
        lambda: open_clip.CLIP(
            16,
            {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": 8},
            {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
        ),
        "cannot merge tokens of open_clip.modified_resnet.ModifiedResNet: it convolves the grid",
    ),
}


@pytest.mark.parametrize(("make", "message"), CASES.values(), ids=CASES)
def test_refused_and_untouched(make: Any, message: str) -> None:
    model = make()
    before = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=message) as caught:
        alt.patch_model(model, 2)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in model.modules()] == before
    assert not any("_alt_patch" in module.__dict__ for module in model.modules())


def test_a_tower_of_timm_inside_open_clip() -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_model_pretrained": False}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CustomTextCLIP(16, {**vision, "timm_pool": "", "timm_proj": "linear"}, text).eval()
    batch = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.encode_image(batch)
        with alt.patch_model(model, 0) as handle:
            assert handle.tower is model.visual.trunk
            assert (model.encode_image(batch) - expected).abs().max() < 1e-5
            handle.r = 8
            assert model.encode_image(batch).shape == expected.shape
        assert torch.equal(model.encode_image(batch), expected)


def test_supported_hosts_names_every_class_and_version() -> None:
    found = {host.name: host for host in supported_hosts()}
    assert "CLIPVisionModelWithProjection" in found["transformers.clip"].classes
    assert found["timm"].version == timm.__version__ == found["timm"].tested
    for host in found.values():
        assert host.exact
        if host.package == "transformers":
            for name in host.classes:
                assert hasattr(hf, name), name


def test_the_table_in_the_docs_is_that_of_supported_hosts() -> None:
    page = supported_table.PAGE.read_text(encoding="utf-8")
    assert page == supported_table.with_table(page), "python -m tests.hosts.supported_table"


def test_every_class_is_on_the_page_of_its_family() -> None:
    pages = " ".join(
        page.read_text(encoding="utf-8") for page in (supported_table.PAGE.parent / "families").glob("*.md")
    )
    missing = [
        name for host in supported_hosts() for name in host.classes if " " not in name and f"`{name}`" not in pages
    ]
    assert not missing, f"docs/families names no {missing}"


def test_messages_need_the_number_of_heads() -> None:
    """Keys with a norm are no projection, which would tell it."""
    model = build(FAMILIES["timm q/k norm"])
    alt.patch_model(model, 0)
    with pytest.raises(TypeError, match=r"messages need as many heads as .* PatchedVisionTransformer does not tell$"):
        insert_messages(model, 2)
