"""Evaluation: metrics, views, protocols, the linear probe, the cost of the paper's models, and the trade-off over r.

Accuracies are in percent everywhere, as the papers print them. Names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alt.lazy import attach

if TYPE_CHECKING:
    from .metrics import Result as Result
    from .metrics import VideoMetrics as VideoMetrics
    from .run import collect_logits as collect_logits
    from .run import evaluate as evaluate
    from .tower_speed import BenchmarkReport as BenchmarkReport
    from .tower_speed import BenchmarkRow as BenchmarkRow
    from .tower_speed import benchmark as benchmark
    from .tradeoff import Point as Point
    from .tradeoff import Tradeoff as Tradeoff
    from .tradeoff import TradeoffRow as TradeoffRow

__getattr__, __dir__, __all__ = attach(__name__)
