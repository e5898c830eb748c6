"""``torch.nn.TransformerEncoder``: an encoder of token sequences, which knows nothing of images.

It has no class token of its own. What must not merge is named by ``protect=``, a mask over the sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .host import BlockParts, Embedded, Host
from .lora import base_layer
from .merging import MergingBlock, PatchedTower, TrunkMerge
from .modules import require_class, require_unsharded
from .packed import read_multihead

__all__ = ["HOST"]

_OWNER = "torch.nn's"
_BLOCK = re.compile(r"layers\.\d+(?:\.(?P<part>\w+))?")
_PARTS = {"self_attn": "attention", "linear1": "mlp", "linear2": "mlp"}


class PatchedTransformerEncoderLayer(MergingBlock, nn.TransformerEncoderLayer):
    """Its own forward may run as one fused operation that knows no merging; ours never does."""


class PatchedTransformerEncoder(PatchedTower, nn.TransformerEncoder):
    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Returns what the host's forward returns; each token has the value of its merged token.

        Padding has size 0: it is no key, and merges only where no pairs of real tokens are left. Tokens are never
        packed into a nested tensor. So the rows of padding are those that the host computes in training, not zeros.

        Raises:
            ValueError: a mask of pairs of tokens is given, or a nested tensor, or a padding mask of another dtype or
                shape than expected.
        """
        if mask is not None or is_causal:
            name = "is_causal" if mask is None else "mask"
            raise ValueError(f"{name}: a patched TransformerEncoder attends to all tokens; leave it out")
        if src.is_nested:
            raise ValueError(
                "src: a patched TransformerEncoder takes a padded tensor with src_key_padding_mask, got a nested tensor"
            )
        if src.dim() not in (2, 3):
            raise ValueError(f"src: expected [N, C] or a batch of it, got shape {list(src.shape)}")
        sequence_first = self._alt_patch.host.sequence_first(self) and src.dim() == 3
        x = src.transpose(0, 1) if sequence_first else src.reshape(-1, *src.shape[-2:])
        size = None if src_key_padding_mask is None else _sizes(src_key_padding_mask, x, src.dim() == 3)
        tokens, merge = self._alt_patch.run(self, Embedded(x, size))
        output = merge.restore(tokens)
        output = output.transpose(0, 1) if sequence_first else output.reshape(*src.shape[:-2], *output.shape[-2:])
        return output if self.norm is None else self.norm(output)


def _sizes(padding: Tensor, x: Tensor, batched: bool) -> Tensor:
    """Returns 0 for padding and 1 for other tokens, float32 ``[B, N]``."""
    shape = list(x.shape[:2] if batched else x.shape[1:2])
    if padding.dtype != torch.bool or list(padding.shape) != shape:
        raise ValueError(
            f"src_key_padding_mask: expected bool of shape {shape}, True for padding, got "
            f"{str(padding.dtype).removeprefix('torch.')} of shape {list(padding.shape)}"
        )
    return (~padding).to(torch.float32).reshape(x.shape[:2])


class TorchEncoder(Host):
    """The host of ``torch.nn.TransformerEncoder``, of either layout and either place of the norms."""

    name = "torch"
    supports = "torch.nn.TransformerEncoder"
    patched = MappingProxyType(
        {
            nn.TransformerEncoder: PatchedTransformerEncoder,
            nn.TransformerEncoderLayer: PatchedTransformerEncoderLayer,
        }
    )

    # --- where things are ---

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        return model if isinstance(model, nn.TransformerEncoder) else None

    def check_tower(self, tower: Any) -> None:
        require_class(tower, (nn.TransformerEncoder,), "the encoder", _OWNER)
        if not len(tower.layers):
            raise TypeError("patching supports a TransformerEncoder with layers; this one has none")
        for i, block in enumerate(self.blocks(tower)):
            require_class(block, (nn.TransformerEncoderLayer,), f"layer {i}", _OWNER)
            self._attention(block, tower, i)
        require_unsharded(tower)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        return [("the encoder", tower), *((f"layer {i}", block) for i, block in enumerate(self.blocks(tower)))]

    def blocks(self, tower: Any) -> Sequence[nn.Module]:
        return tower.layers

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = self._attention(block, tower, index)
        return BlockParts(
            block.norm1, attention, block.dropout1, block.norm2, block._ff_block, post_norm=not block.norm_first
        )

    def _attention(self, block: Any, tower: Any, index: int) -> Any:
        first = not self.sequence_first(tower)
        return read_multihead(block.self_attn, f"the attention of layer {index}", batch_first=first)

    def sequence_first(self, tower: Any) -> bool:
        return not base_layer(tower.layers[0].self_attn).batch_first

    def component(self, path: str) -> str:
        block = _BLOCK.match(path)
        return "other" if block is None else _PARTS.get(block["part"], "block")

    # --- sizes ---

    def num_tokens(self, tower: Any) -> None:
        return None

    def num_protected(self, tower: Any) -> int:
        return 0

    def width(self, tower: Any) -> int:
        return base_layer(tower.layers[0].self_attn).embed_dim

    # --- the forward ---

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        return merge.run(x, self.blocks(tower), False)

    # --- what an encoder of sequences cannot answer ---

    def image_size(self, tower: nn.Module) -> NoReturn:
        raise TypeError(f"image tower: expected a model of images, got {self.supports}, which takes tokens")

    def grid(self, tower: nn.Module) -> NoReturn:
        self.image_size(tower)

    def embed(self, tower: nn.Module, images: Tensor) -> NoReturn:
        self.image_size(tower)

    def pool(self, tower: nn.Module, x: Tensor, size: Tensor | None) -> NoReturn:
        self.image_size(tower)

    def project(self, tower: nn.Module, x: Tensor, size: Tensor | None) -> NoReturn:
        self.image_size(tower)

    def joint_width(self, tower: nn.Module) -> NoReturn:
        self.image_size(tower)

    def mean_std(self, tower: nn.Module) -> NoReturn:
        self.image_size(tower)


HOST = TorchEncoder()
