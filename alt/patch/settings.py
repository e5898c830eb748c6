"""The settings of a patch: one plain object on the tower, copied and pickled with it."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt.hosts import Embedded, Host
from alt_kernels import Impl, Matching

from .metric import Metric
from .protect import ProtectedPatches
from .schedule import Reduction, Schedule, clipping_message, make_schedule, scale_reduction
from .trunk import TrunkCall


class Trace(NamedTuple):
    """Record of the last forward: the plans as in :class:`TrunkCall`, the final sizes, and how many blocks ran."""

    batch: int
    num_tokens: int
    device: torch.device
    matchings: tuple[Matching | None, ...]
    size: Tensor | None
    finished: int


class PatchSettings:
    """The settings of one patch. A forward reads them and changes nothing that a later forward depends on.

    The object lives in the tower's ``__dict__`` and is not a module, so ``state_dict`` does not see it.
    ``copy.deepcopy`` and ``pickle`` copy it without its trace.
    """

    # Of patches that were pickled before there was a choice.
    impl: Impl = "auto"
    protected: ProtectedPatches | None = None
    merged_output: bool = False

    def __init__(
        self,
        host: Host,
        r: Reduction,
        *,
        inflection: float,
        prop_attn: bool,
        trace_source: bool,
        strict: bool,
        impl: Impl,
        native_tokens: int | None,
        num_protected: int,
        metric: Metric,
        protected: ProtectedPatches | None = None,
        merged_output: bool = False,
    ) -> None:
        self.host = host
        self.r = r
        self.inflection = inflection
        self.prop_attn = prop_attn
        self.trace_source = trace_source
        self.strict = strict
        self.impl = impl
        self.native_tokens = native_tokens
        self.num_protected = num_protected
        self.metric: Metric = metric
        self.protected = protected
        self.merged_output = merged_output
        self.trace: Trace | None = None
        self._schedules: dict[tuple[int, int, int], Schedule] = {}

    def schedule(self, num_blocks: int, num_tokens: int, frames: int = 1) -> Schedule:
        """Returns the schedule at a token count; warns (or raises, ``strict``) the first time that a count clips r.

        Of ``frames`` images in one sequence, each contributes r to the tokens that a block removes from the sequence.
        """
        r = scale_reduction(self.r, frames)
        if torch.compiler.is_compiling():
            # A graph cannot warn. Patching already warned about the native token count.
            schedule = make_schedule(r, self.inflection, num_blocks, num_tokens, self.spared(frames))
            if self.strict and schedule.clipped:
                raise ValueError(clipping_message(schedule, r, num_tokens))
            return schedule
        known = self._schedules.get((num_blocks, num_tokens, frames))
        if known is None:
            known = self._schedules[num_blocks, num_tokens, frames] = self._checked(
                r, self.inflection, num_blocks, num_tokens, frames
            )
        return known

    def own_tokens(self) -> int:
        """Returns the tower's own number of tokens; raises ValueError if it takes sequences of any length."""
        if self.native_tokens is None:
            raise ValueError(
                f"{self.host.supports} takes sequences of any length and has no token count of its own; "
                "handle.schedule(num_tokens) takes one"
            )
        return self.native_tokens

    def spared(self, frames: int = 1) -> int:
        """Returns how many leading tokens never merge: the host's, then the protected patches of ``frames`` images."""
        return self.num_protected + (0 if self.protected is None else self.protected.count * frames)

    def adopt(self, r: Reduction, inflection: float, num_blocks: int) -> None:
        """Sets a new r, and warns at once if the tower's own token count clips it."""
        schedules = {}
        if self.native_tokens is not None:
            first = self._checked(r, inflection, num_blocks, self.native_tokens)
            schedules[num_blocks, self.native_tokens, 1] = first
        self.r, self.inflection, self._schedules = r, inflection, schedules

    def _checked(self, r: Reduction, inflection: float, num_blocks: int, num_tokens: int, frames: int = 1) -> Schedule:
        """Returns the schedule; warns if r is clipped, or raises with ``strict``."""
        schedule = make_schedule(r, inflection, num_blocks, num_tokens, self.spared(frames))
        if schedule.clipped:
            message = clipping_message(schedule, r, num_tokens)
            if self.strict:
                raise ValueError(message)
            warnings.warn(message, UserWarning, stacklevel=4)
        return schedule

    # --- the forward ---

    def encode(self, tower: Any, images: Tensor, frames: int = 1) -> tuple[Tensor, TrunkCall]:
        """Returns the merged tokens ``[B, n, C]`` of the last block, and the run with their sizes and plans.

        With ``frames`` > 1, that many consecutive images form one sequence: the protected tokens of the first image
        and the patches of all, each with its position in its own image.
        """
        embedded = self.host.embed(tower, images)
        if frames > 1:
            joined = [None if part is None else self._join(part, frames) for part in embedded[1:]]
            embedded = Embedded(self._join(self._fix_length(tower, embedded.x), frames), *joined)
        return self.run(tower, embedded, frames=frames)

    def run(
        self, tower: Any, embedded: Embedded, take: tuple[int, ...] = (), frames: int = 1
    ) -> tuple[Tensor, TrunkCall]:
        """Sends embedded tokens through the blocks; see :class:`alt.hosts.merging.TowerMerge`."""
        if frames == 1:
            embedded = embedded._replace(x=self._fix_length(tower, embedded.x))
        call = self.begin(tower, embedded, frames)
        call.take = take
        return self.finish(self.host.run_blocks(tower, embedded.x, call), call), call

    def _fix_length(self, tower: Any, x: Tensor) -> Tensor:
        """Returns tokens ``x``; in a graph that only fits the tower's own token count, that count is a plain number.

        With ``torch.compile(dynamic=True)`` it is an expression in height and width, although the sum with the position
        embedding admits one value. Tracing would reason about that expression in every operation of every block.
        """
        if not torch.compiler.is_compiling():
            return x
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports SymPy

        native = self.host.num_tokens(tower)
        if native is None or not statically_known_true(x.shape[1] == native):
            return x
        return x.expand(-1, native, -1)

    def begin(self, tower: Any, embedded: Embedded, frames: int = 1) -> TrunkCall:
        """Starts a run of embedded tokens over the blocks."""
        if embedded.size is not None and not self.prop_attn:
            raise ValueError("prop_attn: expected True for a tower that pads its tokens, because size 0 masks padding")
        num_tokens = embedded.x.shape[1]
        if isinstance(num_tokens, torch.fx.Proxy):
            raise TypeError(
                "torch.fx cannot trace a patched tower, because its schedule needs the number of tokens:"
                " use torch.export, which can, or trace the tower before patch_clip"
            )
        if self.protected is not None and self.protected.mask.shape[1] * frames != num_tokens - self.num_protected:
            raise ValueError(
                f"protect has {self.protected.mask.shape[1]} patches per image, got "
                f"{(num_tokens - self.num_protected) // frames}; set handle.protect for this image size"
            )
        return TrunkCall(
            self.host,
            tower,
            num_tokens,
            self.schedule(len(self.host.blocks(tower)), num_tokens, frames).removed,
            num_protected=self.spared(frames),
            prop_attn=self.prop_attn,
            impl=self.impl,
            metric=self.metric,
            size=embedded.size,
            positions=embedded.positions,
            protected=self.protected,
            frames=frames,
            merged_output=self.merged_output,
        )

    def finish(self, x: Tensor, merge: TrunkCall) -> Tensor:
        """Checks the output of the blocks, hooks included, and keeps the trace if requested."""
        left = merge.num_tokens - sum(merge.removed[: merge.finished])
        if x.dim() != 3 or x.shape[1] != left:
            raise ValueError(
                f"a forward hook on the patched transformer returned a tensor of shape {tuple(x.shape)} where "
                f"{left} tokens were expected; hooks may change the tokens, not their number"
            )
        if self.trace_source:
            self.trace = Trace(
                x.shape[0], merge.num_tokens, x.device, tuple(merge.matchings), merge.size, merge.finished
            )
        return x

    def _join(self, tokens: Tensor, frames: int) -> Tensor:
        tokens = tokens.unflatten(0, (-1, frames))
        first = self.num_protected
        return torch.cat([tokens[:, 0, :first], tokens[:, :, first:].flatten(1, 2)], 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trace": None, "_schedules": dict(self._schedules)}
