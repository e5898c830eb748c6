"""X-CLIP and the tower of ViFi-CLIP and MAXI on one clip: the share of saved operations that is saved in time.

Entrants are the models at r = 0, 4, 8 and their plain-torch formulations at r = 0 and 8 (`rival_systems`), in
evaluation mode, with 400 classes. By default the towers have 4 of their 12 blocks and the clip 4 frames; with
--alt-full they are B/16 and the clip has 8. Weights are random, because time does not depend on them. The headline is
the share of the saving that is realised, (1 - t_r/t_0) / (1 - F_r/F_0), with t_0 of plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import rival_systems as rival
import torch
from torch import Tensor

import alt
from alt.measure import paired_ratio, saving_realised

TITLES = {"X-CLIP": "X-CLIP B/16", "CLIP-Mean": "ViFi-CLIP and MAXI B/16"}
REMOVED = (0, 4, 8)
HEADLINE = 8
#: (frames, blocks): by default, and with --alt-full
SIZES = ((4, 4), (8, 12))
ROUNDS = (7, 15)


@pytest.mark.parametrize("system", list(TITLES))
def test_clip(contest: Any, benchmark: Any, device: torch.device, full: bool, system: str) -> None:
    frames, blocks = SIZES[full]
    models = {r: rival.build(system, "B/16", blocks=blocks, frames=frames, r=r).to(device).eval() for r in REMOVED}
    clips, _ = rival.batch(models[0], 1)
    clips = clips.to(device)
    macs = {r: alt.count_macs(model).native for r, model in models.items()}
    want = {r: plain(model.double(), clips.double())() for r, model in models.items()}
    for model in models.values():
        model.float()
    named = {f"r = {r}": ours(models[r], clips) for r in REMOVED if r != HEADLINE}
    named |= {f"plain torch, r = {r}": plain(models[r], clips) for r in (0, HEADLINE)}
    seconds = contest(
        f"{TITLES[system]}, one clip",
        ours(models[HEADLINE], clips),
        rivals=named,
        gates={"ours": distance(want[HEADLINE])} | {n: distance(want[int(n.split(" = ")[1])]) for n in named},
        bound=1e-4,
        why_bound="norm of the difference of the logits over their norm, to the float64 definition; measured 2e-6",
        shape=f"{blocks} blocks, 1 x {frames} frames, 224 x 224, float32",
        rounds=ROUNDS[full],
    )
    record = benchmark.extra_info
    record["macs"] = {str(r): macs[r] for r in REMOVED}
    record["tokens_left"] = {str(r): models[r].backbone.num_tokens for r in REMOVED}
    if not seconds:
        return
    unmerged = seconds["plain torch, r = 0"]
    times = {str(r): seconds["ours" if r == HEADLINE else f"r = {r}"] for r in REMOVED}
    times[f"{HEADLINE}, plain torch"] = seconds[f"plain torch, r = {HEADLINE}"]
    record["against"] = "plain torch at r = 0"
    record["speedup"] = {label: paired_ratio(unmerged, t)._asdict() for label, t in times.items()}
    record["saving_realised"] = {
        label: saving_realised(unmerged, t, macs[int(label.split(",")[0])] / macs[0])._asdict()
        for label, t in times.items()
        if label != "0"
    }


def ours(model: Any, clips: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(clips).logits

    return run


def plain(model: Any, clips: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return rival.dense_logits(model, clips)

    return run


def distance(want: Tensor) -> Callable[[Tensor], float]:
    """Returns a gate: the norm of the difference over the norm."""
    return lambda got: float((got.double() - want).norm() / want.norm())
