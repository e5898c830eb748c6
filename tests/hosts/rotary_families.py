"""Two-layer models with rotary positions: their places and frequencies, from the papers' formulas.

RoPE (Su et al. 2021): channel pair j of a token at place p is turned by the angle p f_j. In two dimensions half of the
pairs turn with y and half with x (EVA-02, DINOv3), every pair with a learned mix (Heo et al. 2024), or every third.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as hf
from timm.layers import RmsNorm
from timm.models.eva import Eva, EvaBlockPostNorm
from torch import Tensor, nn

from .families import MLP, PATCH, SIDE, SMALL, WIDTH, Family, hf_blocks, layer_norm, pair
from .plain_merging import PlainBlock

HEADS, PAIRS = 2, WIDTH // 4  # pairs of channels per head
FLOAT32_TABLE = 1e-5
"""Tolerance where timm keeps its table of sines in float32."""


def grid(batch: Tensor) -> Tensor:
    """Rows and columns of the patches ``[n, 2]``."""
    down, across = (side // PATCH for side in batch.shape[-2:])
    return torch.cartesian_prod(torch.arange(down), torch.arange(across)).double()


def shape(batch: Tensor) -> Tensor:
    return torch.tensor([side // PATCH for side in batch.shape[-2:]]).double()


def eva02_places(batch: Tensor) -> Tensor:
    return grid(batch) / shape(batch) * 3  # pretrained on 3 x 3 patches


def offset_places(batch: Tensor) -> Tensor:
    return grid(batch).flip(1) + 1  # x before y, counted from 1


def centred_places(batch: Tensor) -> Tensor:
    """DINOv3's: centres of the patches in [-1, 1], in float32 as the host has them."""
    return (2 * ((grid(batch) + 0.5).float() / shape(batch).float()) - 1).double()


def axial(frequencies: Tensor) -> Tensor:
    """Half of the pairs turn with the first coordinate and half with the second: ``[H, 2, pairs]``."""
    zero = torch.zeros_like(frequencies)
    return torch.stack([torch.cat([frequencies, zero]), torch.cat([zero, frequencies])]).double().expand(HEADS, -1, -1)


def powers(base: float, count: int, kept: Tensor | None = None) -> Tensor:
    """``base ** -(j / count)``, or the values that the model ``kept`` in float32, after a look at them."""
    exact = torch.tensor([base ** -(j / count) for j in range(count)], dtype=torch.float64)
    if kept is None:
        return exact
    torch.testing.assert_close(kept.double(), exact, rtol=1e-6, atol=0)
    return kept


