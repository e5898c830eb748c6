"""Training strategies of a video model: everything, everything but the tower, or adapters in the frozen tower too."""

from __future__ import annotations

from typing import Any, NamedTuple

from .adapters import KINDS, insert_adapters, inserted_kind, remove_adapters

__all__ = ["STRATEGIES", "Strategy", "apply_strategy", "split_parameters"]

STRATEGIES = ("full", "frozen", "s", "sm", "stm", "stm-shared")


class Strategy(NamedTuple):
    """Names of trained and frozen parameters.

    backbone: CLIP's own, at the small learning rate; empty unless the strategy is "full". new: all others, including
    adapters in the tower, at the large rate. frozen: not trained.
    """

    backbone: tuple[str, ...]
    new: tuple[str, ...]
    frozen: tuple[str, ...]


def apply_strategy(model: Any, strategy: str) -> Strategy:
    """Sets ``requires_grad`` by a strategy, and inserts or removes adapters in the tower.

    ========== ============================================================================ ==================
    full       every parameter; those of a text tower only with text="trained"
    frozen     all but the towers'
    s          as frozen, and an adapter after the attention of every block                 3.550 M at ViT-B/16
    sm         as s, and one beside every MLP                                               7.101 M
    stm        as sm, and one after attention over the frames, see :class:`BlockAdapter`    10.651 M
    stm-shared the same; the frames of a clip merge the same tokens, so all attend in time  10.651 M
    ========== ============================================================================ ==================

    Existing adapters of the same kind are kept with their weights.

    Args:
        model: a ``VideoModel``; its ``config.strategy`` is updated. strategy: one of the above.

    Raises:
        ValueError: the strategy is unknown, or it has temporal adapters and the model's tower sees one image.

    Source: arXiv 2311.15619, training strategies; arXiv 2302.03024 (AIM).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    wanted = strategy if strategy in KINDS else None
    frames = getattr(model, "tower_frames", model.config.frames)
    if wanted is not None and "t" in wanted and frames is None:
        raise ValueError(
            f"strategy: {wanted!r} needs the frames apart, and {type(model).__name__} has them in one sequence; "
            "use 's' or 'sm'"
        )
    tower = model.backbone.tower
    if inserted_kind(tower) != wanted:
        remove_adapters(tower)
        if wanted is not None:
            insert_adapters(tower, wanted, frames or 1)
    for name, parameter in model.named_parameters():
        trains = strategy == "full" and (not name.startswith("text.") or model.config.text == "trained")
        parameter.requires_grad_(trains or not model.is_backbone_parameter(name))
    if model.config.strategy != strategy:
        model.change_config(strategy=strategy)
    return split_parameters(model)


def split_parameters(model: Any) -> Strategy:
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
