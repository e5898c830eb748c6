"""Training on Lightning: configurations, parameter groups, the training module, runs that resume exactly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import TrainConfig, load_config
    from .module import VideoLearner
    from .run import RunResult, fit

_HOME = {
    "RunResult": "alt.train.run",
    "TrainConfig": "alt.train.config",
    "VideoLearner": "alt.train.module",
    "fit": "alt.train.run",
    "load_config": "alt.train.config",
}

__all__ = ["RunResult", "TrainConfig", "VideoLearner", "fit", "load_config"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
