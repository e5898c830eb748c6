"""Tiny open_clip towers with weights that leave nothing at its initial value, and tools to compare them."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, VisionTransformer
from torch import Tensor, nn

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


def randomised(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """Adds noise to every parameter: LayerScale, LayerNorm and biases must not be what a bug would assume."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


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


def images(batch: int = 3, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (32, 32)) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def images_for(visual: Any, batch: int = 3) -> Tensor:
    return images(batch, visual.conv1.weight.dtype, tuple(visual.image_size))


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def max_difference(a: Any, b: Any) -> float:
    pairs = list(zip(flat(a), flat(b), strict=True))
    assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
    return max((x - y).abs().max().item() for x, y in pairs)


def bit_equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def parameter_gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by name; zeros where there is none."""
    names, parameters = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(names, parameters, gradients, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in pairs}


def loss_of(output: Any) -> Tensor:
    """A fixed random functional of all outputs."""
    generator = torch.Generator().manual_seed(5)
    return sum(
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)).sum() for t in flat(output)
    )


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
