"""Training on Lightning: configurations, parameter groups, the training module, runs that resume exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alt.lazy import attach

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .config import load_config as load_config
    from .module import VideoLearner as VideoLearner
    from .run import RunResult as RunResult
    from .run import fit as fit

__getattr__, __dir__, __all__ = attach(__name__)
