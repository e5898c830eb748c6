"""Training of whole models, tower included, on clips that are rendered where they are trained on.

On a GPU this is the embedded benchmark's way; on a CPU it is the one row of the table that shows what a trained tower
adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alt.data.seeds import derive_seed, seeded
from alt.entityworld.world import World, normalise
from alt.models.strategy import apply_strategy
from alt.models.video_model import VideoModel
from alt.train.config import OptimSection
from alt.train.optim import build_optimizer, build_schedule, parameter_groups

__all__ = ["FineTuning", "RenderedSplit", "fine_tune", "render_split", "top1"]


@dataclass(frozen=True)
class FineTuning:
    """steps, batch_size; lr of the tower, ``new_multiplier`` times it for what is new; strategy as in
    :func:`~alt.models.strategy.apply_strategy`; mixed_precision: bfloat16 autocast."""

    steps: int = 500
    batch_size: int = 32
    lr: float = 1e-4
    new_multiplier: float = 10.0
    weight_decay: float = 1e-3
    label_smoothing: float = 0.1
    warmup: float = 0.1
    strategy: str = "full"
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an int >= 1, got {getattr(self, name)}")


class RenderedSplit(NamedTuple):
    """Clips uint8 ``[N, T, 3, H, W]`` and labels ``[N]`` on one device, class names and their families."""

    frames: Tensor
    labels: Tensor
    names: list[str]
    families: list[str]


def render_split(world: World, name: str, device: torch.device | str = "cpu") -> RenderedSplit:
    split = world.split(name)
    frames = world.render(split, device).frames
    return RenderedSplit(frames, split.labels.to(device), split.class_names, split.families)


def fine_tune(
    model: VideoModel,
    clips: RenderedSplit,
    training: FineTuning,
    *,
    seed: int,
    report: Callable[[int, Tensor], None] | None = None,
) -> float:
    """Train ``model`` by ``training.strategy`` on its own device; returns the seconds it took.

    Args:
        report: called with (step, loss) after every step; the loss is a tensor of the device, not yet read.
    """
    device = next(model.parameters()).device
    with seeded(derive_seed("init", seed=seed)):
        apply_strategy(model, training.strategy)
    optim = OptimSection(lr=training.lr, new_multiplier=training.new_multiplier, weight_decay=training.weight_decay)
    optimizer = build_optimizer(parameter_groups(model, optim), optim)
    warmup = max(1, round(training.warmup * training.steps))
    schedule = build_schedule(optimizer, training.steps, warmup, 0.01)
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    count, batch = len(clips.labels), min(training.batch_size, len(clips.labels))
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    start = time.perf_counter()
    for step in range(training.steps):
        if len(order) < batch:
            order = torch.randperm(count, generator=generator)
        rows, order = order[:batch].to(device), order[batch:]
        noise = torch.randint(2**62, (), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision):
            logits = model(normalise(clips.frames[rows]), seed=noise).logits
        loss = F.cross_entropy(logits.float(), clips.labels[rows], label_smoothing=training.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step, loss.detach())
    model.eval()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def top1(model: VideoModel, clips: RenderedSplit, *, backwards: bool = False, batch: int = 64) -> dict[str, Any]:
    """Top-1 in percent, of all clips ("all") and of every family's."""
    model.eval()
    parts = (part.flip(1) if backwards else part for part in clips.frames.split(batch))
    found = [model(normalise(part)).logits.argmax(-1) for part in parts]
    right = (torch.cat(found) == clips.labels).float().cpu()
    values = {"all": 100 * float(right.mean())}
    for family in sorted(set(clips.families)):
        rows = torch.tensor([clips.families[int(label)] == family for label in clips.labels.tolist()])
        values[family] = 100 * float(right[rows].mean())
    return values
