"""schedule_for: the r of each block for a wanted cost or number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from alt.patch import PatchHandle
from alt.patch.apply import settings_of
from alt.patch.schedule import check_count, make_schedule
from alt.patch.twin import patched_twin

from .count import count_macs

__all__ = ["schedule_for"]


class Candidate(NamedTuple):
    """Tokens that each block removes, and the tokens that are left after the last."""

    removed: list[int]
    left: int


def schedule_for(model: nn.Module, *, macs: float | None = None, tokens: int | None = None) -> list[int]:
    """Returns the r of each block that reaches a wanted cost or number of tokens, as even over depth as possible.

    Every block gets the same r or one less, the later blocks the smaller one, because early merges save more. A block
    loses at most half of what may merge. ``alt.patch_model(model, r=alt.schedule_for(model, macs=0.7))`` applies it.

    Args:
        model: as for :func:`alt.patch_model`, of which the image tower counts. It may be patched; its protected patches
            are spared. It is not changed. It is counted at its own image size.
        macs: in (0, 1], the share of the unmerged multiply-accumulates that may be left, by :func:`alt.count_macs`. The
            result has the fewest merges whose cost is at most that.
        tokens: left after the last block, class tokens included, as ``handle.schedule().tokens[-1]`` counts.

    Raises:
        TypeError: the model is not supported, or the number has another type.
        ValueError: none or both of ``macs`` and ``tokens`` are given, or merging cannot reach the number.
    """
    if (macs is None) == (tokens is None):
        raise ValueError(f"schedule_for: expected macs or tokens, got {'neither' if macs is None else 'both'}")
    handle = patched_twin(model)
    settings_of(handle.tower).inflection = 0.0  # which tilts one r and would refuse a list
    candidates = list(_candidates(handle))
    if tokens is not None:
        return _reach_tokens(candidates, check_count(tokens, "tokens"))
    if isinstance(macs, bool) or not isinstance(macs, (int, float)):
        raise TypeError(f"macs must be a number in (0, 1], got {type(macs).__name__}")
    if not 0 < macs <= 1:
        raise ValueError(f"macs must be a share in (0, 1] of the unmerged cost, got {macs}")
    return _reach_macs(handle, candidates, float(macs))


def _candidates(handle: PatchHandle) -> Iterator[Candidate]:
    """Yields the even schedules from no merge to the most, each with one token fewer than the one before."""
    settings, blocks = settings_of(handle.tower), len(handle.host.blocks(handle.tower))
    left = settings.own_tokens()
    sizes = (blocks, left, settings.spared())
    yield Candidate([0] * blocks, left)
    for level in range(1, (left - settings.spared()) // 2 + 1):
        for more in range(1, blocks + 1):
            # A clipped block loses what is left to lose, so each step takes one more token or none.
            schedule = make_schedule((level,) * more + (level - 1,) * (blocks - more), 0.0, *sizes)
            if schedule.tokens[-1] < left:
                left = schedule.tokens[-1]
                yield Candidate(list(schedule.removed), left)


def _reach_tokens(candidates: list[Candidate], tokens: int) -> list[int]:
    for removed, left in candidates:
        if left == tokens:
            return removed
    raise ValueError(
        f"tokens: expected {candidates[-1].left} to {candidates[0].left} for this tower, whose blocks can lose half "
        f"of what may merge, got {tokens}"
    )


def _reach_macs(handle: PatchHandle, candidates: list[Candidate], share: float) -> list[int]:
    def cost(index: int) -> int:
        handle.r = candidates[index].removed
        return count_macs(handle.tower, 1).native

    whole = cost(0)
    low, high = 0, len(candidates) - 1  # the cost falls with every token
    least = cost(high)
    if least > share * whole:
        reachable = math.ceil(100 * least / whole) / 100
        raise ValueError(f"macs: expected at least {reachable}, the least that merging can leave, got {share}")
    while low < high:
        middle = (low + high) // 2
        if cost(middle) <= share * whole:
            high = middle
        else:
            low = middle + 1
    return candidates[high].removed
