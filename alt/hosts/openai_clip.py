"""OpenAI's ``clip``: its ``VisionTransformer``, alone or in its ``CLIP``.

The package is installed from GitHub, or from PyPI as clip-anytorch or openai-clip. Its blocks take tokens as
``[N, B, C]``, and ``clip.load`` on a GPU gives half-precision weights with norms in float32.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from clip.model import CLIP, ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from .host import BlockParts, Embedded, Host
from .merging import MergingBlock, MergingTower, TrunkMerge
from .modules import identity, require_class, require_unsharded
from .packed import read_multihead

__all__ = ["HOST"]

_OWNER = "OpenAI's"
_BLOCK = re.compile(r"transformer\.resblocks\.\d+(?:\.(?P<part>\w+))?")
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # the numbers of clip.load's transform
_STD = (0.26862954, 0.26130258, 0.27577711)
# What the package's classes hold. Copies of its file often add prompts or adapters under the same names of classes.
_TOWER = {"class_embedding", "positional_embedding", "proj", "conv1", "ln_pre", "transformer", "ln_post"}
_PARTS = {"attn", "ln_1", "mlp", "ln_2"}


class PatchedBlock(MergingBlock, ResidualAttentionBlock):
    pass


class PatchedBlocks(nn.Sequential):
    """The trunk calls it with ``[N, B, C]``, so its hooks fire as before."""

    def forward(self, x: Tensor, *, merge: TrunkMerge | None = None) -> Tensor:
        return super().forward(x) if merge is None else merge.run(x.transpose(0, 1), self, False).transpose(0, 1)


class PatchedTransformer(Transformer):
    def forward(self, x: Tensor, *, merge: TrunkMerge | None = None) -> Tensor:
        return super().forward(x) if merge is None else self.resblocks(x, merge=merge)


class PatchedVisionTransformer(MergingTower, VisionTransformer):
    pass


class OpenAIClip(Host):
    """The host of OpenAI's ``VisionTransformer``. The ResNets of ``clip`` have no tokens to merge."""

    name = "openai_clip"
    supports = "OpenAI's VisionTransformer"
    patched = MappingProxyType(
        {
            VisionTransformer: PatchedVisionTransformer,
            Transformer: PatchedTransformer,
            nn.Sequential: PatchedBlocks,
            ResidualAttentionBlock: PatchedBlock,
        }
    )
    layer_norms = frozenset({"torch.nn.modules.normalization.LayerNorm", "clip.model.LayerNorm"})

    # --- where things are ---

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        if isinstance(model, VisionTransformer):
            return model
        return model.visual if isinstance(model, CLIP) else None

    def check_tower(self, tower: Any) -> None:
        require_class(tower, (VisionTransformer,), "the image tower", _OWNER)
        _require_own(tower, _TOWER, "the image tower")
        require_class(tower.transformer, (Transformer,), "the tower's transformer", _OWNER)
        require_class(tower.transformer.resblocks, (nn.Sequential,), "the tower's blocks", "torch's")
        for i, block in enumerate(self.blocks(tower)):
            require_class(block, (ResidualAttentionBlock,), f"block {i}", _OWNER)
            _require_own(block, _PARTS, f"block {i}")
            if block.attn_mask is not None:
                raise TypeError(f"patching supports blocks without an attention mask; block {i} has one")
            read_multihead(block.attn, f"the attention of block {i}", batch_first=False)
        require_unsharded(tower)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        trunk = tower.transformer
        parts = [
            ("the image tower", tower),
            ("the tower's transformer", trunk),
            ("the tower's blocks", trunk.resblocks),
        ]
        return parts + [(f"block {i}", block) for i, block in enumerate(self.blocks(tower))]

    def blocks(self, tower: Any) -> Sequence[nn.Module]:
        return tower.transformer.resblocks

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = read_multihead(block.attn, f"the attention of block {index}", batch_first=False)
        return BlockParts(block.ln_1, attention, identity, block.ln_2, block.mlp)

    def sequence_first(self, tower: Any) -> bool:
        return True

    def component(self, path: str) -> str:
        block = _BLOCK.match(path)
        if block is not None:
            return {"mlp": "mlp", "attn": "attention"}.get(block["part"], "block")
        return "patch_embedding" if path.startswith("conv1") else "pooling"

    # --- sizes ---

    def image_size(self, tower: Any) -> tuple[int, int]:
        return tower.input_resolution, tower.input_resolution

    def grid(self, tower: Any) -> tuple[int, int]:
        side = tower.input_resolution // tower.conv1.kernel_size[0]
        return side, side

    def num_protected(self, tower: Any) -> int:
        return 1

    def width(self, tower: Any) -> int:
        return tower.conv1.out_channels

    # --- the forward ---

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        x = tower.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        return Embedded(tower.ln_pre(x + tower.positional_embedding.to(x.dtype)))

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        return tower.transformer(x.transpose(0, 1), merge=merge).transpose(0, 1)

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        pooled = tower.ln_post(x[:, 0])
        return pooled if tower.proj is None else pooled @ tower.proj

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        return tower.ln_post(x) @ tower.proj

    def joint_width(self, tower: Any) -> int:
        if tower.proj is None:
            raise TypeError("image tower: expected an OpenAI VisionTransformer with a projection, got one without")
        return tower.proj.shape[1]

    # --- weights and pictures ---

    def describe(self, tower: Any) -> dict[str, Any]:
        return {
            "input_resolution": tower.input_resolution,
            "patch_size": tower.conv1.kernel_size[0],
            "width": tower.conv1.out_channels,
            "layers": len(tower.transformer.resblocks),
            "heads": tower.transformer.resblocks[0].attn.num_heads,
            "output_dim": self.joint_width(tower),
        }

    def build(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        return VisionTransformer(**sizes)  # the package has QuickGELU alone

    def position_embedding(self, tower: Any) -> nn.Parameter:
        return tower.positional_embedding

    def mean_std(self, tower: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return _MEAN, _STD

    # --- the text tower ---

    def has_text(self, model: nn.Module) -> bool:
        return isinstance(model, CLIP)

    def encode_text(self, model: Any, ids: Tensor) -> Tensor:
        return model.encode_text(ids)

    def token_embedding(self, model: Any) -> nn.Module:
        return model.token_embedding if isinstance(model, CLIP) else super().token_embedding(model)


def _require_own(module: nn.Module, known: set[str], role: str) -> None:
    """Raises TypeError if a module has other parts than OpenAI's class, or another signature."""
    extra = {*dict(module.named_children()), *dict(module.named_parameters(recurse=False))} - known
    extra |= set(inspect.signature(module.forward).parameters) - {"x"}
    if extra:
        raise TypeError(
            f"patching supports {role} of OpenAI's clip as published; {type(module).__name__} of this clip.model also "
            f"has {', '.join(sorted(extra))}"
        )


HOST = OpenAIClip()
