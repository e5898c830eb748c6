"""Models with ``torch.nn.MultiheadAttention``: OpenAI's clip, torchvision's vision transformer, torch's encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer as torchvision_vit

from .families import PATCH, SIDE, WIDTH, Family, layer_norm, pair
from .plain_merging import PlainBlock

# --- OpenAI's clip ---


def openai_tower(clip_model: bool = False) -> Any:
    model = pytest.importorskip("clip.model", reason="OpenAI's clip is not installed (pip install clip-anytorch)")
    if clip_model:
        made = model.CLIP(12, SIDE, 2, 64, PATCH, 8, 50, 64, 1, 1)
    else:
        made = model.VisionTransformer(SIDE, PATCH, WIDTH, 2, 2, 12)
    for module in made.modules():
        if isinstance(module, model.LayerNorm):
            module.__class__ = nn.LayerNorm  # theirs computes in float32 and fails on float64; see test_openai_clip.py
    return made


def openai_blocks(tower: Any) -> list[PlainBlock]:
    return [multihead_block(block.attn, block.ln_1, block.ln_2, block.mlp) for block in tower.transformer.resblocks]


def multihead_block(attn: Any, norm_1: Any, norm_2: Any, mlp: Any) -> PlainBlock:
    """Of a block with ``torch.nn.MultiheadAttention``."""
    weights = attn.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)
    return PlainBlock(
        norm_1=layer_norm(norm_1),
        query=(weights[0], biases[0]),
        key=(weights[1], biases[1]),
        value=(weights[2], biases[2]),
        out=pair(attn.out_proj),
        heads=attn.num_heads,
        norm_2=layer_norm(norm_2),
        mlp=mlp,
    )


def openai_embed(tower: Any, x: Tensor) -> Tensor:
    patches = tower.conv1(x).flatten(2).permute(0, 2, 1)
    first = tower.class_embedding[None, None].repeat(len(x), 1, 1)
    return tower.ln_pre(torch.cat([first, patches], 1) + tower.positional_embedding)


def openai(run: Any, tower: Any = lambda model: model, **options: Any) -> Family:
    return Family(
        partial(openai_tower, **options),
        run,
        tower,
        openai_embed,
        openai_blocks,
        lambda m, g: layer_norm(tower(m).ln_post)(g[:, 0]) @ tower(m).proj,
        attention=lambda t: [block.attn for block in t.transformer.resblocks],
        switch=False,
    )


OPENAI: dict[str, Family] = {
    "VisionTransformer": openai(lambda m, x: m(x)),
    "CLIP": openai(lambda m, x: m.encode_image(x), lambda m: m.visual, clip_model=True),
}

# --- torchvision ---


def torchvision_tower(**options: Any) -> Any:
    return torchvision_vit.VisionTransformer(SIDE, PATCH, 2, 2, WIDTH, 48, num_classes=10, **options)


def torchvision_embed(tower: Any, x: Tensor) -> Tensor:
    patches = tower.conv_proj(x).flatten(2).permute(0, 2, 1)
    return torch.cat([tower.class_token.repeat(len(x), 1, 1), patches], 1) + tower.encoder.pos_embedding


def torchvision(**options: Any) -> Family:
    return Family(
        partial(torchvision_tower, **options),
        lambda m, x: m(x),
        lambda m: m,
        torchvision_embed,
        lambda t: [multihead_block(b.self_attention, b.ln_1, b.ln_2, b.mlp) for b in t.encoder.layers],
        lambda m, g: m.heads(layer_norm(m.encoder.ln)(g[:, 0])),
        attention=lambda t: [block.self_attention for block in t.encoder.layers],
        switch=False,
    )


TORCHVISION: dict[str, Family] = {
    "linear head": torchvision(dropout=0.2, attention_dropout=0.1),
    "convolutional stem and tanh head": torchvision(
        representation_size=24,
        conv_stem_configs=[torchvision_vit.ConvStemConfig(8, 3, 4), torchvision_vit.ConvStemConfig(16, 3, 2)],
    ),
}

# --- torch.nn.TransformerEncoder, which takes sequences and no images ---


def encoder(norm: bool = False, nested: bool = False, **options: Any) -> Any:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, **options)
    last = nn.LayerNorm(WIDTH) if norm else None
    return nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=nested)


def tokens_of(images: Tensor) -> Tensor:
    """16 tokens of an image of 32 x 32, 18 of one of 24 x 48."""
    return images[:, 0].reshape(len(images), -1, WIDTH)[:, ::2]


def encode(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    """The outputs ``[B, N, C]`` in either layout."""
    if model.layers[0].self_attn.batch_first:
        return model(tokens, **options)
    return model(tokens.transpose(0, 1), **options).transpose(0, 1)


def encoder_blocks(tower: Any) -> list[PlainBlock]:
    def block(layer: Any) -> PlainBlock:
        def mlp(x: Tensor) -> Tensor:
            return layer.linear2(layer.activation(layer.linear1(x)))

        found = multihead_block(layer.self_attn, layer.norm1, layer.norm2, mlp)
        found.post_norm = not layer.norm_first
        return found

    return [block(layer) for layer in tower.layers]


def sequences(**options: Any) -> Family:
    return Family(
        partial(encoder, **options),
        lambda m, x: encode(m, tokens_of(x)),
        lambda m: m,
        lambda t, x: tokens_of(x),
        encoder_blocks,
        lambda m, g: g if m.norm is None else layer_norm(m.norm)(g),
        protected=0,
        attention=lambda t: [layer.self_attn for layer in t.layers],
        sizes=((SIDE, SIDE), (24, 48)),
        switch=False,
    )


ENCODERS: dict[str, Family] = {
    "pre-norm": sequences(batch_first=True, norm_first=True, activation="gelu", norm=True),
    "post-norm": sequences(batch_first=True, activation=nn.SiLU()),
    # Drop-out would draw its masks in the other layout: the same law, other numbers.
    "pre-norm, sequence first": sequences(norm_first=True, bias=False, norm=True, dropout=0.0),
    "post-norm, sequence first": sequences(dropout=0.0),
}

IMAGE_MODELS = {f"torchvision {name}": family for name, family in TORCHVISION.items()} | {
    f"openai {name}": family for name, family in OPENAI.items()
}
SEQUENCES = {f"torch {name}": family for name, family in ENCODERS.items()}
