"""MAXI's model: ViFi-CLIP, which it fine-tunes on clips without labels (:mod:`alt.train.bags`)."""

from __future__ import annotations

from torch import Tensor, nn

from .baselines import ViFiClip
from .config import MaxiConfig
from .cross_frame import attend_across_frames
from .text_tower import TextTower

__all__ = ["Maxi"]


class Maxi(ViFiClip):
    """The mean of the frames' embeddings, with both towers trained; the class texts are ``a photo of a {}.``.

    It adds no parameters to CLIP, also with :class:`.cross_frame.NeighbourKeys` in its last blocks.
    Source: arXiv 2303.08914, section 3.
    """

    config_class = MaxiConfig

    def __init__(
        self,
        config: MaxiConfig,
        visual: nn.Module,
        logit_scale: Tensor | float = 100.0,
        text: TextTower | None = None,
    ) -> None:
        super().__init__(config, visual, logit_scale, text)
        if config.cross_frame:
            attend_across_frames(self.backbone.tower, config.frames, config.cross_frame)
