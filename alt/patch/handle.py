"""The handle of a patched tower, with which users change, inspect and remove the patch."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from alt.hosts import Host
from alt.hosts.made_weights import make_weights

from .apply import is_patched, revert, settings_of
from .metric import Metric
from .protect import Mask, check_protect
from .restore import block_sources
from .schedule import Reduction, Requested, Schedule, check_count, make_schedule, resolve_reduction
from .settings import PatchSettings, Trace
from .trunk import TrunkCall


class PatchHandle:
    """Returned by :func:`alt.patch_model`; as a context manager it removes the patch on exit.

    A handle has no state: two handles of one tower control the same patch.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower
        self._settings = settings_of(tower)

    @property
    def visual(self) -> nn.Module:
        """Returns ``tower``. The older name, kept for one release."""
        return self.tower

    @property
    def host(self) -> Host:
        """Returns the host of the tower."""
        return self._settings.host

    @property
    def _is_live(self) -> bool:
        return is_patched(self.tower) and settings_of(self.tower) is self._settings

    def _live(self) -> PatchSettings:
        if not self._is_live:
            raise ValueError("this handle's patch was removed from the model; patch it again for a new handle")
        return self._settings

    def remove(self) -> None:
        """Restores the tower bit for bit: same classes, parameters and attributes as before the patch.

        Raises:
            ValueError: the patch was already removed.
            RuntimeError: a part was sharded (``fully_shard``) or wrapped after patching. The tower is unchanged.
        """
        self._live()
        revert(self.host, self.tower)

    def __enter__(self) -> PatchHandle:
        self._live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:  # the patch may have been removed inside the block
            revert(self.host, self.tower)

    @property
    def r(self) -> Reduction:
        """Tokens removed per block: an int, a tuple with one entry per block, or a float share. May be set."""
        return self._live().r

    @r.setter
    def r(self, value: Requested) -> None:
        settings, blocks = self._live(), self._num_blocks
        sizes = (blocks, settings.native_tokens, settings.spared())
        checked = resolve_reduction(value, settings.inflection, *sizes, stacklevel=2)
        settings.adopt(checked, settings.inflection, blocks)

    @property
    def protect(self) -> Tensor | None:
        """Patches that must not merge: bool ``[1, n]``, or ``[B, n]`` with a mask per image; None. May be set.

        Set it before a call to give the images of this call their masks, see :func:`alt.patch_model`.
        """
        protected = self._live().protected
        return None if protected is None else protected.mask.clone()

    @protect.setter
    def protect(self, value: Mask) -> None:
        settings = self._live()
        before, settings.protected = settings.protected, check_protect(value)
        try:
            settings.adopt(settings.r, settings.inflection, self._num_blocks)
        except ValueError:  # strict, and r is more than the other patches can lose
            settings.protected = before
            raise

    @property
    def inflection(self) -> float:
        return self._live().inflection

    @property
    def metric(self) -> Metric:
        """Returns what matching compares, see :func:`alt.patch_clip`."""
        return self._live().metric

    def schedule(self, num_tokens: int | None = None) -> Schedule:
        """Returns what each block removes from ``num_tokens`` input tokens (None: the tower's own number).

        ``num_tokens`` includes protected tokens: 197 for ViT-B/16 at 224 pixels. Clipping neither warns nor raises
        here; ``Schedule.clipped`` names the blocks.
        """
        settings = self._live()
        if num_tokens is None:
            num_tokens = settings.own_tokens()
        num_tokens = check_count(num_tokens, "num_tokens")
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        return make_schedule(settings.r, settings.inflection, self._num_blocks, num_tokens, settings.spared())

    @property
    def _num_blocks(self) -> int:
        return len(self.host.blocks(self.tower))

    def encode(self, images: Tensor, frames: int = 1) -> tuple[Tensor, TrunkCall]:
        """Returns the merged tokens ``[B, n, C]`` of the last block, and the run with their sizes and plans.

        The caller applies final norm, pooling and projection. With ``frames`` > 1, that many consecutive images form
        one sequence.
        """
        settings = self._live()
        make_weights(self.tower)  # the tower itself is not called
        return settings.encode(self.tower, images, frames)

    def _trace(self, name: str) -> Trace:
        settings = self._live()
        if not settings.trace_source:
            raise ValueError(f"handle.{name} needs patch_model(..., trace_source=True), or merged_output=True")
        if settings.trace is None:
            raise ValueError(f"handle.{name} needs a forward, and there was none since patching or copying")
        return settings.trace

    @property
    def sizes(self) -> Tensor:
        """Returns the number of input tokens behind every output token of the last forward, float32 ``[B, n]``."""
        trace = self._trace("sizes")
        if trace.size is None:
            return torch.ones(trace.batch, trace.num_tokens, device=trace.device)
        return trace.size.detach()

    @property
    def source(self) -> Tensor:
        """Returns the output row of every input token of the last forward, int ``[B, N]``."""
        self._trace("source")
        return self.sources[-1]

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """Returns ``source`` after each block, for pictures of the merged regions."""
        trace = self._trace("sources")
        identity = torch.arange(trace.num_tokens, dtype=torch.int32, device=trace.device)
        return block_sources(trace.matchings, trace.finished, identity.expand(trace.batch, -1).contiguous())

    def __repr__(self) -> str:
        if not self._is_live:
            return "PatchHandle(removed)"
        settings = self._settings
        tokens = () if settings.native_tokens is None else self.schedule().tokens
        options = f"r={settings.r}"
        options += f", inflection={settings.inflection}" if settings.inflection else ""
        options += f", prop_attn={settings.prop_attn}"
        options += f", protect={settings.protected.count} patches" if settings.protected is not None else ""
        options += f", metric={settings.metric!r}" if settings.metric != "keys" else ""
        options += ", merged_output=True" if settings.merged_output else ""
        options += f", impl={settings.impl!r}" if settings.impl != "auto" else ""
        left = f", {settings.native_tokens} -> {tokens[-1]} tokens" if tokens else ""
        return f"PatchHandle({options}{left} over {self._num_blocks} blocks)"
