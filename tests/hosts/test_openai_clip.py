"""OpenAI's clip: half precision as ``clip.load`` makes it, ``[N, B, C]`` for hooks, LoRA, copies of its file."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import nn

import alt
from alt.hosts import find_tower
from alt.models.region_encoder import RegionEncoder
from tests.patch.compare import bit_equal, images, max_difference, randomised

from .families import build
from .torch_families import OPENAI

clip = pytest.importorskip("clip.model", reason="OpenAI's clip is not installed (pip install clip-anytorch)")

REMOVED = (5, 3)
TEXT = torch.tensor([[1, 4, 9, 0, 0, 0, 0, 0], [2, 3, 3, 40, 0, 0, 0, 0]])


def state() -> dict[str, torch.Tensor]:
    """Random weights in the form of OpenAI's files, of a CLIP with one head of 64 channels."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = randomised(clip.CLIP(12, 32, 2, 64, 8, 8, 50, 64, 1, 1), 0.1)
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def in_half() -> Any:
    return clip.build_model(state())


@pytest.mark.parametrize("removed", [0, REMOVED], ids=["r = 0", "merged"])
def test_half_precision_weights_are_as_exact_as_the_host(removed: Any) -> None:
    """The error against float32 is that of the unpatched model."""
    model = in_half()
    assert model.dtype == torch.float16
    assert model.visual.ln_pre.weight.dtype == torch.float32
    exact, batch = in_half().float(), images(4, torch.float32).half().float()  # of the same rounded weights
    host, tower = find_tower(model)
    assert host.is_layer_norm(tower.transformer.resblocks[0].ln_2)  # so it is fused
    with torch.no_grad():
        plain = (model.encode_image(batch).float() - exact.encode_image(batch)).abs().max()
        alt.patch_model(model, removed)
        alt.patch_model(exact, removed)
        found = model.encode_image(batch)
        assert found.dtype == torch.float16
        error = (found.float() - exact.encode_image(batch)).abs().max()
    assert 0 < error < 2 * plain


def test_the_packages_own_norm_in_float32() -> None:
    model, batch = in_half().float(), images(2, torch.float32)
    before, text = model.encode_image(batch), model.encode_text(TEXT)
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model.encode_image(batch), before) < 1e-5
        handle.r = REMOVED
        assert max_difference(model.encode_image(batch), before) > 1e-3
        assert bit_equal(model.encode_text(TEXT), text)  # the text tower is left alone
        assert bit_equal(handle.host.encode_text(model, TEXT), text)
    assert bit_equal(model.encode_image(batch), before)
    assert find_tower(model)[0].token_embedding(model) is model.token_embedding


def test_hooks_see_the_packages_layout() -> None:
    model = build(OPENAI["VisionTransformer"])
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: seen.setdefault(name, []).append(
            (tuple(args[0].shape), tuple(output.shape))
        )

    trunk = model.transformer
    for name, module in {"trunk": trunk, "blocks": trunk.resblocks, "0": trunk.resblocks[0]}.items():
        module.register_forward_hook(note(name))
    plain = model(images(2))
    unpatched = dict(seen)
    assert unpatched["0"] == [((17, 2, 32), (17, 2, 32))]
    with alt.patch_model(model, 0) as handle:
        seen.clear()
        assert max_difference(model(images(2)), plain) < 1e-12
        assert seen == unpatched
        handle.r = REMOVED
        seen.clear()
        model(images(2))
        assert seen["0"] == [((17, 2, 32), (12, 2, 32))]
        assert seen["trunk"] == seen["blocks"] == [((17, 2, 32), (9, 2, 32))]


def test_a_hook_may_change_a_blocks_tokens() -> None:
    model = build(OPENAI["VisionTransformer"])
    model.transformer.resblocks[0].register_forward_hook(lambda module, args, output: 2 * output.contiguous())
    expected = model(images(2))
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model(images(2)), expected) < 1e-12
        handle.r = 3
        assert model(images(2)).isfinite().all()


@pytest.mark.parametrize("targets", [["attn"], ["c_fc", "c_proj"]], ids=str)
def test_lora(targets: list[str]) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(build(OPENAI["VisionTransformer"]), config).double()
    merged = copy.deepcopy(model).merge_and_unload()
    visual, batch = model.base_model.model, images(2)
    expected = model(batch)
    with alt.patch_model(visual, 0) as handle, alt.patch_model(merged, REMOVED):
        assert max_difference(model(batch), expected) < 1e-11
        handle.r = REMOVED
        assert max_difference(model(batch), merged(batch)) < 1e-11


def test_it_is_the_tower_of_a_video_model() -> None:
    model, video = build(OPENAI["CLIP"]), torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    expected = model.encode_image(video.flatten(0, 1)).unflatten(0, (2, 3))
    tokens = RegionEncoder(model, 0)(video)
    assert max_difference(tokens.frame, expected) < 1e-12
    assert tokens.regions.shape == (2, 3, 16, 12)


class VisionTransformer(clip.VisionTransformer):
    """As in copies of the package's file: more inputs under the same name."""

    def forward(self, x: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


def broken(change: Any) -> Any:
    model = build(OPENAI["VisionTransformer"])
    change(model)
    return model


def prompted(model: Any) -> None:
    model.prompts = nn.Parameter(torch.zeros(4, 32))


def masked(model: Any) -> None:
    model.transformer.resblocks[1].attn_mask = torch.zeros(17, 17)


def transposed(model: Any) -> None:
    model.transformer.resblocks[0].attn = nn.MultiheadAttention(32, 2, batch_first=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prompted, "the image tower of OpenAI's clip as published; VisionTransformer of .* also has prompts"),
        (
            lambda m: setattr(m.transformer.resblocks[0], "adapter_mlp", nn.Identity()),
            "block 0 of .* also has adapter_mlp",
        ),
        (masked, "without an attention mask; block 1 has one"),
        (transposed, "nn.MultiheadAttention with batch_first=False"),
        (lambda m: setattr(m, "__class__", VisionTransformer), "as the image tower, exactly .*test_openai_clip"),
    ],
    ids=["prompts", "adapter", "mask", "layout", "subclass"],
)
def test_what_is_not_the_published_class_is_refused(change: Any, message: str) -> None:
    model = broken(change)
    with pytest.raises(TypeError, match=message) as caught:
        alt.patch_model(model, 2)
    assert "\n" not in str(caught.value)


def test_its_resnet_is_refused() -> None:
    model = clip.CLIP(16, 32, (1, 1, 1, 1), 8, None, 8, 50, 64, 1, 1)
    with pytest.raises(TypeError, match="ModifiedResNet"):
        alt.patch_model(model, 2)


def test_without_a_projection_it_has_no_joint_space() -> None:
    model = build(OPENAI["VisionTransformer"])
    model.proj = None
    with alt.patch_model(model, 3):
        assert model(images(2)).shape == (2, 32)
    with pytest.raises(TypeError, match="expected an OpenAI VisionTransformer with a projection, got one without"):
        RegionEncoder(model, 3)
