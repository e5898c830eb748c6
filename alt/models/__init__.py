"""Video models on CLIP image towers with token merging: ALT and its baselines.

Names are resolved on first use: ``import alt.models`` loads no open_clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alt.lazy import attach

if TYPE_CHECKING:
    from .alt import AltModel as AltModel
    from .baselines import ClipJoint as ClipJoint
    from .baselines import ClipMean as ClipMean
    from .baselines import ClipOne as ClipOne
    from .baselines import ViFiClip as ViFiClip
    from .clip_weights import load_backbone as load_backbone
    from .config import AltConfig as AltConfig
    from .config import XClipConfig as XClipConfig
    from .entity_alignment import EntityAlignment as EntityAlignment
    from .families import list_models as list_models
    from .frame_integration import FrameIntegration as FrameIntegration
    from .frame_integration import FrameIntegrationModel as FrameIntegrationModel
    from .prompts import LearnedPrompts as LearnedPrompts
    from .region_encoder import RegionEncoder as RegionEncoder
    from .region_encoder import Tokens as Tokens
    from .registry import create_model as create_model
    from .registry import create_text_encoder as create_text_encoder
    from .strategy import Strategy as Strategy
    from .strategy import apply_strategy as apply_strategy
    from .text import TextEncoder as TextEncoder
    from .video_adapter import VideoAdapter as VideoAdapter
    from .video_model import VideoModel as VideoModel
    from .video_model import VideoOutput as VideoOutput
    from .weight_average import average_weights as average_weights
    from .weights import load_model as load_model
    from .weights import load_weights as load_weights
    from .weights import save_model as save_model
    from .xclip import XClip as XClip
    from .xclip_weights import load_xclip as load_xclip
    from .xclip_weights import save_xclip as save_xclip

__getattr__, __dir__, __all__ = attach(__name__)
