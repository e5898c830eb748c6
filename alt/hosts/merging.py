"""Interfaces between patched classes and ``alt.patch``, and mix-ins for patched blocks and towers.

A patched class derives from a mix-in and from its foreign class. It is importable, so models pickle. It adds one
keyword argument, ``merge``; without it, it behaves as the foreign class. ``alt.patch`` creates the objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = [
    "BlockMerge",
    "MergingBlock",
    "MergingSequential",
    "MergingTower",
    "PatchedTower",
    "TowerMerge",
    "TrunkMerge",
    "require_grid",
]


class BlockMerge(Protocol):
    """One call of one block."""

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Runs the block on ``x`` ``[B, N, C]`` with merging between attention and MLP: ``[B, N - r, C]``."""
        ...


class TrunkMerge(Protocol):
    """One call of all blocks.

    host: of the tower. size: current token sizes ``[B, n]``, None while nothing has merged. take: numbers of the
    blocks whose output is kept in ``intermediates``, as :meth:`restore` returns it. merged_output: the caller wants
    merged tokens, not the grid.
    """

    host: Any
    size: Tensor | None
    take: tuple[int, ...]
    intermediates: list[Tensor]
    merged_output: bool

    def run(self, x: Tensor, blocks: Iterable[nn.Module], checkpointing: bool) -> Tensor:
        """Runs the blocks in order on ``x`` ``[B, N, C]``, each through its own call."""
        ...

    def restore(self, x: Tensor) -> Tensor:
        """Copies merged tokens ``[B, n, C]`` back to the N input tokens: ``[B, N, C]``.

        With ``merged_output`` it returns them as they are.
        """
        ...


class TowerMerge(Protocol):
    """The patch of a tower, stored as its ``_alt_patch``. merged_output: see :class:`TrunkMerge`."""

    host: Any
    merged_output: bool

    def encode(self, tower: Any, images: Tensor, frames: int = 1) -> tuple[Tensor, TrunkMerge]:
        """Embeds images and runs the blocks; returns the tokens of the last block and the run with their sizes."""
        ...

    def run(self, tower: Any, embedded: Any, take: tuple[int, ...] = ()) -> tuple[Tensor, TrunkMerge]:
        """Sends embedded tokens through the blocks: what :meth:`encode` does after its first step.

        For a forward with more inputs than images. take: see :class:`TrunkMerge`.
        """
        ...

    def begin(self, tower: Any, embedded: Any, frames: int = 1) -> TrunkMerge:
        """Starts a run of embedded tokens over the blocks, for a forward that leaves some of them out."""
        ...

    def finish(self, x: Tensor, merge: Any) -> Tensor:
        """Checks the output of the blocks, hooks included, and keeps the trace if requested."""
        ...


def require_grid(merge: TrunkMerge, output_fmt: str) -> None:
    """Raises ValueError if intermediates are asked for as a map of the grid, which merged tokens are not."""
    if merge.merged_output and output_fmt != "NLC":
        raise ValueError(
            "output_fmt: expected 'NLC' with merged_output=True, because merged tokens lie on no grid, got "
            f"{output_fmt!r}"
        )


class MergingBlock:
    """Mix-in of a patched block."""

    def forward(self, *args: Any, merge: BlockMerge | None = None, **kwargs: Any) -> Any:
        if merge is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return merge.run(self, *args)  # type: ignore[arg-type]


class MergingSequential(nn.Sequential):
    """Patched ``Sequential`` of blocks. The tower calls it, so its hooks fire."""

    def forward(self, x: Tensor, *, merge: TrunkMerge | None = None, checkpointing: bool = False) -> Tensor:
        return super().forward(x) if merge is None else merge.run(x, self, checkpointing)


class PatchedTower:
    """Mix-in of every patched tower.

    ToMe's users write ``model.r = 4``, which would set an attribute that nothing reads.
    """

    _alt_patch: TowerMerge

    def _refuse_r(self, value: Any) -> None:
        raise AttributeError(f"r: a patched model has none; set it at the handle: alt.get_handle(model).r = {value!r}")

    r = property(fset=_refuse_r)


class MergingTower(PatchedTower):
    """Mix-in of a patched tower whose forward takes images and returns the pooled embedding."""

    def forward(self, images: Tensor) -> Tensor:
        x, merge = self._alt_patch.encode(self, images)
        return self._alt_patch.host.pool(self, x, merge.size)
