"""open_clip's own ViT image towers, alone or in its models ``CLIP``, ``CustomTextCLIP`` and ``CoCa``.

Only this folder knows open_clip's attribute names. It is imported when the first such model is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from open_clip import CLIP
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    AttentionalPooler,
    CustomResidualAttentionBlock,
    CustomTransformer,
    LayerNorm,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from ..host import BlockParts, Embedded, Host
from ..merging import TrunkMerge
from ..modules import require_class, require_unsharded, squashes_pictures
from ..refusals import explain_refusal
from .attention import read_attention
from .patched import PATCHED
from .pooling import pool

__all__ = ["HOST"]

_OWNER = "open_clip's"
_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks)\.\d+(?:\.(?P<inside>.*))?$")
_POOLING = re.compile(r"(trunk\.)?(attn_?pool|proj|head|ln_post)|$")


class OpenClip(Host):
    """The host of open_clip's ``VisionTransformer``. Other towers (timm's, ResNets) are counted but not patched."""

    name = "open_clip"
    supports = "open_clip's VisionTransformer"
    patched = PATCHED
    layer_norms = frozenset(
        {
            "torch.nn.modules.normalization.LayerNorm",
            "open_clip.transformer.LayerNorm",
            "open_clip.transformer.LayerNormFp32",
            "open_clip.layers.LayerNorm",
            "open_clip.layers.LayerNormFp32",
        }
    )

    # --- where things are ---

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        if isinstance(model, VisionTransformer):
            return model
        visual = getattr(model, "visual", None)
        if not isinstance(visual, nn.Module):
            visual = None
        if visual is not None and _is_open_clips(getattr(visual, "_orig_mod", visual)):  # torch.compile wraps it
            return visual
        return (visual or model) if _is_open_clips(model) else None

    def check_tower(self, tower: Any) -> None:
        if isinstance(tower, TimmModel):
            raise TypeError(explain_refusal(tower.trunk))
        if isinstance(tower, ModifiedResNet):
            raise TypeError(explain_refusal(tower))
        require_class(tower, (VisionTransformer,), "the image tower", _OWNER)
        require_class(tower.transformer, (Transformer, CustomTransformer), "the tower's transformer", _OWNER)
        if not getattr(tower.transformer, "batch_first", True):
            raise TypeError("patching supports a transformer with batch_first=True; this one has batch_first=False")
        for i, block in enumerate(tower.transformer.resblocks):
            require_class(block, (ResidualAttentionBlock, CustomResidualAttentionBlock), f"block {i}", _OWNER)
            if hasattr(block, "ln_1_kv"):
                raise TypeError(f"patching supports self-attention blocks; block {i} is built for cross-attention")
            read_attention(block.attn)
        for pooler in _poolers(tower):
            require_class(pooler, (AttentionalPooler,), "the attentional pooler", _OWNER)
            read_attention(pooler.attn, packed=False)
        require_unsharded(tower)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        parts = [("the image tower", tower), ("the tower's transformer", tower.transformer)]
        parts += [(f"block {i}", block) for i, block in enumerate(tower.transformer.resblocks)]
        return parts + [("the attentional pooler", pooler) for pooler in _poolers(tower)]

    def blocks(self, tower: Any) -> Sequence[nn.Module]:
        return tower.transformer.resblocks

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        # Only the default block has a method ``attention``, and it passes keys and values by name.
        attention = read_attention(block.attn, names_keys=hasattr(block, "attention"))
        ln_attn = getattr(block, "ln_attn", None)

        def after_attention(y: Tensor) -> Tensor:
            return block.ls_1(y if ln_attn is None else ln_attn(y))

        def feed_forward(normed: Tensor) -> Tensor:
            return block.ls_2(block.mlp(normed))

        return BlockParts(block.ln_1, attention, after_attention, block.ln_2, feed_forward)

    def component(self, path: str) -> str:
        block = _BLOCK.search(path)
        if block is not None:
            inside = block["inside"] or ""
            return "mlp" if inside.startswith("mlp") else "attention" if inside.startswith("attn") else "block"
        if path.startswith(("conv1", "patch_embed", "trunk.patch_embed")):
            return "patch_embedding"
        return "pooling" if _POOLING.match(path) else "other"

    # --- sizes ---

    def image_size(self, tower: Any) -> tuple[int, int]:
        size = getattr(tower, "image_size", None)
        if size is None:
            raise TypeError(f"image tower: expected one with an image_size, got {type(tower).__name__}")
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)

    def grid(self, tower: Any) -> tuple[int, int]:
        height, width = self.image_size(tower)
        down, across = tower.patch_size
        return height // int(down), width // int(across)

    def num_protected(self, tower: Any) -> int:
        return 1

    def num_tokens(self, tower: Any) -> int:
        return tower.positional_embedding.shape[0]

    def width(self, tower: Any) -> int:
        return tower.conv1.out_channels

    # --- the forward ---

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return Embedded(tower._embeds(images))

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        return tower.transformer(x, merge=merge)

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        if tower.attn_pool is None and tower.pool_type == "tok":
            pooled = tower.ln_post(x[:, 0])  # one token: pooling before or after the norm is the same
        else:
            pooled, _ = pool(tower, x, size)
        return pooled if tower.proj is None else pooled @ tower.proj

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        everything = tower.ln_post(x) @ tower.proj
        if tower.pool_type == "tok":
            return everything  # row 0 is the class token
        return torch.cat([self.pool(tower, x, size)[:, None], everything[:, 1:]], 1)

    def joint_width(self, tower: Any) -> int:
        supported = "image tower: expected an open_clip VisionTransformer that pools tokens and has a projection"
        if not isinstance(tower, VisionTransformer):
            raise TypeError(f"{supported}, got {type(tower).__name__}")
        if tower.attn_pool is not None or tower.pool_type not in ("tok", "avg"):
            pooling = "an attentional pooler" if tower.attn_pool is not None else f"pool_type={tower.pool_type!r}"
            raise TypeError(f"{supported}, got one with {pooling}")
        if tower.proj is None:
            raise TypeError(f"{supported}, got one without a projection")
        return tower.proj.shape[1]

    def checkpointing(self, tower: Any) -> bool:
        return tower.transformer.grad_checkpointing

    def set_checkpointing(self, tower: Any, enable: bool) -> None:
        tower.set_grad_checkpointing(enable)

    def squeezes(self, model: Any) -> bool:
        return squashes_pictures(model)

    # --- weights and pictures ---

    def describe(self, tower: Any) -> dict[str, Any]:
        block, width = tower.transformer.resblocks[0], self.width(tower)
        # No parameter shows these. They are written only where they are not the class's defaults.
        hidden = {
            "pool_type": (tower.pool_type, "tok"),
            "final_ln_after_pool": (tower.final_ln_after_pool, False),
            "norm_eps": (tower.ln_post.eps, 1e-5),
        }
        return {
            **{name: value for name, (value, default) in hidden.items() if value != default},
            "image_size": list(tower.image_size),
            "patch_size": list(tower.patch_size),
            "width": width,
            "layers": len(tower.transformer.resblocks),
            "heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.c_fc.out_features / width,
            "output_dim": tower.proj.shape[1],
        }

    def build(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
        norm = partial(LayerNorm, eps=values.pop("norm_eps", 1e-5))
        return VisionTransformer(**values, act_layer=QuickGELU if quick_gelu else nn.GELU, norm_layer=norm)

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return tower.positional_embedding

    def no_decay(self, tower: nn.Module) -> list[nn.Parameter]:
        """Also takes a whole CLIP, whose text tower has positions of its own."""
        found = (getattr(module, "positional_embedding", None) for module in tower.modules())
        return [positions for positions in found if isinstance(positions, nn.Parameter)]

    def mean_std(self, tower: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # Set by open_clip.create_model; a tower built by hand has neither.
        mean = getattr(tower, "image_mean", None) or OPENAI_DATASET_MEAN
        std = getattr(tower, "image_std", None) or OPENAI_DATASET_STD
        return tuple(mean), tuple(std)

    # --- the text tower ---

    def has_text(self, model: nn.Module) -> bool:
        return callable(getattr(model, "encode_text", None))

    def encode_text(self, model: Any, ids: Tensor) -> Tensor:
        return model.encode_text(ids)

    def drop_tower(self, model: Any) -> None:
        del model.visual
        for name in ("logit_scale", "logit_bias"):
            if isinstance(getattr(model, name, None), nn.Parameter):
                delattr(model, name)

    def describe_text(self, model: Any) -> dict[str, Any]:
        if type(model) is not CLIP or model.text_pool_type != "argmax" or model.attn_mask is None:
            raise TypeError(
                "text: a video model can hold the text tower of an open_clip CLIP that is causal and reads its result "
                f"at the end of a text, got one of {type(model).__name__}"
            )
        block = model.transformer.resblocks[0]
        width = model.token_embedding.embedding_dim
        return {
            "vocab_size": model.vocab_size,
            "context_length": model.context_length,
            "width": width,
            "layers": len(model.transformer.resblocks),
            "heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.c_fc.out_features / width,
            "output_dim": model.text_projection.shape[1],
        }

    def build_text(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        sizes = dict(sizes)
        vision = {"layers": 1, "width": 64, "head_width": 64, "image_size": 1, "patch_size": 1}
        clip = CLIP(sizes.pop("output_dim"), vision, sizes, quick_gelu=quick_gelu)
        self.drop_tower(clip)
        length = clip.context_length
        # open_clip does not save the mask, so a model that is built to be loaded needs its values.
        clip.attn_mask = torch.full((length, length), float("-inf"), device="cpu").triu_(1)
        return clip

    def token_embedding(self, model: Any) -> nn.Module:
        # On the model itself or, in other classes, under ``text``.
        for owner in (model, getattr(model, "text", None)):
            if owner is not None and hasattr(owner, "token_embedding"):
                return owner.token_embedding
        return super().token_embedding(model)


def _is_open_clips(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("open_clip.") for cls in type(module).__mro__)


def _poolers(tower: Any) -> list[Any]:
    poolers = (tower.attn_pool, getattr(tower, "attn_pool_contrastive", None))
    return [pooler for pooler in poolers if pooler is not None]


HOST = OpenClip()
