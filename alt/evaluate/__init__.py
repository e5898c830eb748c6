"""Evaluation: metrics, views, protocols, the linear probe, what a model costs, and the trade-off across r.

Accuracies are in percent everywhere, as the papers print them. Names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .metrics import Result, VideoMetrics
    from .run import collect_logits, evaluate
    from .tradeoff import Point, Tradeoff, TradeoffRow

_HOME = {
    "Point": "tradeoff",
    "Result": "metrics",
    "Tradeoff": "tradeoff",
    "TradeoffRow": "tradeoff",
    "VideoMetrics": "metrics",
    "collect_logits": "run",
    "evaluate": "run",
}

__all__ = ["Point", "Result", "Tradeoff", "TradeoffRow", "VideoMetrics", "collect_logits", "evaluate"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
