"""Tiny open_clip towers with weights that leave nothing at its initial value."""

from __future__ import annotations

from typing import Any

import torch
from compare import bit_equal, flat, images, loss_of, max_difference, parameter_gradients, randomised
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, VisionTransformer
from torch import Tensor

TOKENS = 17  # 4 x 4 patches and the class token

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick_gelu": {"act_layer": QuickGELU},
    "layer_scale": {"ls_init_value": 0.3},
    "qk_norm": {"qk_norm": True},
    "normformer": {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
    "custom_layer_scale": {"block_type": "custom", "ls_init_value": 0.3},
    "no_ln_pre": {"no_ln_pre": True},
    "sin_cos": {"pos_embed_type": "sin_cos_2d"},
    "wide_image": {"image_size": (24, 48)},
    "patch_dropout": {"patch_dropout": 0.25},
    "avg": {"pool_type": "avg"},
    "avg_ln_after": {"pool_type": "avg", "final_ln_after_pool": True},
    "tok_ln_after": {"final_ln_after_pool": True},
    "none": {"pool_type": "none"},
    "output_tokens": {"output_tokens": True},
    "attentional": {"attentional_pool": True, "attn_pooler_queries": 5, "output_tokens": True},
    "attentional_avg": {"attentional_pool": True, "attn_pooler_queries": 5, "pool_type": "avg"},
    "parallel": {"attentional_pool": "parallel", "attn_pooler_queries": 5, "output_dim": 32},
    "cascade": {"attentional_pool": "cascade", "attn_pooler_queries": 5, "output_dim": 32, "output_tokens": True},
}


def tower(dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 3,
        "heads": 2,
        "mlp_ratio": 2.0,
        "output_dim": 16,
        "attn_pooler_heads": 2,
    }
    settings.update(options)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # the same tower from the same options, in every process
        return randomised(VisionTransformer(**settings).to(dtype))


def images_for(visual: Any, batch: int = 3) -> Tensor:
    return images(batch, visual.conv1.weight.dtype, tuple(visual.image_size))


__all__ = [
    "TOKENS",
    "VARIANTS",
    "LayerNorm",
    "LayerNormFp32",
    "bit_equal",
    "flat",
    "images",
    "images_for",
    "loss_of",
    "max_difference",
    "parameter_gradients",
    "randomised",
    "tower",
]
