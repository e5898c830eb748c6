"""EntityWorld: generated clips, a small CLIP trained on them, and the methods of the papers compared on both.

python -m alt.entityworld.mini_clip_training            # the small CLIP; its weights ship with the package
alt compare                                          # the methods, orderings and tables
alt tradeoff                                         # accuracy and cost as r grows
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alt.evaluate.tradeoff import Tradeoff

    from .token_cache import TokenCache

__all__ = ["demo_run"]


def demo_run(
    *,
    seeds: int = 5,
    steps: int = 400,
    measure: bool = True,
    cache: TokenCache | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tradeoff:
    """Runs the trade-off in minutes on two cores.

    Small ALTs are trained on cached tokens at r = 0, 2, 4 and 6, and the one of r = 0 is tested at the other r.

    Args:
        seeds: number of trainings per r. steps: of every training; ``alt tradeoff`` takes 1500.
        measure: also measure frames per second and peak memory.
        cache: tokens of the "cpu" world, for reuse; None computes them. say: receives progress lines.
    """
    from alt.entityworld.world import World

    from .method_grid import Budget
    from .token_cache import TokenCache
    from .trained_tradeoff import train_tradeoff

    cache = cache or TokenCache(World("cpu"))
    budget = Budget(steps=steps)
    return train_tradeoff(cache, seeds=range(seeds), inflections=(0.0,), budget=budget, measure=measure, say=say)
