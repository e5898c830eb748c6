"""When the last checkpoint is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from alt.train.config import ScheduleSection, TrainConfig, TrainerSection
from alt.train.module import VideoLearner
from alt.train.saving import KeepLast

CONFIG = TrainConfig(schedule=ScheduleSection(epochs=2, warmup_epochs=1))


def saved_steps(config: TrainConfig, steps_per_epoch: int, parts: int = 1) -> list[int]:
    """The steps that a run of this configuration saves; each has ``parts`` batches."""
    model = nn.Linear(1, 1)
    model.classes = ["a", "b"]  # type: ignore[assignment]
    learner = VideoLearner(model, config, steps_per_epoch)
    found: list[int] = []
    trainer: Any = SimpleNamespace(
        global_step=0,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        save_checkpoint=lambda path, weights_only: found.append(trainer.global_step),
    )
    keep = KeepLast(Path("last.ckpt"))
    keep._step = 0
    for batch in range(learner.total_steps * parts):
        trainer.global_step = (batch + 1) // parts
        keep.on_train_batch_end(trainer, learner)
    return found


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(None, None, [5, 10]), (3, None, [3, 6, 9]), (None, 4, [4]), (7, 4, [4]), (1, 3, [1, 2, 3])],
)
def test_a_checkpoint_every_epoch_or_so_many_steps(every: int | None, steps: int | None, expected: list[int]) -> None:
    config = dataclasses.replace(CONFIG, trainer=TrainerSection(checkpoint_every=every))
    if steps is not None:
        config = dataclasses.replace(config, schedule=ScheduleSection(steps=steps, warmup_steps=1))
    assert saved_steps(config, 5) == expected
    assert saved_steps(config, 5, parts=2) == expected
