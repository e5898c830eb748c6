"""Baselines without added parameters: the mean of the frames, one frame, all frames in one sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .config import BaselineConfig, ViFiConfig
from .video_model import Tokens, VideoModel, VideoOutput

__all__ = ["ClipJoint", "ClipMean", "ClipOne", "ViFiClip"]


class ClipMean(VideoModel):
    r"""CLIP-Mean: the mean of the frames' embeddings.

    .. math:: z = \tfrac1T \sum_t x_{cls,t}

    Frames do not interact, so z does not depend on their order. Source: arXiv 2208.02816 (X-CLIP), section 4.
    """

    config_class = BaselineConfig
    rows = "class"

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return tokens.frame.mean(1), None


class ViFiClip(ClipMean):
    """ViFi-CLIP: CLIP-Mean with both towers trained. Source: arXiv 2212.03640."""

    config_class = ViFiConfig
    templates = "photo"


class ClipOne(VideoModel):
    """CLIP-One: one frame of the clip, random in training and the middle one (T // 2) in evaluation.

    Only that frame goes through the tower, so its tokens are ``[B, 1, n, d]``. The tokens of all T frames from
    ``backbone(clips)`` are accepted too, and the frame is picked from them.
    Source: arXiv 2208.02816 (X-CLIP), section 4.
    """

    config_class = BaselineConfig
    rows = "class"

    @property
    def tower_frames(self) -> int:
        return 1

    def encode(self, clips: Tensor, trace: bool = False, *, seed: Tensor | None = None) -> Tokens:
        """Returns tokens ``[B, 1, n, d]`` of one frame of every clip; ``seed`` as in :meth:`forward`."""
        check_frames(clips, self._config.frames)
        return self.backbone(self._pick(clips, seed), rows=self.rows, trace=trace)

    def forward(self, clips: Tensor, *, seed: Tensor | None = None, noise: Tensor | None = None) -> VideoOutput:
        """Scores clips. ``seed``: 0-d int64 that draws the frames of training; None: torch's generator draws them."""
        return self.forward_tokens(self.encode(clips, seed=seed), seed=seed)

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        frame = tokens.frame if tokens.frame.shape[1] == 1 else self._pick(tokens.frame, seed)
        return frame[:, 0], None

    def _pick(self, x: Tensor, seed: Tensor | None) -> Tensor:
        """Picks one frame of ``[B, T, ...]``, returned as ``[B, 1, ...]``."""
        batch, frames = x.shape[:2]
        if not self.training:
            return x[:, frames // 2 : frames // 2 + 1]
        generator = None if seed is None else torch.Generator().manual_seed(int(seed))
        frame = torch.randint(frames, (batch,), generator=generator, device="cpu").to(x.device)
        return x[torch.arange(batch, device=x.device), frame].unsqueeze(1)

    def _check_tokens(self, x: Tensor, name: str) -> None:
        if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] == 1:
            x = x.expand(-1, self._config.frames, -1, -1)
        super()._check_tokens(x, name)


class ClipJoint(VideoModel):
    """CLIP-Joint: one class token and the T N patches of all frames as one sequence; z is the class token.

    Positions of patches repeat in every frame. Attention spans space and time, so cost grows with (T N)^2: 179.6
    against 140.5 GMACs for 8 frames at ViT-B/16. With merging, a sequence loses T r tokens per block, and tokens of
    different frames may merge. Tokens are ``[B, 1, n, d]``, and ``source`` is ``[B, 1, 1 + T N]``.
    Source: arXiv 2208.02816 (X-CLIP), section 4.
    """

    config_class = BaselineConfig
    rows = "class"

    @property
    def tower_frames(self) -> None:
        return None

    def encode(self, clips: Tensor, trace: bool = False) -> Tokens:
        check_frames(clips, self._config.frames)
        return self.backbone(clips, rows=self.rows, trace=trace, joint=True)

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return tokens.frame[:, 0], None

    def _check_tokens(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 1 or x.shape[-1] != self.width or 0 in x.shape:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: expected tokens of whole clips [B, 1, n, {self.width}], got {got}")


def check_frames(clips: Any, frames: int) -> None:
    """Raises ValueError unless ``clips`` ``[B, T, 3, H, W]`` have ``frames`` frames; the tower checks the rest."""
    if isinstance(clips, Tensor) and clips.dim() == 5 and clips.shape[1] != frames:
        raise ValueError(f"clips: expected {frames} frames per clip, as the model was made for, got {clips.shape[1]}")
