"""Objectives: the loss of labels by hand, and an objective that finds what belongs to a clip by its number."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from alt.train import load_config
from alt.train.build import build_model
from alt.train.config import AugmentationSection
from alt.train.data import ClipData
from alt.train.module import VideoLearner
from alt.train.objective import ClipBatch, Objective, SoftCrossEntropy, StepLoss
from alt.train.sampler import SampleIndex
from alt.train.trainer import run_steps


class Output(NamedTuple):
    logits: Tensor


def test_labels_with_smoothing_by_hand() -> None:
    """Without mixing: -(0.9 + 0.1 / 2) log p_right - 0.1 / 2 log p_wrong, and half of the clips are right."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    objective = SoftCrossEntropy(2, AugmentationSection(mixup=0, cutmix=0, label_smoothing=0.1))
    batch = ClipBatch(torch.zeros(2, 1, 3, 4, 4), torch.tensor([0, 1]))
    found = objective(lambda clips, seed: Output(logits), batch, 3)
    log_p = logits.log_softmax(-1)
    expected = -(0.95 * (log_p[0, 0] + log_p[1, 1]) + 0.05 * (log_p[0, 1] + log_p[1, 0])) / 2
    torch.testing.assert_close(found.loss, expected)
    assert found.hits == 0.5


class ByNumber(Objective):
    """Remembers the number and the label of every clip."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, model: Any, batch: ClipBatch, seed: int) -> StepLoss:
        assert batch.numbers is not None
        self.seen.extend(zip(batch.numbers.tolist(), batch.labels.tolist(), strict=True))
        return StepLoss(model(batch.clips).embedding.square().mean(), None)


def test_an_objective_gets_the_numbers_of_the_clips() -> None:
    tiny = ["data.preset=tiny", "data.batch_size=4", "data.limit=8", "model.templates=none"]
    clip = ["model.name=clip-mean-mini", "model.corpus=null", "model.options={strategy: full}"]
    config = load_config("entity-world-cpu", [*tiny, *clip, "schedule={steps: 4, warmup_steps: 0}"])
    data, objective = ClipData(config), ByNumber()
    data.setup("fit")
    learner = VideoLearner(build_model(config, data.class_names, data.world), config, data.steps_per_epoch, objective)

    def take(rows: Tensor) -> Any:
        return default_collate([data.train_set[SampleIndex(int(row))] for row in rows])

    run_steps(learner, take, samples=len(data.train_set), batch_size=4, seed=0, device="cpu")
    numbers = [number for number, _ in objective.seen]
    assert len(numbers) == 16
    assert [numbers.count(number) for number in numbers] == [2] * 16  # every clip in each of two epochs
    labels = data.sources.train.labels
    assert all(labels[number] == label for number, label in objective.seen)
