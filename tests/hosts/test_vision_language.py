"""Vision-language models of transformers with a tower that is patched: unchanged at r = 0, as many tokens at r > 0.

The others are refused in one sentence. What LLaVA reads of merged tokens is in ``test_merged_output.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import alt
from tests.patch.compare import assert_logits_keep_their_shape, images, randomised

from .families import PATCH, SIDE, WIDTH
from .supported_table import PAGE

IMAGE = 39
"""Token id of an image placeholder."""
VISION = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
GRIDS = {"image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}
"""Forms in which LLaVA-NeXT cuts an image: two tiles and the whole."""
TILES = {"image_sizes": torch.tensor([[SIDE, 2 * SIDE]])}
PAIR = 16 + 4 * 8 + 4
"""Placeholders of such an image: the whole, both tiles, and a token at the end of each line."""


class Language(NamedTuple):
    """make: a small model. placeholders: in its prompt. images: that its processor makes of one. tower: path of the
    image tower. inputs: what else it reads."""

    make: Callable[[], nn.Module]
    placeholders: int = 16
    images: int = 1
    tower: str = "model.vision_tower"
    inputs: dict[str, Tensor] = {}  # noqa: RUF012  read only


def clip() -> Any:
    return hf.CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH)


def siglip(**options: Any) -> Any:
    return hf.SiglipVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH, vision_use_head=False, **options)


def naflex() -> Any:
    return hf.Siglip2VisionConfig(**VISION, patch_size=PATCH, num_patches=16, vision_use_head=False)


def make(name: str, vision: Any, text: Any, **options: Any) -> Callable[[], nn.Module]:
    """A model of class ``<name>ForConditionalGeneration`` from the configurations of its two parts."""

    def made() -> nn.Module:
        config = getattr(hf, f"{name}Config")(vision_config=vision(), text_config=text(), **options)
        return getattr(hf, f"{name}ForConditionalGeneration")(config)

    return made


def llama() -> Any:
    return hf.LlamaConfig(**TEXT)


INDEX = {"image_token_index": IMAGE}

MODELS: dict[str, Language] = {
    "VipLLaVA": Language(make("VipLlava", clip, llama, **INDEX, vision_feature_layers=(-2, -1))),
    "LLaVA-NeXT": Language(make("LlavaNext", clip, llama, **INDEX, **GRIDS), PAIR, 3, inputs=TILES),
    "Video-LLaVA": Language(make("VideoLlava", clip, llama, **INDEX, video_token_index=38), tower="model.image_tower"),
    "LLaVA-OneVision": Language(
        make("LlavaOnevision", siglip, lambda: hf.Qwen2Config(**TEXT), **INDEX, video_token_index=38, **GRIDS),
        PAIR,
        3,
        inputs=TILES,
    ),
    "PaliGemma": Language(
        make(
            "PaliGemma",
            lambda: siglip(projection_dim=32),
            lambda: hf.GemmaConfig(**TEXT, head_dim=16),
            **INDEX,
            projection_dim=32,
            hidden_size=32,
        )
    ),
    "Gemma 3": Language(
        make("Gemma3", siglip, lambda: hf.Gemma3TextConfig(**TEXT, head_dim=16), **INDEX, mm_tokens_per_image=4),
        4,
        inputs={"token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1, 0]])},
    ),
    "Aya Vision": Language(
        make("AyaVision", siglip, lambda: hf.Cohere2Config(**TEXT), **INDEX, downsample_factor=2), 4
    ),
    "Cohere 2 Vision": Language(
        make("Cohere2Vision", siglip, lambda: hf.Cohere2Config(**TEXT), image_token_id=IMAGE, downsample_factor=2), 4
    ),
    "LFM2-VL": Language(
        make(
            "Lfm2Vl",
            naflex,
            lambda: hf.Lfm2Config(**TEXT, layer_types=["full_attention"]),
            image_token_id=IMAGE,
            downsample_factor=2,
        ),
        4,
        inputs={"pixel_attention_mask": torch.ones(1, 16, dtype=torch.int64), "spatial_shapes": torch.tensor([[4, 4]])},
    ),
}


def pixels(name: str, case: Language) -> dict[str, Tensor]:
    batch = images(case.images)
    if "spatial_shapes" in case.inputs:
        squares = batch.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        return {"pixel_values": squares.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)}
    if case.images > 1:
        batch = batch[None]
    return {"pixel_values_images" if name == "Video-LLaVA" else "pixel_values": batch}


@pytest.mark.parametrize("name", MODELS)
def test_the_language_model_reads_as_many_tokens_as_before(name: str) -> None:
    case = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = randomised(case.make().double()).eval()
    tower = model.get_submodule(case.tower)
    inputs = {"input_ids": torch.tensor([[1, 2, *[IMAGE] * case.placeholders, 3]]), **pixels(name, case), **case.inputs}
    assert_logits_keep_their_shape(model, tower, inputs)


def test_the_page_names_them() -> None:
    page = (PAGE.parent / "families" / "vision_language.md").read_text(encoding="utf-8")
    assert not [name for name in MODELS if name not in page]


@pytest.mark.slow  # models of full size, on the meta device
@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Glm4v", "Mistral3", "Idefics3", "SmolVLM"])
def test_others_are_refused_in_one_sentence(name: str) -> None:
    with torch.device("meta"):
        model = getattr(hf, f"{name}ForConditionalGeneration")(getattr(hf, f"{name}Config")())
    before = [type(module) for module in model.modules()]
    with pytest.raises(
        TypeError, match=r"packs the patches of all images into one row|rotates|supports.*got"
    ) as caught:
        alt.patch_model(model, 2)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in model.modules()] == before
