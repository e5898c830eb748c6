"""Training strategies of a video model: everything, everything but the tower, or adapters in the frozen tower too."""

from __future__ import annotations

from typing import Any, NamedTuple

from .adapters import insert_adapters, inserted_kind, remove_adapters

__all__ = ["STRATEGIES", "Strategy", "apply_strategy", "trainable"]

STRATEGIES = ("full", "frozen", "s", "sm", "stm")


class Strategy(NamedTuple):
    """Names of the parameters that are trained, and of those that are not.

    backbone: CLIP's own, at the small learning rate (empty unless the strategy is "full"); new: all others, adapters
    in the tower included, at the large one; frozen: not trained.
    """

    backbone: tuple[str, ...]
    new: tuple[str, ...]
    frozen: tuple[str, ...]


def apply_strategy(model: Any, strategy: str) -> Strategy:
    """Sets what is trained (``requires_grad``), and puts adapters into the tower or takes them out.

    ======== ============================================================================ ==================
    full     every parameter
    frozen   all but the tower's
    s        as frozen, and an adapter after the attention of every block                 3.550 M at ViT-B/16
    sm       as s, and one beside every MLP                                               7.101 M
    stm      as sm, and one after attention over the frames, see :class:`BlockAdapter`    10.651 M
    ======== ============================================================================ ==================

    Adapters that are there already are kept, with their weights, where the strategy has the same ones.

    Args:
        model: a ``VideoModel``; ``config.strategy`` follows. strategy: one of the above.

    Raises:
        ValueError: an unknown strategy, or temporal adapters for a model whose tower sees one image.

    Source: arXiv 2311.15619, training strategies; arXiv 2302.03024 (AIM).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    wanted = strategy if strategy in ("s", "sm", "stm") else None
    frames = getattr(model, "tower_frames", model.config.frames)
    if wanted == "stm" and frames is None:
        raise ValueError(
            f"strategy: 'stm' attends over the frames' tokens one by one, and {type(model).__name__} has all frames in "
            "one sequence; use 's' or 'sm'"
        )
    tower = model.backbone.tower
    if inserted_kind(tower) != wanted:
        remove_adapters(tower)
        if wanted is not None:
            insert_adapters(tower, wanted, frames or 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(strategy == "full" or not model.is_backbone_parameter(name))
    if model.config.strategy != strategy:
        model.change_config(strategy=strategy)
    return trainable(model)


def trainable(model: Any) -> Strategy:
    """Returns the names of the parameters that are trained and that are not, see :class:`Strategy`."""
    backbone, new, frozen = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.append(name)
        elif model.is_backbone_parameter(name):
            backbone.append(name)
        else:
            new.append(name)
    return Strategy(tuple(backbone), tuple(new), tuple(frozen))
