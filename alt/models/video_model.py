"""What every video model here is: a CLIP tower over frames, something that makes one embedding of them, and a head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .config import AltConfig
from .heads import ClassHead
from .hub import HubModel
from .region_encoder import RegionEncoder, Tokens
from .strategy import apply_strategy

__all__ = ["Tokens", "VideoModel", "VideoOutput"]


class VideoOutput(NamedTuple):
    """logits ``[B, C]``; embedding z ``[B, d]``; index ``[B, T, n_aligned]`` int64, the entity that each aligned token
    was assigned to, or None where nothing is aligned."""

    logits: Tensor
    embedding: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # tuple.index, which nobody calls here


class VideoModel(nn.Module, HubModel):
    """Base of ALT and of the systems it is compared with. A subclass says how tokens become z: :meth:`embed`.

    ``forward(clips)`` is ``forward_tokens(encode(clips))``: with a frozen tower the tokens can be computed once.

    Args:
        config: what the model is made of, an instance of ``config_class``.
        visual: the CLIP image tower, which is patched in place.
        logit_scale: CLIP's factor of cosines (not its logarithm), kept as a buffer: it is not trained.

    Attributes:
        backbone: the tower; its parameters are named ``backbone.*``.
        head: scores of the classes. classes: their names, [] before :meth:`set_classes`.
    """

    config_class: type[Any] = AltConfig
    rows: Literal["all", "class"] = "all"  # which rows of a frame the model reads; "class" saves projecting the others
    logit_scale: Tensor

    def __init__(self, config: Any, visual: nn.Module, logit_scale: Tensor | float = 100.0) -> None:
        super().__init__()
        self._config = config
        self.backbone = RegionEncoder(
            visual,
            config.r,
            inflection=config.inflection,
            prop_attn=config.prop_attn,
            grad_checkpointing=config.grad_checkpointing,
        )
        self.head = ClassHead(config.head, self.width)
        self.register_buffer("logit_scale", torch.as_tensor(logit_scale, dtype=torch.get_default_dtype()).detach())
        self.classes: list[str] = []
        apply_strategy(self, config.strategy)

    @property
    def config(self) -> Any:
        """What the model is made of. ``r`` is that of the handle, which alone keeps it."""
        r = self.backbone.r
        return self._config if self._config.r == r else dataclasses.replace(self._config, r=r)

    def change_config(self, **changes: Any) -> None:
        """Records that the model is made of something else now; building it is the caller's part."""
        self._config = dataclasses.replace(self._config, **changes)

    @property
    def tower_frames(self) -> int | None:
        """Frames of a clip that go through the tower one by one; None where they go in one sequence."""
        return self._config.frames

    @property
    def width(self) -> int:
        """d, channels of the joint space."""
        return self.backbone.width

    @property
    def r(self) -> int | float | tuple[int, ...]:
        """Tokens merged away per block. May be set at any time, here or on the handle, without retraining."""
        return self.backbone.r

    @r.setter
    def r(self, value: int | float | Sequence[int]) -> None:
        self.backbone.r = value

    def encode(self, clips: Tensor, trace: bool = False) -> Tokens:
        """The tower, its final norm and projection on all tokens the model reads.

        Args:
            clips: ``[B, T, 3, H, W]`` float, CLIP-normalised, T = ``config.frames``.
            trace: all tokens, and the source map with them.

        Returns:
            Tokens: x ``[B, T, n, d]``, size ``[B, T, n]``, source ``[B, T, N]`` or None.

        Raises:
            TypeError: clips are no float tensor. ValueError: another number of frames, or another image size.
        """
        tokens = self.backbone(clips, rows=self.rows, trace=trace)
        self._check_tokens(tokens.x, "clips")
        return tokens

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """z ``[B, d]`` of tokens, and the index of the aligned entities or None. What a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} has no embed()")

    def forward_tokens(
        self, tokens: Tensor | Tokens, *, seed: Tensor | None = None, noise: Tensor | None = None
    ) -> VideoOutput:
        """Everything after the tower.

        Args:
            tokens: ``[B, T, n, d]``, or what :meth:`encode` returned.
            seed: 0-d int64 tensor that decides the noise of this call; None draws one. Models without noise, and
                evaluation, ignore it.
            noise: ``[B, T, n_aligned, K]``, the noise itself, in training and in evaluation alike.

        Returns:
            VideoOutput.
        """
        if not isinstance(tokens, Tokens):
            tokens = Tokens(tokens)
        self._check_tokens(tokens.x, "tokens")
        z, index = self.embed(tokens, seed=seed, noise=noise)
        return VideoOutput(self.head(z, self.logit_scale), z, index)

    def forward(self, clips: Tensor, *, seed: Tensor | None = None, noise: Tensor | None = None) -> VideoOutput:
        """clips ``[B, T, 3, H, W]`` to logits ``[B, C]``; arguments as in :meth:`forward_tokens`."""
        return self.forward_tokens(self.encode(clips), seed=seed, noise=noise)

    def set_classes(self, names: Sequence[str], embeddings: Tensor | None = None) -> None:
        """The classes to score, saved with the model. A linear head starts anew, and needs no embeddings.

        Args:
            names: C names. embeddings: ``[C, d]``, their text embeddings.

        Raises:
            TypeError, ValueError: no names, or embeddings that do not fit them.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"names: expected a sequence of class names, got {names!r:.60}")
        if len(names) == 0:
            raise ValueError("names: expected at least one class, got none")
        self.head.set_classes(len(names), embeddings)
        self.classes = list(names)

    def is_backbone_parameter(self, name: str) -> bool:
        """Whether a parameter is CLIP's own (trained at the small rate); everything else was added here.

        What is put into the tower (adapters, LoRA) is told by its name: a part that contains "adapter" or "lora_".
        """
        parts = [part for part in name.split(".") if part not in ("_orig_mod", "module", "_fsdp_wrapped_module")]
        return parts[0] == "backbone" and not any("adapter" in part or "lora_" in part for part in parts[1:])

    def _check_tokens(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[-1] != self.width or 0 in x.shape:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: expected tokens [B, {self._config.frames}, n, {self.width}], got {got}")
        if x.shape[1] != self._config.frames:
            raise ValueError(
                f"{name}: expected {self._config.frames} frames per clip, as the model was made for, got {x.shape[1]}"
            )
