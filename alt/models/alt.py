"""The ALT model: region-aware encoding, alignment to text entities, and a video adapter."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from alt.corpus import Corpus, check_encoders

from .blocks import Mlp
from .config import AltConfig
from .entity_alignment import EntityAlignment
from .text_tower import TextTower
from .video_adapter import VideoAdapter
from .video_model import Tokens, VideoModel

__all__ = ["AltModel"]


class AltModel(VideoModel):
    r"""Align before adapt (arXiv 2311.15619).

    .. math:: X = \mathrm{Tower}(\mathrm{clip}), \quad \hat Q = \mathrm{Align}(X, S), \quad
              \hat Q_M = \mathrm{Adapter}(\hat Q, \hat X), \quad z = \mathrm{MLP}(\mathrm{mean}_t\, \hat Q_M)

    with :math:`\hat X` the class tokens (Eq. 7) or, with ``keys="mlp_tokens"``, an MLP of each frame's tokens. With
    ``init="residual"`` the MLPs are residual and their outputs start at zero, and

    .. math:: z = \mathrm{mean}_t\, \hat Q_M + \mathrm{mean}_t\, x_{cls,t} + \mathrm{MLP}(\mathrm{mean}_t\, \hat Q_M),

    so z starts in CLIP's joint space: the mean frame embedding plus the mean embedding of the aligned entities.

    Beside the tower it has ``M (32 d^2 + 39 d) + 16 d^2 + 10 d`` parameters. The total is 124,026,368 with ViT-B/16 and
    M = 4, and 426,836,992 with ViT-L/14 and M = 6.

    Args:
        config: its options. visual: the tower, patched in place. logit_scale: CLIP's factor of cosines.
    """

    config: AltConfig

    def __init__(
        self,
        config: AltConfig,
        visual: nn.Module,
        logit_scale: Tensor | float = 100.0,
        text: TextTower | None = None,
    ) -> None:
        super().__init__(config, visual, logit_scale, text)
        width, residual = self.width, config.init == "residual"
        if config.align_tokens == "cls" and config.keys == "cls":
            self.rows = "class"
        self.corpus: Any = None
        self.alignment: EntityAlignment | None = None
        self.queries: nn.Parameter | None = None
        if config.queries == "entity":
            self.alignment = EntityAlignment(
                width,
                align_tokens=config.align_tokens,
                reduction=config.reduction,
                tau=config.tau,
                gumbel=config.gumbel,
                hard=config.hard,
                residual=residual,
            )
        else:
            self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.frames, width), std=0.02))
        self.key_mlp = Mlp(width, zero_output=residual) if config.keys == "mlp_tokens" else None
        self.adapter = VideoAdapter(
            width,
            config.layers,
            config.num_heads(width),
            self_attention=config.self_attention,
            convolution=config.convolution,
            conv_kernel=config.conv_kernel,
            frames=config.frames,
            temporal_pos=config.temporal_pos,
            zero_output=residual,
        )
        self.output_mlp = Mlp(width, zero_output=residual)

    def is_adapter_parameter(self, name: str) -> bool:
        """Returns True if a parameter is of the video adapter, which few-shot runs train faster."""
        parts = name.split(".")
        return "adapter" in parts and "backbone" not in parts  # a tower may hold adapters of its own

    def set_corpus(self, corpus: Any) -> None:
        """Sets the entities to align with, a constant that is saved with the model. Any number will do.

        Args:
            corpus: a ``Corpus`` with embeddings, the path of a saved one, or embeddings ``[K, d]`` alone.

        Raises:
            TypeError, ValueError: there are no embeddings, they do not fit, another text encoder made them than the
                model's, or the model has random queries.
        """
        if self.alignment is None:
            raise ValueError("corpus: a model with queries='random' aligns nothing and takes no corpus")
        if isinstance(corpus, str | os.PathLike):
            corpus = Corpus.load(corpus)
        embeddings = corpus if isinstance(corpus, Tensor) else getattr(corpus, "embeddings", None)
        if embeddings is None:
            raise ValueError("corpus: it has no embeddings yet; corpus.embed(text_encoder) makes them")
        check_encoders("corpus: it", getattr(corpus, "encoder", None), "the model", self.joint_text_source)
        self.alignment.set_entities(embeddings)
        self.corpus = None if isinstance(corpus, Tensor) else corpus

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Maps tokens ``[B, T, n, d]`` to z ``[B, d]`` and the entity of every aligned token (Eq. 4 to 9)."""
        x, index = tokens.x, None
        frames = tokens.frame
        residual = self._config.init == "residual"
        if self.alignment is not None:
            scale = self.logit_scale if self._config.sim_scale is None else self._config.sim_scale
            queries, index = self.alignment(x, scale, seed=seed, noise=noise)
        else:
            assert self.queries is not None
            queries = self.queries.expand(x.shape[0], -1, -1)
        keys = frames
        if self.key_mlp is not None:
            keys = self.key_mlp(x.mean(2))
            keys = frames + keys if residual else keys
        z = self.adapter(queries, keys).mean(1)
        if residual:
            return z + frames.mean(1) + self.output_mlp(z), index
        return self.output_mlp(z), index
