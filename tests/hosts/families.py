"""Two-layer models of every supported family, and what the plain reference needs to know of each.

This is the tests' own reading of the foreign models. It shares nothing with ``alt.hosts``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers as hf
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from tests.patch.compare import randomised

from .plain_merging import PlainBlock, plain_layer_norm

SIDE, PATCH, WIDTH = 32, 8, 32


@dataclass
class Family:
    """A model and how to read it.

    make: a new model. run: its outputs for images. tower: its image tower. embed: tokens before the first block.
    blocks: their weights. finish: the outputs of ``run`` from the grid of the last block's tokens.
    sizes: image sizes that it takes without a change. switch: it can recompute its blocks in the backward.
    pickles: the unpatched model can be pickled.
    places: coordinates of the tokens that attention rotates by. counts: sizes of the tokens of two images at first.
    tolerance: of merged outputs. float32_gradients: parameters whose gradient the host itself computes in float32.
    """

    make: Callable[[], nn.Module]
    run: Callable[[Any, Tensor], Any]
    tower: Callable[[Any], Any]
    embed: Callable[[Any, Tensor], Tensor]
    blocks: Callable[[Any], list[PlainBlock]]
    finish: Callable[[Any, Tensor], Any]
    protected: int = 1
    attention: Callable[[Any], list[nn.Module]] = field(default=lambda tower: [])
    sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),)
    switch: bool = True
    pickles: bool = True
    places: Callable[[Any, Tensor], Tensor | None] = field(default=lambda tower, batch: None)
    counts: list[list[float]] | None = None
    tolerance: float = 1e-11
    float32_gradients: tuple[str, ...] = ()


def build(family: Family, dtype: torch.dtype = torch.float64) -> Any:
    """A model in evaluation mode with the same random parameters in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return randomised(family.make().to(dtype)).eval()


def layer_norm(module: Any) -> Callable[[Tensor], Tensor]:
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    return plain_layer_norm(module.weight, bias, module.eps)


def pair(module: Any) -> tuple[Tensor, Tensor | None]:
    return module.weight, module.bias


# --- transformers ---

SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"image_size": SIDE, "patch_size": PATCH}
MLP = {"intermediate_size": 48}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}


def hf_blocks(layers: Any, norms: tuple[str, str], attention: str, out: str, gains: Any = None) -> list[PlainBlock]:
    found = []
    for layer in layers:
        attn = getattr(layer, attention)
        found.append(
            PlainBlock(
                norm_1=layer_norm(getattr(layer, norms[0])),
                query=pair(attn.q_proj),
                key=pair(attn.k_proj),
                value=pair(attn.v_proj),
                out=pair(getattr(attn, out)),
                heads=2,
                norm_2=layer_norm(getattr(layer, norms[1])),
                mlp=layer.mlp,
                gains=(1.0, 1.0) if gains is None else gains(layer),
            )
        )
    return found


def all_of(output: Any) -> list[Tensor]:
    return [output.last_hidden_state, *output.hidden_states, output.pooler_output]


CLIP_NORMS = ("layer_norm1", "layer_norm2")


def clip(make: Any, run: Any, finish: Any, tower: Any = lambda model: model) -> Family:
    return Family(
        make,
        run,
        tower,
        lambda t, x: t.pre_layrnorm(t.embeddings(x)),
        lambda t: hf_blocks(t.encoder.layers, CLIP_NORMS, "self_attn", "out_proj"),
        finish,
        attention=lambda t: [layer.self_attn for layer in t.encoder.layers],
    )


def clip_vision(implementation: str = "sdpa", **options: Any) -> Any:
    config = hf.CLIPVisionConfig(**SMALL, **MLP, projection_dim=12, **options)
    config._attn_implementation = implementation
    return config


def clip_config() -> Any:
    return hf.CLIPConfig(text_config=TEXT, vision_config={**SMALL, **MLP}, projection_dim=12)


def small_llava(layers: int = 2) -> Any:
    """A LLaVA that reads the hidden states -2 of a CLIP tower; 39 is the id of an image token."""
    text = hf.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
    )
    vision = clip_vision()
    vision.num_hidden_layers = layers
    options = {"image_token_index": 39, "vision_feature_layer": -2}
    config = hf.LlavaConfig(vision_config=vision, text_config=text, **options)
    return hf.LlavaForConditionalGeneration(config).double().eval()


def clip_pool(tower: Any, grid: Tensor) -> Tensor:
    return layer_norm(tower.post_layernorm)(grid[:, 0])


def siglip(make: Any, run: Any, finish: Any, tower: Any = lambda model: model) -> Family:
    return Family(
        make,
        run,
        tower,
        lambda t, x: t.embeddings(x),
        lambda t: hf_blocks(t.encoder.layers, CLIP_NORMS, "self_attn", "out_proj"),
        finish,
        protected=0,
        attention=lambda t: [layer.self_attn for layer in t.encoder.layers],
    )


