"""The answers that are the same for every family of transformers' vision models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..host import BlockParts, Embedded, Host
from ..merging import TrunkMerge
from ..modules import identity, require_class, require_unsharded
from .attention import SeparateAttention

__all__ = ["OWNER", "ClipStyleFamily", "Family", "identity", "patches_of"]

OWNER = "transformers'"
_BLOCK = re.compile(r"(?:encoder\.|model\.)?layers?\.\d+(?:\.(?P<part>\w+))?")


class Family(Host):
    """Base of the hosts of one family.

    Attributes:
        tower: class of the vision model, whose forward returns hidden states and a pooled output.
        backbone: class with the same parts, whose forward returns maps of features; None if the family has none.
        layer: class of its layers. encoder: class of the module that loops over them, None if the tower does.
        attention: reads a layer's attention. owners: attributes under which larger models hold the tower.
        mean, std: of the family's image processor.
    """

    tower: type[nn.Module]
    backbone: type[nn.Module] | None = None
    layer: type[nn.Module]
    encoder: type[nn.Module] | None
    attention: type[SeparateAttention]
    owners: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    # --- the questions of a family ---

    def encoder_of(self, tower: Any) -> Any:
        """Returns the module that loops over the layers."""
        return tower.encoder

    def layers_of(self, encoder: Any) -> Any:
        """Returns the layers of that module."""
        return encoder.layers

    def attention_of(self, block: Any) -> nn.Module:
        """Returns the attention module of a layer."""
        return block.attention

    def finish(self, tower: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns ``last_hidden_state`` and ``pooler_output`` of the last layer's tokens ``[B, n, C]``."""
        raise NotImplementedError

    # --- where things are ---

    @property
    def _towers(self) -> tuple[type[nn.Module], ...]:
        return (self.tower,) if self.backbone is None else (self.tower, self.backbone)

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        if isinstance(model, self._towers):
            return model
        if not any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
            return None
        inside: Any = (getattr(model, name, None) for name in self.owners)
        for module in inside:
            if isinstance(module, self._towers):
                return module
        return None

    def check_tower(self, tower: Any) -> None:
        require_class(tower, self._towers, "the image tower", OWNER)
        if self.encoder is not None:
            require_class(self.encoder_of(tower), (self.encoder,), "the tower's encoder", OWNER)
        for i, block in enumerate(self.blocks(tower)):
            require_class(block, (self.layer,), f"block {i}", OWNER)
            require_class(self.attention_of(block), (self.attention.known,), f"the attention of block {i}", OWNER)
        require_unsharded(tower)

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        parts: list[tuple[str, nn.Module]] = [("the image tower", tower)]
        if self.encoder is not None:
            parts.append(("the tower's encoder", self.encoder_of(tower)))
        return parts + [(f"block {i}", block) for i, block in enumerate(self.blocks(tower))]

    def blocks(self, tower: Any) -> Sequence[nn.Module]:
        return self.layers_of(self.encoder_of(tower))

    def component(self, path: str) -> str:
        block = _BLOCK.match(path)
        if block is not None:
            return {"mlp": "mlp", "attention": "attention", "self_attn": "attention"}.get(block["part"], "block")
        return "patch_embedding" if path.startswith("embeddings") else "pooling"

    # --- sizes ---

    def image_size(self, tower: Any) -> tuple[int, int]:
        return _pair(tower.config.image_size)

    def grid(self, tower: Any) -> tuple[int, int]:
        return patches_of(tower.config, self.image_size(tower))

    def num_protected(self, tower: Any) -> int:
        return 1

    def width(self, tower: Any) -> int:
        return tower.config.hidden_size

    # --- the forward ---

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        return Embedded(tower.embeddings(images))

    def run_blocks(self, tower: Any, x: Tensor, merge: TrunkMerge) -> Tensor:
        if self.encoder is None:  # each layer recomputes itself in the backward, if asked to
            return merge.run(x, self.blocks(tower), False)
        return self.encoder_of(tower)(x, merge=merge).last_hidden_state

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        normed, pooled = self.finish(tower, x, size)
        return normed[:, 0] if pooled is None else pooled

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        raise TypeError(self._without_projection(tower))

    def joint_width(self, tower: Any) -> int:
        raise TypeError(self._without_projection(tower))

    def _without_projection(self, tower: Any) -> str:
        return (
            "image tower: expected one with a projection that applies to single tokens, as open_clip's "
            f"VisionTransformer has; transformers' {type(tower).__name__} has none"
        )

    def checkpointing(self, tower: Any) -> bool:
        return any(block.gradient_checkpointing for block in self.layers_of(self.encoder_of(tower)))

    def set_checkpointing(self, tower: Any, enable: bool) -> None:
        if enable:
            tower.activation_checkpointing_enable({"use_reentrant": False})
        else:
            tower.activation_checkpointing_disable()

    # --- weights and pictures ---

    def no_decay(self, tower: Any) -> list[nn.Parameter]:
        return [*super().no_decay(tower), *tower.embeddings.parameters(recurse=False)]  # class and register tokens

    def mean_std(self, tower: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std


class ClipStyleFamily(Family):
    """Base of the families whose layers have the attribute names of CLIP's."""

    def attention_of(self, block: Any) -> Any:
        return block.self_attn

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        attention = self.attention(block.self_attn)
        return BlockParts(block.layer_norm1, attention, identity, block.layer_norm2, block.mlp)

    def encode_image(self, model: Any, images: Tensor) -> Tensor:
        tower: Any = self.find_tower(model)
        return model.get_image_features(*self.arguments(tower, images)).pooler_output


def patches_of(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the number of patches down and across in an image of ``size``, height and width."""
    (height, width), (down, across) = size, _pair(config.patch_size)
    return height // down, width // across


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)
