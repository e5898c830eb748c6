"""Prints which share of the saving a merging ViT-B/16 keeps as an ONNX file, beside the least that merging could cost.

    python benchmarks/measure_exported_saving.py --batches 1 8 --images 60

t_0 is the runtime's own time for open_clip's unmerged tower, exported by the same call. The floor is that of a tower
that drops r tokens per block by a slice, without matching, merging or sizes: no way of merging can be faster, and what
it loses, the runtime's matrix products lose. Every tower runs once per round, on one thread, in float32. Half of the
rounds run in sessions made anew, because the place of a session's memory changes its speed by up to 3 %.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import runtimes
import torch
import tower_forms
from bench_cpu_towers import costs as tower_costs
from torch import Tensor, nn
from tower_forms import OURS, UNMERGED

from alt.hosts import find_tower
from alt.measure import interleave, paired_ratio, saving_realised, time_call
from alt.tables import to_markdown

SUBJECT = "open_clip"
REMOVED = (8, 13)
FLOOR = "floor"
SESSIONS = 2
HEAD = ["runtime", "batch", "r", "t / t_0", "share of the saving", "in CPU time", "of the floor", "time over the floor"]


class Dropping(nn.Module):
    """A tower that drops the last r tokens of every block after its attention."""

    def __init__(self, tower: nn.Module, r: int) -> None:
        super().__init__()
        self.tower, self.r = tower, r

    def forward(self, images: Tensor) -> Tensor:
        host, tower = find_tower(self.tower)
        x = host.embed(tower, images).x
        for i, block in enumerate(host.blocks(tower)):
            parts = host.block_parts(block, tower, i)
            q, k, v = parts.attention.project(parts.norm_1(x), None)[:3]
            mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
            x = (x + parts.after_attention(parts.attention.join_heads(mixed, x)))[:, : -self.r]
            x = x + parts.feed_forward(parts.norm_2(x))
        return host.pool(tower, x, None)


def export_towers(tower: nn.Module, images: Tensor) -> dict[tuple[str, int], Any]:
    """Returns the ONNX file of every (who, r), made once."""
    modules = {
        (who, r): tower_forms.module_of(who, tower, r) for who, r in [(UNMERGED, 0), *((OURS, r) for r in REMOVED)]
    }
    modules |= {(FLOOR, r): Dropping(tower, r).eval() for r in REMOVED}
    return {
        (who, r): runtimes.export_once(f"{SUBJECT}-{who}-r{r}".replace(f"{UNMERGED}-r0", UNMERGED), module, images)
        for (who, r), module in modules.items()
    }


def measure(
    start: Callable[..., Any], files: dict[tuple[str, int], Any], images: Tensor, rounds: int
) -> dict[Any, Any]:
    """Returns wall-clock and CPU seconds by (who, r), round by round."""
    samples: dict[Any, list[Any]] = {key: [] for key in files}
    for seed in range(SESSIONS):
        calls = {key: start(file, images) for key, file in files.items()}
        found = interleave(
            {key: lambda call=call: time_call(call) for key, call in calls.items()},
            rounds=max(3, rounds // SESSIONS),
            warm_up=2,
            seed=seed,
        )
        for key, more in found.items():
            samples[key] += more
    return {key: ([s.seconds for s in more], [s.cpu_seconds for s in more]) for key, more in samples.items()}


def table_rows(runtime: str, batch: int, times: dict[Any, Any], cost: dict[int, float]) -> list[list[Any]]:
    """Returns the rows of one runtime and batch."""
    (base, base_cpu), rows = times[UNMERGED, 0], []
    for r in REMOVED:
        (ours, ours_cpu), (floor, _) = times[OURS, r], times[FLOOR, r]
        ratio = cost[r] / cost[0]
        shares = [saving_realised(base, ours, ratio), saving_realised(base_cpu, ours_cpu, ratio)]
        shares.append(saving_realised(base, floor, ratio))
        percents = ["{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in share[:3])) for share in shares]
        over = "{:.3f} [{:.3f}, {:.3f}]".format(*paired_ratio(ours, floor)[:3])
        rows.append([runtime, batch, r, f"{paired_ratio(ours, base).median:.3f}", *percents, over])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images per call (default: 1 8)")
    parser.add_argument("--images", type=int, default=60, help="images per tower, runtime and batch (default: 60)")
    options = parser.parse_args()
    tower = tower_forms.build(tower_forms.SUBJECTS[SUBJECT])
    images = torch.randn(max(options.batches), 3, 224, 224, generator=torch.Generator().manual_seed(6))
    cost = tower_costs(tower, (0, *REMOVED))
    rows = []
    for runtime, (_, start) in runtimes.RUNTIMES.items():
        reason = runtimes.why_no_runtime(runtime)
        if reason is not None:
            print(f"{runtime}: not measured, {reason}")
            continue
        files = export_towers(tower, images)
        for batch in options.batches:
            times = measure(start, files, images[:batch], options.images // batch)
            rows += table_rows(runtime, batch, times, cost)
    if rows:
        print(
            f"FLOP ratio {', '.join(f'{cost[r] / cost[0]:.3f} at r = {r}' for r in REMOVED)}; torch {torch.__version__}"
        )
        print(to_markdown(HEAD, rows))


if __name__ == "__main__":
    main()