def siglip_config() -> Any:
    return hf.SiglipConfig(text_config={**TEXT, "projection_size": WIDTH}, vision_config={**SMALL, **MLP})


def siglip_pool(tower: Any, grid: Tensor) -> Tensor:
    """The host's own head, which sees every patch."""
    return tower.head(layer_norm(tower.post_layernorm)(grid))


def vit(make: Any, run: Any, finish: Any, tower: Any = lambda model: model) -> Family:
    return Family(
        make,
        run,
        tower,
        lambda t, x: t.embeddings(x),
        lambda t: hf_blocks(t.layers, ("layernorm_before", "layernorm_after"), "attention", "o_proj"),
        finish,
        attention=lambda t: [layer.attention for layer in t.layers],
    )


def dinov2(make: Any, run: Any, finish: Any, tower: Any = lambda model: model, protected: int = 1) -> Family:
    def gains(layer: Any) -> tuple[Tensor, Tensor]:
        return layer.layer_scale1.lambda1, layer.layer_scale2.lambda1

    return Family(
        make,
        run,
        tower,
        lambda t, x: t.embeddings(x),
        lambda t: hf_blocks(t.encoder.layer, ("norm1", "norm2"), "attention", "o_proj", gains),
        finish,
        protected=protected,
        attention=lambda t: [layer.attention for layer in t.encoder.layer],
        sizes=((SIDE, SIDE), (24, 48)),
    )


def normed(tower: Any, grid: Tensor) -> Tensor:
    return layer_norm(tower.layernorm)(grid)


def class_and_mean(model: Any, tower: Any, grid: Tensor, protected: int) -> Tensor:
    tokens = normed(tower, grid)
    return model.classifier(torch.cat([tokens[:, 0], tokens[:, protected:].mean(1)], 1))


def registers_config(**options: Any) -> Any:
    return hf.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, layerscale_value=0.5, num_register_tokens=3, **options)


def dinov2_config(**options: Any) -> Any:
    return hf.Dinov2Config(**SMALL, mlp_ratio=2, layerscale_value=0.5, **options)


TRANSFORMERS: dict[str, Family] = {
    "CLIPVisionModel": clip(
        lambda: hf.CLIPVisionModel(clip_vision(hidden_act="quick_gelu")),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.pooler_output],
        lambda m, g: [g, clip_pool(m, g)],
    ),
    "CLIPVisionModelWithProjection": clip(
        lambda: hf.CLIPVisionModelWithProjection(clip_vision()),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.image_embeds],
        lambda m, g: [g, m.visual_projection(clip_pool(m.vision_model, g))],
        lambda m: m.vision_model,
    ),
    "CLIPModel": clip(
        lambda: hf.CLIPModel(clip_config()),
        lambda m, x: m.get_image_features(x).pooler_output,
        lambda m, g: m.visual_projection(clip_pool(m.vision_model, g)),
        lambda m: m.vision_model,
    ),
    "CLIPForImageClassification": clip(
        lambda: hf.CLIPForImageClassification(clip_config()),
        lambda m, x: m(x).logits,
        lambda m, g: m.classifier(g[:, 1:].mean(1)),
        lambda m: m.vision_model,
    ),
    "SiglipVisionModel": siglip(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL, **MLP)),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.pooler_output],
        lambda m, g: [layer_norm(m.post_layernorm)(g), siglip_pool(m, g)],
    ),
    "SiglipVisionModel without a head": siglip(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL, **MLP, vision_use_head=False)),
        lambda m, x: m(x).last_hidden_state,
        lambda m, g: layer_norm(m.post_layernorm)(g),
    ),
    "SiglipModel": siglip(
        lambda: hf.SiglipModel(siglip_config()),
        lambda m, x: m.get_image_features(x).pooler_output,
        lambda m, g: siglip_pool(m.vision_model, g),
        lambda m: m.vision_model,
    ),
    "SiglipForImageClassification": siglip(
        lambda: hf.SiglipForImageClassification(siglip_config()),
        lambda m, x: m(x).logits,
        lambda m, g: m.classifier(layer_norm(m.vision_model.post_layernorm)(g).mean(1)),
        lambda m: m.vision_model,
    ),
    "ViTModel": vit(
        lambda: hf.ViTModel(hf.ViTConfig(**SMALL, **MLP)),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.pooler_output],
        lambda m, g: [normed(m, g), m.pooler(normed(m, g))],
    ),
    "ViTForImageClassification": vit(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **MLP, qkv_bias=False)),
        lambda m, x: m(x).logits,
        lambda m, g: m.classifier(normed(m.vit, g)[:, 0]),
        lambda m: m.vit,
    ),
    "ViTForMaskedImageModeling": vit(
        lambda: hf.ViTForMaskedImageModeling(hf.ViTConfig(**SMALL, **MLP, encoder_stride=PATCH)),
        lambda m, x: m(x).reconstruction,
        lambda m, g: m.decoder(normed(m.vit, g)[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)),
        lambda m: m.vit,
    ),
    "Dinov2Model": dinov2(
        lambda: hf.Dinov2Model(dinov2_config()),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.pooler_output],
        lambda m, g: [normed(m, g), normed(m, g)[:, 0]],
    ),
    "Dinov2ForImageClassification": dinov2(
        lambda: hf.Dinov2ForImageClassification(dinov2_config(use_swiglu_ffn=True, drop_path_rate=0.3)),
        lambda m, x: m(x).logits,
        lambda m, g: class_and_mean(m, m.dinov2, g, 1),
        lambda m: m.dinov2,
    ),
    "Dinov2WithRegistersModel": dinov2(
        lambda: hf.Dinov2WithRegistersModel(registers_config()),
        lambda m, x: (o := m(x)) and [o.last_hidden_state, o.pooler_output],
        lambda m, g: [normed(m, g), normed(m, g)[:, 0]],
        protected=4,
    ),
    "Dinov2WithRegistersForImageClassification": dinov2(
        lambda: hf.Dinov2WithRegistersForImageClassification(registers_config()),
        lambda m, x: m(x).logits,
        lambda m, g: class_and_mean(m, m.dinov2_with_registers, g, 4),
        lambda m: m.dinov2_with_registers,
        protected=4,
    ),
}


