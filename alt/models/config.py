"""Configurations of video models: frozen dataclasses that check themselves."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from alt.validation import (
    Count,
    Finite,
    Flag,
    Natural,
    Positive,
    Reduction,
    ShareBelowOne,
    Text,
    checked,
    expected,
    plain,
)

__all__ = [
    "AltConfig",
    "BaselineConfig",
    "FrameIntegrationConfig",
    "MaxiConfig",
    "ViFiConfig",
    "VideoConfig",
    "XClipConfig",
    "num_heads",
]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise expected("an odd number of frames")
    return value


@checked
class VideoConfig:
    """Fields of every video model.

    backbone: an open_clip model name ("ViT-B-16", "ViT-L-14", ...), or "mini" for the small CLIP of EntityWorld.
    quick_gelu: activation of the tower; None: as the pretrained weights were trained (QuickGELU for OpenAI's).
    frames: T, frames per clip.
    r: tokens merged away per block; int, float share or one int per block, see :func:`alt.patch_clip`.
    inflection, prop_attn: see :func:`alt.patch_clip`.
    head: "cosine" (times CLIP's logit scale), "literal" (the plain product c z, Eq. 10), "linear" (no texts).
    strategy: "full", "frozen" (the tower is not trained), or the adapters "s", "sm", "stm", "stm-shared" in a
        frozen tower.
    grad_checkpointing: recompute the tower's blocks in the backward.
    prompting: class texts from templates. "ensemble": their mean; "random": one per training step, and the
        mean in evaluation; "learned": no template, but ``prompt_vectors`` learned vectors in front of the name (CoOp),
        which need a text tower ("held" or "trained").
    text: "cached": the model holds the embeddings of the class texts alone; "held": also the text tower, which is saved
        with it and not trained; "trained": the text tower is trained, and every training step embeds the class texts.

    Raises:
        TypeError, ValueError: one sentence that names the field, the expected and the actual value.
    """

    backbone: Annotated[Text, Field(min_length=1)] = "ViT-B-16"
    quick_gelu: Flag | None = None
    frames: Count = 8
    r: Reduction = 0
    inflection: Finite = 0.0
    prop_attn: Flag = True
    head: Literal["cosine", "literal", "linear"] = "cosine"
    strategy: Literal["full", "frozen", "s", "sm", "stm", "stm-shared"] = "full"
    grad_checkpointing: Flag = False
    text: Literal["cached", "held", "trained"] = "cached"
    prompting: Literal["ensemble", "random", "learned"] = "ensemble"
    prompt_vectors: Count = 16

    @property
    def num_vectors(self) -> int:
        """Returns the number of learned vectors in front of every class name."""
        return self.prompt_vectors if self.prompting == "learned" else 0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON and YAML; ``type(config)(**config.to_dict())`` is the same configuration."""
        return plain(self)


@checked
class BaselineConfig(VideoConfig):
    """A baseline. ``r`` is 0, as in the published ones. ``head="linear"`` is the row "without text"."""


@checked
class FrameIntegrationConfig(BaselineConfig):
    """A baseline's configuration, and ``layers`` (1 in the paper) and ``heads`` of the integration transformer.

    heads: None: the default of :func:`num_heads`.
    """

    layers: Count = 1
    heads: Count | None = None


@checked
class XClipConfig(BaselineConfig):
    """X-CLIP (arXiv 2208.02816). ``r`` is 0, as published.

    messages: one message token per frame in every block. layers, heads: of the integration transformer; with 0 layers
        the video embedding is the mean of the frames. prompt_layers, prompt_heads: of the video-specific prompts; 0
        layers: the class texts are those of every other model. alpha: start of the prompts' learned factor.
    drop_path: probability with which training leaves out a branch of the last block for a frame (stochastic depth);
        it grows linearly from 0 at the first block.

    heads, prompt_heads: None: the default of :func:`num_heads`.
    """

    messages: Flag = True
    layers: Natural = 1
    heads: Count | None = None
    prompt_layers: Natural = 2
    prompt_heads: Count | None = None
    alpha: Finite = 0.1
    drop_path: ShareBelowOne = 0.0


@checked
class ViFiConfig(BaselineConfig):
    """ViFi-CLIP: CLIP-Mean whose text tower is trained too."""

    text: Literal["cached", "held", "trained"] = "trained"


@checked
class MaxiConfig(ViFiConfig):
    """MAXI: ViFi-CLIP's model, for clips without labels.

    cross_frame: so many of the last blocks attend with the mean keys of neighbouring frames (2 or 6 in the paper, which
        found no gain). All frames of a clip then merge the same tokens.
    """

    cross_frame: Natural = 0


@checked
class AltConfig(VideoConfig):
    """Options of ALT. Defaults are the values that work; where the paper differs, its literal value is named.

    Section and equation numbers are those of arXiv 2311.15619. For tower and head see :class:`VideoConfig`.

    Entity alignment (Eq. 4 to 6):
        align_tokens: "regions+cls" aligns every token, "cls" the class token alone (the paper's row "without
            merging and alignment" is ``r=0, align_tokens="cls"``).
        reduction: of a frame's aligned entities to one query, see :class:`EntityAlignment`.
        queries: "entity", or "random": one learned query per frame, independent of entities (the paper's empty set).
        sim_scale: factor of the cosines; None: CLIP's logit scale. Literal: 1.0, at which noise drowns the cosines.
        tau: temperature of the similarity (the noise is not divided by it).
        gumbel: "train" draws noise in training only, "off" never. Evaluation is the plain argmax.
        hard: straight-through choice of one entity; False: the softmax mixture.

    Adapter (Eq. 7 to 9):
        layers: M, blocks; 4 for B, 6 for L in the paper. heads: None: the default of :func:`num_heads`.
        keys: "cls" (class tokens), "mlp_tokens" (an MLP of the frame's tokens; the later version of the paper).
        self_attention, convolution: ablation switches. conv_kernel: odd.
        temporal_pos: learned positions of the frames, added to queries and keys; the paper mentions none.
        init: "residual": MLPs are residual, outputs start at zero, and the mean class token is added to z, so z
            starts in CLIP's joint space; "literal": plain MLPs, truncated normal of std 0.02.

    Raises:
        TypeError, ValueError: one sentence that names the field, the expected and the actual value.
    """

    r: Reduction = 8
    layers: Count = 4
    heads: Count | None = None
    align_tokens: Literal["regions+cls", "cls"] = "regions+cls"
    reduction: Literal["mean", "mlp_then_mean", "attn", "set"] = "mean"
    queries: Literal["entity", "random"] = "entity"
    keys: Literal["cls", "mlp_tokens"] = "cls"
    sim_scale: Positive | None = None
    tau: Positive = 1.0
    gumbel: Literal["train", "off"] = "train"
    hard: Flag = True
    self_attention: Flag = True
    convolution: Flag = True
    conv_kernel: Annotated[Count, AfterValidator(_odd)] = 3
    temporal_pos: Flag = False
    init: Literal["residual", "literal"] = "residual"

    def num_heads(self, width: int) -> int:
        """Returns the attention heads of an adapter of ``width`` channels, see :func:`num_heads`."""
        return num_heads(self.heads, width)


def num_heads(heads: int | None, width: int, field: str = "heads") -> int:
    """Returns ``heads``, or by default d // 64 as in X-CLIP; below 256 channels gcd(d, 4). ``field``: its name.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """
    if heads is None:
        heads = width // 64 if width >= 256 else math.gcd(width, 4)
    if width % heads:
        raise ValueError(f"{field}: expected a divisor of the joint width {width}, got {heads}")
    return heads
