"""alt.benchmark: how fast an image tower is unpatched, patched at r = 0, and at each r, beside what it costs."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alt.cost import count_macs
from alt.measure import Interval, Sample, describe_machine, interleave, paired_ratio, saving_realised, time_call
from alt.patch import PatchHandle, unpatch
from alt.patch.schedule import Requested, check_count
from alt.patch.twin import patched_twin, share_weights
from alt.tables import to_markdown

__all__ = ["BenchmarkReport", "BenchmarkRow", "benchmark"]

_MIN_ROUNDS, _MAX_ROUNDS = 6, 200  # an interval needs 6


class BenchmarkRow(NamedTuple):
    """The speed and cost of a tower in one state.

    Attributes:
        r: as it was asked for; None for the unpatched tower.
        tokens: after the last block; of the unpatched tower all.
        gmacs: 1e9 multiply-accumulates per image.
        images_per_second: the median over rounds.
        speed_up: over the unpatched tower, the median of the ratios of each round with its 95 % interval.
        saving_realised: share of the saving in multiply-accumulates that arrives in time, (1 - t/t_0) / (1 - F/F_0);
            None where nothing is saved.
    """

    r: Requested
    tokens: int
    gmacs: float
    images_per_second: float
    speed_up: Interval
    saving_realised: Interval | None


class BenchmarkReport(NamedTuple):
    """What :func:`alt.benchmark` measured. ``str`` gives a Markdown table.

    Attributes:
        rows: unpatched, r = 0, then each r.
        image_size: height and width. batch_size: images per call.
        machine: of :func:`alt.measure.describe_machine`.
    """

    rows: tuple[BenchmarkRow, ...]
    image_size: tuple[int, int]
    batch_size: int
    machine: dict[str, Any]

    def __str__(self) -> str:
        head = ("r", "tokens", "GMACs", "images/s", "speed-up [95 %]", "saving realised")
        cells = [
            (
                "unpatched" if row.r is None else str(row.r),
                row.tokens,
                f"{row.gmacs:.2f}",
                f"{row.images_per_second:.4g}",
                "1"
                if row.r is None
                else f"{row.speed_up.median:.2f} [{row.speed_up.low:.2f}, {row.speed_up.high:.2f}]",
                None if row.saving_realised is None else f"{100 * row.saving_realised.median:.0f} %",
            )
            for row in self.rows
        ]
        return to_markdown(head, cells)


def benchmark(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    batch_size: int = 8,
    *,
    r: Sequence[Requested] = (4, 8, 13),
    seconds: float = 30.0,
) -> BenchmarkReport:
    """Measures images per second of an image tower unpatched, patched at r = 0, and at each r, and counts its cost.

    One call per state and round, in an order drawn anew for each round, so that a machine that slows down slows all
    of them. Ratios are of the same round. The model stays as it is: copies that share its weights run, in evaluation
    mode and without gradients, on its device and in its dtype.

    Args:
        model: as for :func:`alt.patch_model`; of a CLIP model the image tower runs. It may be patched, then its other
            options are used for every r.
        input_size: ``(H, W)`` or ``(3, H, W)`` of the images; None: the tower's own.
        batch_size: int >= 1, images per call.
        r: what to measure beside 0, each as in :func:`alt.patch_model`.
        seconds: budget of the measurement, after at least 6 rounds.

    Returns:
        BenchmarkReport: print it for a table.

    Raises:
        TypeError, ValueError: the model or an r is not accepted by :func:`alt.patch_model`, or an argument is of
            another type or out of range.
    """
    batch_size = _check_batch(batch_size)
    if isinstance(r, (str, bytes)) or not isinstance(r, Sequence):
        raise TypeError(f"r must be a list of the numbers to measure, such as (4, 8), got {type(r).__name__}")
    handle = patched_twin(model)
    plain = share_weights(handle.tower)
    unpatch(plain)
    size = handle.host.image_size(plain) if input_size is None else _check_size(input_size)
    weight = next(p for p in plain.parameters() if p.is_floating_point())
    images = torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(0)).to(weight)
    states: list[Requested] = [0, *r]
    costs, tokens = [count_macs(plain, 1, image_size=size).native], []
    for value in states:
        handle.r = value  # warns here, once, if blocks cannot lose so many
        costs.append(count_macs(handle.tower, 1, image_size=size).native)
        tokens.append(_count_tokens(handle, images[:1]))
    arguments = tuple(handle.host.arguments(plain, images))
    entrants = {i: partial(_time_state, handle, value, arguments) for i, value in enumerate(states, 1)}
    entrants[0] = partial(_time_call, plain.eval(), arguments)
    samples = interleave(entrants, rounds=_MAX_ROUNDS, seconds=seconds, min_rounds=_MIN_ROUNDS)
    times = [[sample.seconds for sample in samples[i]] for i in range(len(entrants))]
    rows = [
        BenchmarkRow(
            r=value,
            tokens=tokens[max(i - 1, 0)],
            gmacs=costs[i] / 1e9,
            images_per_second=batch_size / statistics.median(times[i]),
            speed_up=paired_ratio(times[0], times[i]),
            saving_realised=saving_realised(times[0], times[i], costs[i] / costs[0]) if costs[i] < costs[0] else None,
        )
        for i, value in enumerate([None, *states])
    ]
    return BenchmarkReport(tuple(rows), size, batch_size, describe_machine(weight.device))


def _time_state(handle: PatchHandle, value: Requested, arguments: tuple[Any, ...]) -> Sample:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first setting of this r has warned
        handle.r = value
    return _time_call(handle.tower.eval(), arguments)


def _time_call(tower: nn.Module, arguments: tuple[Any, ...]) -> Sample:
    with torch.inference_mode():
        return time_call(partial(tower, *arguments), arguments[0].device)


def _count_tokens(handle: PatchHandle, image: Tensor) -> int:
    with torch.inference_mode():
        return handle.encode(image)[0].shape[1]


def _check_batch(value: object) -> int:
    count = check_count(value, "batch_size")
    if count < 1:
        raise ValueError(f"batch_size must be at least 1, got {count}")
    return count


def _check_size(value: object) -> tuple[int, int]:
    expected = "input_size must be (H, W) or (3, H, W) in pixels"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    sizes = [check_count(pixels, f"input_size[{i}]") for i, pixels in enumerate(value)]
    if len(sizes) not in (2, 3) or 0 in sizes or (len(sizes) == 3 and sizes[0] != 3):
        raise ValueError(f"{expected}, got {tuple(sizes)}")
    return sizes[-2], sizes[-1]
