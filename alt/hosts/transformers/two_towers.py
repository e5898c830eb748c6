"""Models of transformers with an image and a text tower in one space: the text side, and towers built from sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .family import ClipStyleFamily

__all__ = ["TwoTowers"]

# Fields of the foreign configurations that decide what a tower computes. No other field of a file is read.
_TRUNK = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps", "attention_dropout"),
)


class TwoTowers(ClipStyleFamily):
    """Base of the families with a class that holds both towers.

    Attributes:
        clip: that class. clip_config: of its configuration. tower_config: of the image tower's.
        text_parts: attributes of ``clip`` that are the text tower's, in the order in which they are called.
        image_fields, text_fields: of the two configurations, besides those of every trunk.
    """

    clip: Any  # a class; `type` would narrow what it knows of its instances
    clip_config: Any
    tower_config: Any
    text_parts: tuple[str, ...]
    image_fields: tuple[str, ...] = ("num_channels", "image_size", "patch_size")
    text_fields: tuple[str, ...] = ("vocab_size", "max_position_embeddings")

    def find_tower(self, model: nn.Module) -> nn.Module | None:
        tower = super().find_tower(model)
        return model if tower is None and isinstance(model, self.clip) else tower  # its image tower was dropped

    # --- weights ---

    def describe(self, tower: Any) -> dict[str, Any]:
        config = tower.config
        return {name: _plain(getattr(config, name)) for name in (*_TRUNK, *self.image_fields)}

    def build(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        """The activation is that of ``hidden_act``, which names more than two."""
        config = self.tower_config(**{name: sizes[name] for name in (*_TRUNK, *self.image_fields)})
        tower = self.tower(config)
        _restore_positions(tower)
        return tower

    def no_decay(self, tower: Any) -> list[nn.Parameter]:
        if isinstance(tower, self.clip):  # the text tower of a video model
            return [tower.text_model.embeddings.position_embedding.weight]
        return super().no_decay(tower)

    def source_name(self, model: Any) -> str | None:
        name = getattr(model.config, "_name_or_path", "")
        return f"hf:{name}" if name else None

    # --- the text tower ---

    def has_text(self, model: nn.Module) -> bool:
        return isinstance(model, self.clip)

    def encode_text(self, model: Any, ids: Tensor) -> Tensor:
        if not isinstance(model, self.clip):
            return super().encode_text(model, ids)
        return model.get_text_features(input_ids=ids, return_dict=True).pooler_output

    def token_embedding(self, model: Any) -> nn.Module:
        if not isinstance(model, self.clip):
            return super().token_embedding(model)
        return model.text_model.embeddings.token_embedding

    def text_modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        return [pair for pair in model.named_modules() if pair[0].partition(".")[0] in self.text_parts]

    def drop_tower(self, model: Any) -> None:
        if not isinstance(model, self.clip):
            super().drop_tower(model)
        keep = set(self.text_parts)
        for name in (*dict(model.named_children()), *dict(model.named_parameters(recurse=False))):
            if name not in keep:
                delattr(model, name)

    def describe_text(self, model: Any) -> dict[str, Any]:
        if type(model) is not self.clip:
            return super().describe_text(model)
        config = model.text_model.config
        sizes = {name: _plain(getattr(config, name)) for name in (*_TRUNK, *self.text_fields)}
        return {**sizes, "context_length": config.max_position_embeddings}

    def build_text(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        text = {name: sizes[name] for name in (*_TRUNK, *self.text_fields)}
        small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        vision = {**small, "image_size": 8, "patch_size": 8}
        model = self.clip(self.clip_config(text_config=text, vision_config=vision, **self.joint_sizes(sizes)))
        self.drop_tower(model)
        _restore_positions(model.text_model)
        return model

    def joint_sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of ``clip_config`` itself for a text tower of these sizes."""
        return {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _restore_positions(tower: Any) -> None:
    """Gives the numbers of the positions, which are not saved, their values on the CPU; NaFlex towers have none."""
    embeddings = tower.embeddings
    if hasattr(embeddings, "position_ids"):
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1], device="cpu").expand(1, -1)
