"""SigLIP 2 in NaFlex form: rows of patches, the second image's padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from .families import CLIP_NORMS, MLP, PATCH, TEXT, WIDTH, Family, hf_blocks, layer_norm

PATCHES, SHORT = 16, (3, 4)
MASK = torch.tensor([[1] * PATCHES, [1] * 12 + [0] * 4])
"""The first image has 4 x 4 patches, the second 3 x 4 and four rows of padding."""


def naflex(images: Tensor) -> dict[str, Tensor]:
    """Inputs of the model for images ``[2, 3, 32, 32]``. What lies in the padding is noise."""
    corners = [(y, x) for y in range(0, 32, PATCH) for x in range(0, 32, PATCH)]
    patches = [images[:, :, y : y + PATCH, x : x + PATCH].permute(0, 2, 3, 1).flatten(1) for y, x in corners]
    shapes = torch.tensor([[4, 4], SHORT])
    return {"pixel_values": torch.stack(patches, 1), "pixel_attention_mask": MASK, "spatial_shapes": shapes}


def embed(tower: Any, images: Tensor) -> Tensor:
    inputs = naflex(images)
    return tower.embeddings(inputs["pixel_values"], inputs["spatial_shapes"])


def pooled(tower: Any, grid: Tensor) -> Tensor:
    """The host's own head, which sees every patch but the padding."""
    return tower.head(layer_norm(tower.post_layernorm)(grid), MASK)


def siglip2(make: Any, run: Any, finish: Any, tower: Callable[[Any], Any] = lambda model: model) -> Family:
    return Family(
        make,
        run,
        tower,
        embed,
        lambda t: hf_blocks(t.encoder.layers, CLIP_NORMS, "self_attn", "out_proj"),
        finish,
        protected=0,
        attention=lambda t: [layer.self_attn for layer in t.encoder.layers],
        counts=MASK.double().tolist(),
        float32_gradients=("embeddings.position_embedding.weight",),  # they are resized in float32
    )


def vision_options() -> dict[str, Any]:
    layers = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**layers, **MLP, "patch_size": PATCH, "num_patches": PATCHES}


def config() -> Any:
    return hf.Siglip2Config(text_config={**TEXT, "projection_size": WIDTH}, vision_config=vision_options())


def mean(tower: Any, grid: Tensor) -> Tensor:
    tokens = layer_norm(tower.post_layernorm)(grid) * MASK[..., None]
    return tokens.sum(1) / MASK.sum(1, keepdim=True)


PADDED: dict[str, Family] = {
    "Siglip2VisionModel": siglip2(
        lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**vision_options())),
        lambda m, x: (o := m(**naflex(x))) and [o.last_hidden_state, o.pooler_output],
        lambda m, g: [layer_norm(m.post_layernorm)(g), pooled(m, g)],
    ),
    "Siglip2Model": siglip2(
        lambda: hf.Siglip2Model(config()),
        lambda m, x: m.get_image_features(**naflex(x)).pooler_output,
        lambda m, g: pooled(m.vision_model, g),
        lambda m: m.vision_model,
    ),
    "Siglip2ForImageClassification": siglip2(
        lambda: hf.Siglip2ForImageClassification(config()),
        lambda m, x: m(**naflex(x)).logits,
        lambda m, g: m.classifier(mean(m.vision_model, g)),
        lambda m: m.vision_model,
    ),
}