def eva02_frequencies(tower: Any, index: int) -> Tensor:
    return axial(powers(10000, PAIRS // 2))


def dinov3_frequencies(tower: Any, index: int) -> Tensor:
    return 2 * math.pi * axial(powers(100, PAIRS // 2, 1 / tower.rope.periods))


def mixed_frequencies(tower: Any, index: int) -> Tensor:
    return tower.rope.freqs[:, index].transpose(0, 1)


def mrope_frequencies(tower: Any, index: int) -> Tensor:
    """Pairs 1, 4, 7, ... turn with y, 2, 5, 8, ... with x, the others with time, which is 0."""
    turning = [[j % 3 == axis for j in range(PAIRS)] for axis in (1, 2)]
    return (torch.tensor(turning) * powers(10000, PAIRS, tower.rope.inv_freq)).expand(HEADS, -1, -1)


def eva_blocks(tower: Any, frequencies: Callable[[Any, int], Tensor] | None) -> list[PlainBlock]:
    def norm(module: Any) -> Any:
        return layer_norm(module) if isinstance(module, nn.LayerNorm) else module

    def gate(y: Tensor, x: Tensor, attn: Any) -> Tensor:
        y = norm(attn.norm)(y)
        return y if attn.gate is None else y * (x @ attn.gate.weight.T + attn.gate.bias).sigmoid()

    def projections(attn: Any) -> tuple[Any, ...]:
        if attn.qkv is None:
            return pair(attn.q_proj), pair(attn.k_proj), pair(attn.v_proj)
        weights = attn.qkv.weight.chunk(3)
        if getattr(attn, "q_bias", None) is not None:
            return (weights[0], attn.q_bias), (weights[1], None), (weights[2], attn.v_bias)
        biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
        return tuple(zip(weights, biases, strict=True))

    found = []
    for index, block in enumerate(tower.blocks):
        attn, post = block.attn, isinstance(block, EvaBlockPostNorm)
        query, key, value = projections(attn)
        first, second = norm(block.norm1), norm(block.norm2)
        plain = PlainBlock(
            norm_1=first,
            query=query,
            key=key,
            value=value,
            out=pair(attn.proj),
            heads=HEADS,
            norm_2=second,
            mlp=block.mlp,
            query_norm=norm(attn.q_norm),
            key_norm=norm(attn.k_norm),
            before_out=partial(gate, attn=attn),
            rotation=None if frequencies is None else frequencies(tower, index),
            half=attn.rotate_half,
            shared=HEADS // getattr(attn, "num_kv_heads", HEADS),
        )
        if post:
            plain.norm_1, plain.norm_2 = (lambda x: x), (lambda x: x)
            plain.after_out = first
            plain.mlp = partial(lambda x, mlp, after: after(mlp(x)), mlp=block.mlp, after=second)
        elif block.gamma_1 is not None:
            plain.gains = block.gamma_1, 1.0 if block.gamma_2 is None else block.gamma_2
        found.append(plain)
    return found


def eva(
    frequencies: Callable[[Any, int], Tensor] | None = None,
    places: Callable[[Tensor], Tensor] | None = None,
    *,
    sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),),
    protected: int = 1,
    tolerance: float = 1e-11,
    float32_gradients: tuple[str, ...] = (),
    **options: Any,
) -> Family:
    settings = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS}
    settings |= {"mlp_ratio": 2, "num_classes": 10, "use_rot_pos_emb": frequencies is not None}

    def all_places(tower: Any, batch: Tensor) -> Tensor | None:
        return None if places is None else torch.cat([torch.zeros(protected, 2).double(), places(batch)])

    return Family(
        lambda: Eva(**{**settings, **options}),
        lambda m, x: [m(x), m.forward_features(x)],
        lambda m: m,
        lambda t, x: t.norm_pre(t._pos_embed(t.patch_embed(x))[0]),
        lambda t: eva_blocks(t, frequencies),
        lambda m, g: [m.forward_head(m.norm(g)), m.norm(g)],  # the host's own head, which sees every patch
        protected=protected,
        attention=lambda t: [block.attn for block in t.blocks],
        sizes=sizes,
        places=all_places,
        tolerance=tolerance,
        float32_gradients=float32_gradients,
    )


TWO_SIZES = ((SIDE, SIDE), (24, 48))
DINOV3 = {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True, "use_abs_pos_emb": False}

EVA: dict[str, Family] = {
    "EVA": eva(use_post_norm=True, global_pool="token"),
    "EVA-02": eva(
        eva02_frequencies,
        eva02_places,
        tolerance=FLOAT32_TABLE,
        ref_feat_shape=3,
        swiglu_mlp=True,
        scale_mlp=True,
        qkv_fused=False,
        drop_path_rate=0.3,
    ),
    "EVA-02 CLIP": eva(
        eva02_frequencies,
        eva02_places,
        tolerance=FLOAT32_TABLE,
        ref_feat_shape=3,
        scale_attn_inner=True,
        global_pool="token",
        dynamic_img_size=True,
        sizes=TWO_SIZES,
    ),
    "DINOv3": eva(
        dinov3_frequencies,
        centred_places,
        protected=5,
        num_reg_tokens=4,
        init_values=0.5,
        dynamic_img_size=True,
        use_fc_norm=False,
        sizes=TWO_SIZES,
        **DINOV3,
    ),
    "Sapiens2": eva(
        dinov3_frequencies,
        centred_places,
        tolerance=FLOAT32_TABLE,
        attn_type="rope",
        qkv_fused=False,
        num_kv_heads=1,
        qk_norm=True,
        norm_layer=RmsNorm,
        init_values=0.5,
        attn_only_layer_scale=True,
        rope_rescale_coords=2.0,  # drawn in training
        **DINOV3,
    ),
    "PE-Core": eva(
        eva02_frequencies,
        offset_places,
        tolerance=FLOAT32_TABLE,
        attn_type="rope",
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        use_pre_transformer_norm=True,
        global_pool="map",
        attn_pool_num_heads=2,
    ),
    "RoPE mixed": eva(
        mixed_frequencies,
        grid,
        tolerance=FLOAT32_TABLE,
        float32_gradients=("rope.freqs",),
        attn_type="rope",
        rope_type="mixed",
        global_pool="token",
    ),
    "MRoPE": eva(
        mrope_frequencies,
        grid,
        protected=0,
        attn_type="rope",
        rope_type="mrope",
        rope_mrope_section=(2, 3, 3),
        class_token=False,
        qkv_fused=False,
    ),
}


def dinov3(**options: Any) -> Family:
    """transformers' model."""
    settings = {**SMALL, **MLP, "layerscale_value": 0.5, "num_register_tokens": 4, **options}

    def gains(layer: Any) -> tuple[Tensor, Tensor]:
        return layer.layer_scale1.lambda1, layer.layer_scale2.lambda1

    def blocks(tower: Any) -> list[PlainBlock]:
        found = hf_blocks(tower.model.layer, ("norm1", "norm2"), "attention", "o_proj", gains)
        for block in found:
            kept = tower.rope_embeddings.inv_freq
            block.rotation, block.half = axial(powers(100, PAIRS // 2, kept)), True
        return found

    def finish(tower: Any, grid: Tensor) -> list[Tensor]:
        tokens = layer_norm(tower.norm)(grid)
        return [tokens, tokens[:, 0]]

    return Family(
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**settings)),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.pooler_output],
        lambda m: m,
        lambda t, x: t.embeddings(x),
        blocks,
        finish,
        protected=5,
        attention=lambda t: [layer.attention for layer in t.model.layer],
        sizes=TWO_SIZES,
        places=lambda t, x: torch.cat([torch.zeros(5, 2), 2 * math.pi * centred_places(x).float()]).double(),
    )


DINOV3_MODELS: dict[str, Family] = {
    "DINOv3ViTModel": dinov3(drop_path_rate=0.3),  # its rescale=2 is drawn in training
    "DINOv3ViTModel with gated MLP": dinov3(use_gated_mlp=True, hidden_act="silu", pos_embed_jitter=1.5),
}

ROTARY = {f"timm {name}": family for name, family in EVA.items()} | DINOV3_MODELS
