"""Trains whole models, tower included, on clips that are rendered on the training device.

The comparison on a GPU trains this way. On a CPU one row of the table does, to show the gain of a trained tower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt.data.seeds import derive_seed, seeded
from alt.entityworld.world import World, normalise
from alt.models.strategy import apply_strategy
from alt.models.video_model import VideoModel
from alt.train.config import AugmentationSection, OptimSection, ScheduleSection, TrainConfig
from alt.train.module import VideoLearner
from alt.train.objective import Objective
from alt.train.trainer import run_steps

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
    objective: Objective | None = None,
    report: Callable[[int, Tensor], None] | None = None,
) -> float:
    """Trains ``model`` by ``training.strategy`` on its own device and returns the seconds taken.

    Learner and loop are those of ``alt train``. There is no augmentation except label smoothing.

    Args:
        objective: what a step minimises, of clips with their numbers in ``clips``; None: cross-entropy with the labels.
        report: called with (step, loss) after every step; the loss is a tensor of the device, not yet read.
    """
    device = next(model.parameters()).device
    with seeded(derive_seed("init", seed=seed)):
        apply_strategy(model, training.strategy)
    steps = training.steps
    config = TrainConfig(
        seed=seed,
        optim=OptimSection(lr=training.lr, new_multiplier=training.new_multiplier, weight_decay=training.weight_decay),
        schedule=ScheduleSection(steps=steps, warmup_steps=min(max(1, round(training.warmup * steps)), steps - 1)),
        augmentation=AugmentationSection(mixup=0, cutmix=0, label_smoothing=training.label_smoothing),
    )

    def take(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = rows.to(device)
        return normalise(clips.frames[rows]), clips.labels[rows], rows

    seconds = run_steps(
        VideoLearner(model, config, objective=objective),
        take,
        samples=len(clips.labels),
        batch_size=training.batch_size,
        seed=seed,
        device=device,
        mixed_precision=training.mixed_precision,
        report=report,
    )
    model.to(device).eval()
    return seconds


@torch.inference_mode()
def top1(model: VideoModel, clips: RenderedSplit, *, backwards: bool = False, batch: int = 64) -> dict[str, Any]:
    """Returns top-1 in percent, for all clips ("all") and per family."""
    model.eval()
    parts = (part.flip(1) if backwards else part for part in clips.frames.split(batch))
    found = [model(normalise(part)).logits.argmax(-1) for part in parts]
    right = (torch.cat(found) == clips.labels).float().cpu()
    values = {"all": 100 * float(right.mean())}
    for family in sorted(set(clips.families)):
        rows = torch.tensor([clips.families[int(label)] == family for label in clips.labels.tolist()])
        values[family] = 100 * float(right[rows].mean())
    return values
