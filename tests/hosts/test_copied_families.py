"""What the models with CLIP's or ViT's layers under other names have of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

import alt
from tests.patch.compare import assert_logits_keep_their_shape, images, max_difference, randomised

from .families import MLP, SMALL, TEXT


def test_the_decoder_of_clipseg_reads_the_grid() -> None:
    config = hf.CLIPSegConfig(
        text_config={**TEXT, "eos_token_id": 2}, vision_config={**SMALL, **MLP}, projection_dim=16,
        extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = randomised(hf.CLIPSegForImageSegmentation(config).double()).eval()
    inputs = {"input_ids": torch.tensor([[1, 4, 9, 2]] * 2), "pixel_values": images(2)}
    with pytest.raises(TypeError, match=r"pass its CLIPSegModel: model\.clip$"):
        alt.patch_model(model, 2)
    assert_logits_keep_their_shape(model, model.clip, inputs)


def test_a_pooler_of_the_first_patch_is_refused() -> None:
    config = hf.IJepaConfig(**SMALL, **MLP)
    with pytest.raises(TypeError, match=r"an IJepaModel without a pooler is supported .* pools the first patch"):
        alt.patch_model(hf.IJepaModel(config, add_pooling_layer=True), 2)


def test_deit_for_masked_images() -> None:
    """Its decoder takes the rows of the patches, which lie on the grid."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = hf.DeiTConfig(**SMALL, **MLP, encoder_stride=8)
        model: Any = randomised(hf.DeiTForMaskedImageModeling(config).double()).eval()
    inputs = {"pixel_values": images(2), "bool_masked_pos": torch.arange(16).expand(2, -1) % 3 == 0}
    expected = model(**inputs).reconstruction
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model(**inputs).reconstruction, expected) < 1e-12
        handle.r = 3
        assert model(**inputs).reconstruction.shape == expected.shape
