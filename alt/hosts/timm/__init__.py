"""timm's ``VisionTransformer`` and ``VisionTransformerDistilled``, alone or as the trunk of open_clip's ``TimmModel``.

Only this folder knows timm's attribute names. It is imported when the first such model is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import Attention, AttentionPoolLatent, AttentionPoolPrr
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..host import BlockParts, Embedded, Host
from ..merging import TrunkMerge
from ..modules import require_class, require_unsharded, squashes_pictures
from .attention import TimmAttention
from .patched import PATCHED
from .pooling import head

__all__ = ["HOST", "OWNER", "Timm"]

OWNER = "timm's"
_BLOCK = re.compile(r"blocks\.\d+(?:\.(?P<part>\w+))?")


class Timm(Host):
    """The host of timm's ``VisionTransformer``, and base of that of ``Eva``.

    Attributes:
        tower: class of the tower.
    """

    name = "timm"
    supports = "timm's VisionTransformer"
    patched: Mapping[type, type] = PATCHED
    tower: type[nn.Module] = VisionTransformer
    layer_norms = frozenset({"torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm"})

    # --- where things are ---

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        if isinstance(model, self.tower):
            return model
        if not any(cls.__module__.startswith("open_clip.") for cls in type(model).__mro__):
            return None
        trunk = getattr(getattr(model, "visual", model), "trunk", None)
        return trunk if isinstance(trunk, self.tower) else None

    def check_tower(self, tower: Any) -> None:
        require_class(tower, (VisionTransformer, VisionTransformerDistilled), "the image tower", OWNER)
        require_class(tower.blocks, (nn.Sequential,), "the tower's blocks", "torch's")
        for i, block in enumerate(tower.blocks):
            require_class(block, (Block,), f"block {i}", OWNER)
            require_class(block.attn, (Attention,), f"the attention of block {i}", OWNER)
        self.check_pooling(tower, (AttentionPoolLatent, AttentionPoolPrr))
        require_unsharded(tower)

    def check_pooling(self, tower: Any, known: tuple[type, ...]) -> None:
        """Raises TypeError unless the attention pooling, if there is one, is of a known class without positions."""
        if tower.attn_pool is not None:
            require_class(tower.attn_pool, known, "the attention pooling", OWNER)
            if getattr(tower.attn_pool, "pos_embed", None) is not None:
                raise TypeError("patching supports attention pooling without positions of its own; this one has some")

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        parts = [("the image tower", tower), ("the tower's blocks", tower.blocks)]
        return parts + [(f"block {i}", block) for i, block in enumerate(tower.blocks)]

    def blocks(self, tower: Any) -> Sequence[nn.Module]:
        return tower.blocks

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        def after_attention(y: Tensor) -> Tensor:
            return block.drop_path1(block.ls1(y))

        def feed_forward(normed: Tensor) -> Tensor:
            return block.drop_path2(block.ls2(block.mlp(normed)))

        return BlockParts(block.norm1, TimmAttention(block.attn), after_attention, block.norm2, feed_forward)

    def is_layer_norm(self, norm: Any) -> bool:
        # timm's fast norm computes in the autocast dtype.
        return super().is_layer_norm(norm) and not getattr(norm, "_fast_norm", False)

    def component(self, path: str) -> str:
        block = _BLOCK.match(path)
        if block is not None:
            return {"mlp": "mlp", "attn": "attention"}.get(block["part"], "block")
        return "patch_embedding" if path.startswith("patch_embed") else "pooling"

    # --- sizes ---

    def image_size(self, tower: Any) -> tuple[int, int]:
        height, width = tower.patch_embed.img_size
        return int(height), int(width)

    def grid(self, tower: Any) -> tuple[int, int]:
        height, width = tower.patch_embed.grid_size
        return int(height), int(width)

    def num_protected(self, tower: Any) -> int:
        return tower.num_prefix_tokens

    def width(self, tower: Any) -> int:
        return tower.embed_dim

    # --- the forward ---

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return Embedded(tower.norm_pre(tower.patch_drop(tower._pos_embed(tower.patch_embed(images)))))

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        return tower.blocks(x, merge=merge, checkpointing=tower.grad_checkpointing)

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        return head(tower, tower.norm(x), size)

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        regions = tower.head(tower.fc_norm(tower.norm(x[:, tower.num_prefix_tokens :])))
        return torch.cat([self.pool(tower, x, size)[:, None], regions], 1)

    def joint_width(self, tower: Any) -> int:
        pools = tower.attn_pool is None and tower.global_pool in ("token", "avg")
        single = not isinstance(tower, VisionTransformerDistilled)
        if single and pools and isinstance(tower.head, nn.Linear):
            return tower.head.out_features
        raise TypeError(
            f"image tower: expected a timm {self.tower.__name__} with a linear head after the class token or the mean "
            f"of its tokens, got {type(tower).__name__} with global_pool={tower.global_pool!r} and the head "
            f"{type(tower.head).__name__}"
        )

    def checkpointing(self, tower: Any) -> bool:
        return tower.grad_checkpointing

    def set_checkpointing(self, tower: Any, enable: bool) -> None:
        tower.set_grad_checkpointing(enable)

    # --- pictures ---

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return super().position_embedding(tower) if tower.pos_embed is None else tower.pos_embed

    def no_decay(self, tower: Any) -> list[nn.Parameter]:
        names = tower.no_weight_decay()  # may name parameters that this tower does not have
        return [parameter for name, parameter in tower.named_parameters() if name in names]

    def take_tower(self, model: nn.Module) -> nn.Module:
        tower: Any = super().take_tower(model)
        outside: Any = getattr(model, "visual", model)  # open_clip's TimmModel, which knows how its CLIP was trained
        if outside is not tower and getattr(outside, "image_mean", None) is not None:
            known = getattr(tower, "pretrained_cfg", None) or {}
            tower.pretrained_cfg = {**known, "mean": outside.image_mean, "std": outside.image_std}
        return tower

    def squeezes(self, model: Any) -> bool:
        return squashes_pictures(model)

    def mean_std(self, tower: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        config = getattr(tower, "pretrained_cfg", None) or {}  # a tower built by hand has none
        return tuple(config.get("mean", IMAGENET_INCEPTION_MEAN)), tuple(config.get("std", IMAGENET_INCEPTION_STD))


HOST = Timm()
