"""What a patched tower knows about its patch: one plain object on the tower, copied and pickled with it."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt_kernels import Matching

from .schedule import Reduction, Schedule, clipping_message, make_schedule, times


class Trace(NamedTuple):
    """What the last forward did: the plan of every block (None where nothing merged) and the final sizes."""

    batch: int
    num_tokens: int
    device: torch.device
    matchings: tuple[Matching | None, ...]
    size: Tensor | None


class PatchSettings:
    """The settings of one patch. Read by the forward; nothing in it changes what a second forward computes.

    Lives in the tower's ``__dict__`` (not a module, no tensors but the trace), so ``state_dict`` does not see
    it, while ``copy.deepcopy`` and ``pickle`` take it along, without the trace.
    """

    def __init__(
        self,
        r: Reduction,
        *,
        inflection: float,
        prop_attn: bool,
        trace_source: bool,
        strict: bool,
        native_tokens: int,
    ) -> None:
        self.r = r
        self.inflection = inflection
        self.prop_attn = prop_attn
        self.trace_source = trace_source
        self.strict = strict
        self.native_tokens = native_tokens
        self.trace: Trace | None = None
        self._schedules: dict[tuple[int, int, int], Schedule] = {}

    def schedule(self, num_blocks: int, num_tokens: int, frames: int = 1) -> Schedule:
        """The schedule at a token count; warns (or raises, ``strict``) the first time a count clips r.

        ``frames`` images in one sequence lose r tokens each, all over the sequence.
        """
        r = times(self.r, frames)
        if torch.compiler.is_compiling():
            # A graph cannot warn; the native token count had its warning when the model was patched.
            schedule = make_schedule(r, self.inflection, num_blocks, num_tokens)
            if self.strict and schedule.clipped:
                raise ValueError(clipping_message(schedule, r, num_tokens))
            return schedule
        known = self._schedules.get((num_blocks, num_tokens, frames))
        if known is None:
            known = self._schedules[num_blocks, num_tokens, frames] = checked_schedule(
                r, self.inflection, num_blocks, num_tokens, strict=self.strict
            )
        return known

    def adopt(self, r: Reduction, inflection: float, num_blocks: int) -> None:
        """Takes a new r, warning at once if the tower's own token count clips it."""
        first = checked_schedule(r, inflection, num_blocks, self.native_tokens, strict=self.strict)
        self.r, self.inflection = r, inflection
        self._schedules = {(num_blocks, self.native_tokens, 1): first}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trace": None, "_schedules": dict(self._schedules)}


def checked_schedule(r: Reduction, inflection: float, num_blocks: int, num_tokens: int, *, strict: bool) -> Schedule:
    """A schedule that warns where r is clipped, or raises with ``strict``."""
    schedule = make_schedule(r, inflection, num_blocks, num_tokens)
    if schedule.clipped:
        message = clipping_message(schedule, r, num_tokens)
        if strict:
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=4)
    return schedule
