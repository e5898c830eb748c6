"""The host of the toy tower: everything that alt has to be told to patch, count, show and train with it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from alt.data.pixels import CLIP_MEAN, CLIP_STD
from alt.hosts import BlockParts, Embedded, Host, HostAttention, Projected
from alt.hosts.merging import MergingBlock, MergingTower
from alt.hosts.modules import has_hooks, require_class
from alt.hosts.pooling import size_weighted_mean

from .toy_model import Layer, Mixer, ToyTower, turn


class MergingLayer(MergingBlock, Layer):
    pass


class MergingToyTower(MergingTower, ToyTower):
    pass


class ToyAttention(HostAttention):
    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def can_fuse(self) -> bool:
        return type(self.mixer) is Mixer and not has_hooks(self.mixer)

    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        mixer = self.mixer
        q, k, v = (mixer.split(part(x)) for part in (mixer.ask, mixer.name, mixer.tell))
        if positions is None:
            return Projected(q, k, v, None, k)
        return Projected(turn(q, positions[..., 0]), turn(k, positions[..., 0]), v, None, k)

    def join_heads(self, y: Tensor, x: Tensor) -> Tensor:
        return self.mixer.back(y.transpose(1, 2).flatten(2))

    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        with torch.no_grad():
            keys = self.mixer.split(self.mixer.name(x))
            return keys if positions is None else turn(keys, positions[..., 0])

    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        return self.mixer(x, bias, None if positions is None else positions[..., 0])


class ToyHost(Host):
    name = "toy"
    supports = "the tests' ToyTower"
    patched = MappingProxyType({ToyTower: MergingToyTower, Layer: MergingLayer})

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        return model if isinstance(model, ToyTower) else None

    def check_tower(self, tower: Any) -> None:
        require_class(tower, (ToyTower,), "the image tower", "the tests'")

    def parts(self, tower: Any) -> list[tuple[str, nn.Module]]:
        return [("the image tower", tower), *((f"layer {i}", layer) for i, layer in enumerate(tower.layers))]

    def blocks(self, tower: Any) -> Any:
        return tower.layers

    def block_parts(self, block: Any, tower: Any, index: int) -> BlockParts:
        letter = block.letter
        guests = None if letter is None else lambda x: letter(x[:, :1])
        return BlockParts(block.pre, ToyAttention(block.mix), lambda y: block.gain * y, block.mid, block.wide, guests)

    def rotates(self, tower: Any) -> bool:
        return tower.turns

    def component(self, path: str) -> str:
        if path.startswith("layers."):
            return {"wide": "mlp", "mix": "attention"}.get(path.split(".")[2] if path.count(".") > 1 else "", "block")
        return "patch_embedding" if path.startswith("stem") else "pooling"

    def image_size(self, tower: Any) -> tuple[int, int]:
        return tower.side

    def grid(self, tower: Any) -> tuple[int, int]:
        return tower.side[0] // tower.cell, tower.side[1] // tower.cell

    def num_protected(self, tower: Any) -> int:
        return 2

    def width(self, tower: Any) -> int:
        return tower.specials.shape[1]

    def joint_width(self, tower: Any) -> int:
        return tower.to_joint.out_features

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        angles = tower.angles(len(images))
        return Embedded(tower.begin(images), positions=None if angles is None else angles[..., None])

    def pool(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        patches = tower.last(x)[:, 2:]
        return tower.to_joint(size_weighted_mean(patches, None if size is None else size[:, 2:]))

    def project(self, tower: Any, x: Tensor, size: Tensor | None) -> Tensor:
        return torch.cat([self.pool(tower, x, size)[:, None], tower.to_joint(tower.last(x[:, 2:]))], 1)

    def checkpointing(self, tower: Any) -> bool:
        return tower.recompute

    def set_checkpointing(self, tower: Any, enable: bool) -> None:
        tower.recompute = enable

    def describe(self, tower: Any) -> dict[str, Any]:
        return {"side": list(tower.side), "cell": tower.cell, "depth": len(tower.layers), "turns": tower.turns}

    def build(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        return ToyTower(**{**sizes, "side": tuple(sizes["side"])})

    def mean_std(self, tower: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return CLIP_MEAN, CLIP_STD


HOST = ToyHost()
