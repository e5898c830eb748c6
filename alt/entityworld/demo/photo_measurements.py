"""Measurements of the demonstration: cost and time of each r, and the change of the embedding."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alt.cost import count_macs
from alt.hosts import find_host
from alt.measure import interleave, median_ratio, time_call
from alt.patch import PatchHandle, patch_clip

__all__ = ["FRAMES", "Row", "cpu_threads", "measure", "merged_regions"]

FRAMES = 8  # images per clip of every GFLOPs column, as in the paper
BATCH = 8


class Row(NamedTuple):
    """One line of the table.

    r; tokens: tokens left after the last block, class token included; gmacs, paper_gmacs: 1e9 multiply-accumulates
    of 8 frames as done here and in the paper's convention; ms: median milliseconds per image; speedup: median over
    rounds of time at r = 0 / time at r; realised: (1 - time ratio) / (1 - cost ratio), None at r = 0; cosine: mean
    cosine similarity of the embedding to that at r = 0; clipped: blocks (from 0) that could not lose r tokens;
    seconds: the timed rounds, per batch.
    """

    r: int
    tokens: int
    gmacs: float
    paper_gmacs: float
    ms: float
    speedup: float
    realised: float | None
    cosine: float
    clipped: tuple[int, ...]
    seconds: tuple[float, ...]


def measure(
    visual: nn.Module,
    x: Tensor,
    r_values: list[int],
    repeats: int,
    advance: Callable[[], None],
    *,
    patience: float = math.inf,
) -> list[Row]:
    """Measures the untouched tower (r = 0) and patched ones on the images ``x``.

    Args:
        visual: image tower; not changed.
        x: [P, 3, H, W] in the dtype of the weights. All are embedded, the first 8 are timed as one batch.
        r_values: ascending, 0 first.
        repeats: timed rounds. A round runs every r once, in an order drawn anew; ratios are taken within a round.
        advance: called after every forward pass of a batch.
        patience: seconds after which no further round begins, once there are three.
    """
    towers = {r: _shared_copy(visual) for r in r_values}
    schedules = {}
    for r, tower in towers.items():
        if r > 0:
            schedules[r] = _quiet_patch(tower, r).schedule(_num_tokens(visual))

    embeddings = {}
    for r, tower in towers.items():  # also the warm-up
        parts = []
        for chunk in x.split(BATCH):
            parts.append(_embed(tower, chunk))
            advance()
        embeddings[r] = torch.cat(parts)

    batch = x[:BATCH]

    def time_tower(tower: nn.Module) -> float:
        sample = time_call(lambda: _embed(tower, batch))
        advance()
        return sample.seconds

    seconds = interleave(
        {r: partial(time_tower, tower) for r, tower in towers.items()},
        rounds=repeats,
        min_rounds=3,
        seconds=patience,
        warm_up=0,
    )

    rows = []
    base_cost = count_macs(towers[0], FRAMES)
    for r in r_values:
        cost = count_macs(towers[r], FRAMES)
        ratio = median_ratio(seconds[r], seconds[0])
        saving = 1 - cost.native / base_cost.native
        rows.append(
            Row(
                r=r,
                tokens=schedules[r].tokens[-1] if r else _num_tokens(visual),
                gmacs=cost.native_g,
                paper_gmacs=cost.paper_convention_g,
                ms=1e3 * statistics.median(seconds[r]) / len(batch),
                speedup=1 / ratio,
                realised=(1 - ratio) / saving if saving > 0 else None,
                cosine=torch.cosine_similarity(embeddings[r], embeddings[0], dim=-1).mean().item(),
                clipped=tuple(schedules[r].clipped) if r else (),
                seconds=tuple(seconds[r]),
            )
        )
    return rows


def merged_regions(
    visual: nn.Module, x: Tensor, r: int, advance: Callable[[], None]
) -> tuple[list[list[NDArray[np.int64]]], tuple[int, ...]]:
    """Returns the row of every token, ``[image][block] -> int [N]``, and the tokens left after each block."""
    tower = _shared_copy(visual)
    handle = _quiet_patch(tower, r, trace_source=True)
    images: list[list[NDArray[np.int64]]] = []
    for chunk in x.split(BATCH):
        _embed(tower, chunk)
        sources = [source.cpu().numpy().astype(np.int64) for source in handle.sources]
        images.extend([source[i] for source in sources] for i in range(len(chunk)))
        advance()
    return images, tuple(handle.schedule(_num_tokens(visual)).tokens)


def passes(images: int, r_values: list[int], repeats: int) -> int:
    """Returns the number of calls of ``advance`` by ``measure`` and ``merged_regions`` together."""
    chunks = -(-images // BATCH)
    return len(r_values) * (chunks + repeats) + chunks


def _embed(tower: nn.Module, x: Tensor) -> Tensor:
    """[P, d] float32."""
    with torch.inference_mode():
        out = tower(x)
    return (out[0] if isinstance(out, tuple) else out).float()


def _shared_copy(visual: nn.Module) -> nn.Module:
    """Returns another tower with the same weights, so that every r reads the same memory."""
    return copy.deepcopy(visual, {id(p): p for p in visual.parameters()})


def _quiet_patch(tower: nn.Module, r: int, *, trace_source: bool = False) -> PatchHandle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note under the table names clipped blocks
        return patch_clip(tower, r=r, trace_source=trace_source)


def _num_tokens(visual: nn.Module) -> int:
    count = find_host(visual).num_tokens(visual)
    assert count is not None  # it is a tower of images
    return count


@contextlib.contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Sets the number of threads inside the block, and restores it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
