"""Schedules of token merging: the three forms of ``r``, and the tokens each block removes at a token count."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from torch import Tensor

DEFAULT = 8  # the r of None, for towers with enough tokens

Requested = SupportsIndex | float | Sequence[int] | None
"""``r`` as users write it; NumPy numbers, one-dimensional arrays and tensors, and ranges too."""

Reduction = int | float | tuple[int, ...]
"""``r`` after checking: tokens per block, a share of a block's unprotected tokens, or one number for each block."""

# A share means its decimal: 0.29 of 100 tokens is 29, although 0.29 * 100 is 28.999....
_SHARE_SLACK = 1e-9


class Schedule(NamedTuple):
    """Token counts per block.

    Attributes:
        removed: tokens merged away by each block.
        tokens: tokens left after each block.
        clipped: indices of the blocks that cannot lose the requested number of tokens, and lose fewer.
    """

    removed: tuple[int, ...]
    tokens: tuple[int, ...]
    clipped: tuple[int, ...]


def choose_reduction(inflection: float, num_blocks: int, num_tokens: int, num_protected: int) -> int:
    """Returns the r of ``r=None``: the largest constant r up to 8 that leaves a quarter of the tokens, unclipped."""

    def fits(r: int) -> bool:
        schedule = make_schedule(r, inflection, num_blocks, num_tokens, num_protected)
        return not schedule.clipped and (not schedule.tokens or 4 * schedule.tokens[-1] >= num_tokens)

    return next(r for r in range(DEFAULT, -1, -1) if r == 0 or fits(r))


