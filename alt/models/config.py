"""What an ALT model is made of: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

__all__ = ["AltConfig"]


@dataclass(frozen=True)
class AltConfig:
    """Every choice of the model. The defaults are what works; where the paper says otherwise, the value that reads it
    literally is named. Section and equation numbers are those of arXiv 2311.15619.

    Tower:
        backbone: an open_clip model name ("ViT-B-16", "ViT-L-14", ...), or "mini" for the embedded one.
        quick_gelu: activation of the tower; None: as the pretrained weights want it (QuickGELU for OpenAI's).
        frames: T, frames of a clip.
        r: tokens merged away in every block; int, float share or one int per block, see :func:`alt.patch_clip`.
        inflection, prop_attn: see :func:`alt.patch_clip`.
        grad_checkpointing: recompute the tower's blocks in the backward.
        strategy: what is trained: "full", "frozen" (the tower is not), or the adapters "s", "sm", "stm" in a
            frozen tower.

    Entity alignment (Eq. 4 to 6):
        align_tokens: "regions+cls" aligns every token, "cls" the class token alone (the paper's row "without
            merging and alignment" is ``r=0, align_tokens="cls"``).
        reduction: how a frame's aligned entities become one query, see :class:`EntityAlignment`.
        queries: "entity", or "random": learned queries, one a frame, that know no entity (the paper's empty set).
        sim_scale: factor of the cosines; None: CLIP's logit scale. Literal: 1.0, where the noise drowns the cosines.
        tau: temperature of the similarity (the noise is not divided by it).
        gumbel: "train" draws noise in training only, "off" never. Evaluation is the plain argmax.
        hard: straight-through choice of one entity; False: the softmax mixture.

    Adapter (Eq. 7 to 9):
        layers: M, blocks; 4 for B, 6 for L in the paper. heads: None: d // 64 as in X-CLIP; below 256 channels, where
            that leaves few, gcd(d, 4), which is 4 for the embedded model's 48.
        keys: "cls" (class tokens), "mlp_tokens" (an MLP of the frame's tokens; the later version of the paper).
        self_attention, convolution: ablation switches. conv_kernel: odd.
        temporal_pos: learned positions of the frames, added to queries and keys; the paper mentions none.
        init: "residual": MLPs are residual, outputs start at zero and z has the mean class token added, so that z
            starts in CLIP's joint space; "literal": plain MLPs, truncated normal of std 0.02.

    Head (Eq. 10):
        head: "cosine" (times CLIP's logit scale), "literal" (the plain product c z), "linear" (no texts).

    Raises:
        TypeError, ValueError: one sentence that names the field, what it takes and what came.
    """

    backbone: str = "ViT-B-16"
    quick_gelu: bool | None = None
    frames: int = 8
    r: int | float | tuple[int, ...] = 8
    inflection: float = 0.0
    prop_attn: bool = True
    layers: int = 4
    heads: int | None = None
    align_tokens: Literal["regions+cls", "cls"] = "regions+cls"
    reduction: Literal["mean", "mlp_then_mean", "attn", "set"] = "mean"
    queries: Literal["entity", "random"] = "entity"
    keys: Literal["cls", "mlp_tokens"] = "cls"
    sim_scale: float | None = None
    tau: float = 1.0
    gumbel: Literal["train", "off"] = "train"
    hard: bool = True
    self_attention: bool = True
    convolution: bool = True
    conv_kernel: int = 3
    temporal_pos: bool = False
    head: Literal["cosine", "literal", "linear"] = "cosine"
    init: Literal["residual", "literal"] = "residual"
    strategy: Literal["full", "frozen", "s", "sm", "stm"] = "full"
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices = get_args(hints[field.name])
            if choices and all(isinstance(choice, str) for choice in choices):
                if value not in choices:
                    raise ValueError(f"{field.name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
            elif hints[field.name] is bool and not isinstance(value, bool):
                raise TypeError(f"{field.name}: expected True or False, got {value!r}")
        if not isinstance(self.backbone, str) or not self.backbone:
            raise TypeError(f"backbone: expected the name of an open_clip model or 'mini', got {self.backbone!r}")
        if self.quick_gelu is not None and not isinstance(self.quick_gelu, bool):
            raise TypeError(f"quick_gelu: expected True, False or None, got {self.quick_gelu!r}")
        _positive_int("frames", self.frames)
        _positive_int("layers", self.layers)
        _positive_int("conv_kernel", self.conv_kernel)
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel: expected an odd number of frames, got {self.conv_kernel}")
        if self.heads is not None:
            _positive_int("heads", self.heads)
        _positive_float("tau", self.tau)
        if self.sim_scale is not None:
            _positive_float("sim_scale", self.sim_scale)
        if isinstance(self.r, Sequence) and not isinstance(self.r, str):
            object.__setattr__(self, "r", tuple(self.r))  # a list of a YAML file; hashable and equal to what is saved

    def num_heads(self, width: int) -> int:
        """Attention heads of an adapter of ``width`` channels.

        Raises:
            ValueError: ``heads`` does not divide ``width``.
        """
        heads = self.heads
        if heads is None:
            heads = width // 64 if width >= 256 else math.gcd(width, 4)
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the joint width {width}, got {heads}")
        return heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; ``AltConfig(**config.to_dict())`` is the same configuration."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int >= 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected an int >= 1, got {value}")


def _positive_float(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number > 0, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
