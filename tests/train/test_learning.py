"""The training step learns: one batch to certainty, and the numbers in the log are those of the run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from . import jobs

ONE_BATCH = [
    "data.limit=8",
    "data.val_split=null",
    "augmentation={flip: 0, crop_scales: null, color_jitter: 0, mixup: 0, cutmix: 0, label_smoothing: 0}",
    "schedule.steps=60",
    "schedule.warmup_steps=5",
    "optim.lr=1e-3",
    "model.options.sim_scale=10",
    "trainer.checkpoint_every=60",
]


def rows(folder: Path, key: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_overfits_a_batch(tmp_path: Path) -> None:
    answer = jobs.run(jobs.train, str(tmp_path), ONE_BATCH)
    losses, hits = rows(tmp_path, "train_loss"), rows(tmp_path, "train_top1")
    assert losses[0] > 1
    assert losses[-1] < 0.01
    assert hits[-1] == 1
    assert answer["metrics"]["train_loss"] == pytest.approx(losses[-1])
    assert len(losses) == 60


def test_learning_rates_in_the_log(tmp_path: Path) -> None:
    jobs.run(jobs.train, str(tmp_path))
    new = next(key for key in _header(tmp_path) if key.startswith("lr") and "new/decay" in key)
    assert rows(tmp_path, new)[:3] == pytest.approx([0, 5e-3, 1e-2])  # two steps of warm-up to 10 x 1e-3


def _header(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def reload(folder: str) -> float:
    """Largest difference between the exported model and the last checkpoint, over all parameters and the logits."""
    import torch

    from alt.models.weights import load_model

    model = load_model(Path(folder) / "model.safetensors")
    kept = jobs.parameters(folder)
    return max(
        float((p - kept[f"model.{name}"]).abs().max()) for name, p in model.named_parameters() if torch.is_tensor(p)
    )


def test_the_exported_weights_are_those_of_the_run(tmp_path: Path) -> None:
    jobs.run(jobs.train, str(tmp_path))
    assert jobs.run(reload, str(tmp_path)) == 0


def linear_probe(folder: str) -> tuple[bool, bool]:
    """(every parameter but the head's is unchanged, the head's changed)."""
    import torch
    from lightning.pytorch.callbacks import Callback

    from alt.train import fit, load_config
    from alt.train.smoke import shrink

    before = {}

    class Remember(Callback):
        def on_fit_start(self, trainer: object, learner: object) -> None:
            before.update({k: v.clone() for k, v in learner.model.state_dict().items()})  # type: ignore[attr-defined]

    config = shrink(load_config("alt-b16-ucf-linear-probe-split1"))[0]
    fit(config, folder, say=lambda line: None, callbacks=[Remember()])
    after = jobs.parameters(folder)
    same = {k: torch.equal(v, after[f"model.{k}"]) for k, v in before.items()}
    return all(v for k, v in same.items() if not k.startswith("head.")), not same["head.weight"]


def test_a_linear_probe_changes_the_head_alone(tmp_path: Path) -> None:
    assert jobs.run(linear_probe, str(tmp_path)) == (True, True)