# --- timm ---


def timm_blocks(tower: Any) -> list[PlainBlock]:
    def norm(module: Any) -> Any:
        return layer_norm(module) if isinstance(module, nn.LayerNorm) else module

    def gain(scale: Any) -> Any:
        return getattr(scale, "gamma", 1.0)

    found = []
    for block in tower.blocks:
        attn = block.attn
        weights = attn.qkv.weight.chunk(3)
        biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)

        def before_out(y: Tensor, x: Tensor, attn: Any = attn) -> Tensor:
            y = norm(attn.norm)(y)
            return y if attn.gate is None else y * (x @ attn.gate.weight.T + attn.gate.bias).sigmoid()

        found.append(
            PlainBlock(
                norm_1=norm(block.norm1),
                query=(weights[0], biases[0]),
                key=(weights[1], biases[1]),
                value=(weights[2], biases[2]),
                out=pair(attn.proj),
                heads=attn.num_heads,
                norm_2=norm(block.norm2),
                mlp=block.mlp,
                gains=(gain(block.ls1), gain(block.ls2)),
                query_norm=norm(attn.q_norm),
                key_norm=norm(attn.k_norm),
                before_out=before_out,
            )
        )
    return found


def timm_tower(gated: bool = False, distilled: bool = False, **options: Any) -> Any:
    settings = {
        "img_size": SIDE,
        "patch_size": PATCH,
        "embed_dim": WIDTH,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 10,
        **options,
    }
    tower = (VisionTransformerDistilled if distilled else VisionTransformer)(**settings)
    if gated:
        for block in tower.blocks:
            block.attn = Attention(WIDTH, 2, qkv_bias=True, gated=True)
    return tower


def timm(sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),), protected: int = 1, **options: Any) -> Family:
    return Family(
        partial(timm_tower, **options),
        lambda m, x: [m(x), m.forward_features(x)],
        lambda m: m,
        lambda t, x: t.norm_pre(t._pos_embed(t.patch_embed(x))),
        timm_blocks,
        lambda m, g: [m.forward_head(m.norm(g)), m.norm(g)],  # the host's own head, which sees every patch
        protected=protected,
        attention=lambda t: [block.attn for block in t.blocks],
        sizes=sizes,
    )


TIMM: dict[str, Family] = {
    "token": timm(),
    "distilled": timm(distilled=True, protected=2),
    "DINOv2 with registers": timm(
        reg_tokens=4, init_values=0.5, no_embed_class=True, mlp_layer=SwiGLUPacked, protected=5
    ),
    "deit3": timm(no_embed_class=True, init_values=0.5, drop_path_rate=0.3),
    "avg": timm(global_pool="avg"),
    "avg with prefix": timm(global_pool="avg", pool_include_prefix=True, fc_norm=False),
    "avgmax": timm(global_pool="avgmax", reg_tokens=2, protected=3),
    "max": timm(global_pool="max", class_token=False, protected=0),
    "no pooling": timm(global_pool=""),
    "SigLIP": timm(global_pool="map", class_token=False, protected=0),
    "map with class token": timm(global_pool="map"),
    "prr of the class token": timm(global_pool="prr"),
    "prr of the mean": timm(global_pool="prr", class_token=False, protected=0),
    "CLIP": timm(pre_norm=True, num_classes=0),
    "q/k norm": timm(qk_norm=True, scale_attn_norm=True, qkv_bias=False),
    "RMS norm": timm(norm_layer=RmsNorm, qk_norm=True),
    "gated": timm(gated=True),
    "dynamic image size": timm(dynamic_img_size=True, sizes=((SIDE, SIDE), (24, 48))),
}

FAMILIES = TRANSFORMERS | {f"timm {name}": family for name, family in TIMM.items()}
