"""MAXI's model: ViFi-CLIP, which it fine-tunes on clips without labels (:mod:`alt.train.bags`)."""

from __future__ import annotations

from .baselines import ViFiClip
from .config import MaxiConfig

__all__ = ["Maxi"]


class Maxi(ViFiClip):
    """The mean of the frames' embeddings, with both towers trained; the class texts are ``a photo of a {}.``.

    It adds no parameters to CLIP. Source: arXiv 2303.08914, section 3.
    """

    config_class = MaxiConfig