def resolve_reduction(
    r: Requested, inflection: float, num_blocks: int, num_tokens: int | None, num_protected: int, *, stacklevel: int
) -> Reduction:
    """Returns ``r`` in its checked form, see :func:`check_reduction`. None becomes a number, named if it is not 8."""
    if r is not None:
        return check_reduction(r, inflection, num_blocks)
    check_reduction(0, inflection, num_blocks)
    if num_tokens is None:
        raise ValueError("r: expected a number, because this encoder takes sequences of any length, got None")
    chosen = choose_reduction(inflection, num_blocks, num_tokens, num_protected)
    if chosen != DEFAULT:
        warnings.warn(
            f"r=None means r={chosen} for this tower, because {DEFAULT} tokens per block would leave less than a "
            f"quarter of its {num_tokens} tokens; pass r to choose another number",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    return chosen


def check_reduction(r: Requested, inflection: float, num_blocks: int) -> Reduction:
    """Returns ``r`` in its checked form.

    NumPy numbers, one-dimensional arrays and tensors, and ranges are taken as the numbers that they hold.

    Raises:
        TypeError: r or inflection has another type (bool included).
        ValueError: r is negative, a share lies outside [0, 0.5], a list does not have one entry per block,
            inflection lies outside [-1, 1], or inflection is non-zero and r is not one int.
    """
    if isinstance(inflection, bool) or not isinstance(inflection, (int, float)):
        raise TypeError(f"inflection must be a number in [-1, 1], got {type(inflection).__name__}")
    if not -1.0 <= inflection <= 1.0:  # also refuses nan
        raise ValueError(f"inflection must lie in [-1, 1], got {inflection}")
    plain: Any = r
    if isinstance(r, (np.ndarray, np.generic, Tensor)):
        plain = r.tolist()
    elif isinstance(r, range):
        plain = list(r)
    if isinstance(plain, float):
        if not 0.0 <= plain <= 0.5:
            raise ValueError(
                f"a float r is the share of a block's unprotected tokens and must lie in [0, 0.5], got {plain}"
            )
        checked: Reduction = plain
    elif isinstance(plain, (list, tuple)):
        _refuse_tome(plain, num_blocks)
        checked = tuple(check_count(value, f"r[{i}]") for i, value in enumerate(plain))
        if len(checked) != num_blocks:
            raise ValueError(
                f"r must have one entry per block, {num_blocks} for this tower, got {len(checked)} entries"
            )
    else:
        checked = check_count(plain, "r")
    if inflection != 0 and not isinstance(checked, int):
        raise ValueError(f"inflection tilts one int r over depth and must be 0 for a list or a share, got {inflection}")
    return checked


def _refuse_tome(r: Sequence[Any], num_blocks: int) -> None:
    """Raises ValueError for ToMe's pair of r and inflection."""
    if len(r) == 2 and all(isinstance(part, (int, float)) for part in r):
        count, inflection = r
        pair = isinstance(inflection, float) or inflection < 0 or (num_blocks != 2 and inflection in (0, 1))
        if pair and -1 <= inflection <= 1 and not isinstance(inflection, bool):
            raise ValueError(
                f"r={tuple(r)} is ToMe's pair of r and inflection: write r={count}, inflection={float(inflection)} here"
            )


def check_count(value: object, name: str) -> int:
    """Returns ``value`` as an int of at least 0; NumPy's integers are taken, bool is not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # of an array as well: it has __index__, which fails for more than one element
        others = ", a list of ints or a float share" if name == "r" else ""
        raise TypeError(f"{name} must be an int{others}, got {type(value).__name__}") from None
    if count < 0:
        raise ValueError(f"{name} must be at least 0, got {count}")
    return count


def tilt(r: int, inflection: float, num_blocks: int) -> tuple[int, ...]:
    """Tilts a constant r over depth, linearly from ``a = int(r (1 - inflection))`` to ``2 r - a``, rounded down.

    Inflection 1 goes from 0 to 2 r, and -1 from 2 r to 0. A single block keeps r. Source: ToMe, Bolya et al. 2023,
    "decreasing schedule".
    """
    if num_blocks == 1 or inflection == 0:
        return (r,) * num_blocks
    first = int(r * (1 - inflection))
    step = (2 * r - 2 * first) / (num_blocks - 1)
    return tuple(int(first + step * i) for i in range(num_blocks))


def scale_reduction(r: Reduction, images: int) -> Reduction:
    """Returns the ``r`` for a sequence of several images that removes as much per image; a share does not change."""
    if isinstance(r, tuple):
        return tuple(count * images for count in r)
    return r if isinstance(r, float) else r * images


def make_schedule(r: Reduction, inflection: float, num_blocks: int, num_tokens: int, num_protected: int) -> Schedule:
    """Returns the schedule of ``num_blocks`` blocks that start with ``num_tokens`` tokens.

    A block of n tokens can lose at most ``(n - num_protected) // 2``, because only every other token can move.
    """
    if isinstance(r, tuple) and len(r) != num_blocks:
        raise ValueError(f"r has {len(r)} entries but the tower now has {num_blocks} blocks; set handle.r again")
    wanted = r if isinstance(r, tuple) else tilt(r, inflection, num_blocks) if isinstance(r, int) else None
    removed, tokens, clipped = [], [], []
    count = num_tokens
    for i in range(num_blocks):
        free = count - num_protected if count > num_protected else 0
        take = math.floor(r * free + _SHARE_SLACK) if wanted is None else wanted[i]  # type: ignore[operator]
        if take > free // 2:
            if wanted is not None:
                clipped.append(i)
            take = free // 2
        # Under torch.compile(dynamic=True) counts are expressions, and so would be what is removed: min() and floor()
        # would nest from block to block. index() makes it a constant of the graph, for one guard.
        take = operator.index(take)
        count -= take
        removed.append(take)
        tokens.append(count)
    return Schedule(tuple(removed), tuple(tokens), tuple(clipped))


def clipping_message(schedule: Schedule, r: Reduction, num_tokens: int) -> str:
    """Returns the sentence of the warning, or of the error with ``strict=True``."""
    blocks = ", ".join(str(i) for i in schedule.clipped)
    counts = ", ".join(str(schedule.removed[i]) for i in schedule.clipped)
    asked = list(r) if isinstance(r, tuple) else r
    plural = "s" if len(schedule.clipped) > 1 else ""
    return (
        f"r={asked} is more than block{plural} {blocks} can lose at {num_tokens} input tokens: "
        f"removing {counts} there instead (a block can lose half of its unprotected tokens)"
    )
