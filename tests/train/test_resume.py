"""A run that was killed ends, after it went on, with the parameters of one that was not, bit for bit."""

from __future__ import annotations

import csv
import shutil
import signal
from pathlib import Path

import pytest
import torch

from . import jobs

# 3 steps an epoch: 1 is inside the first epoch, 3 the first of the second. Two parts a step.
PARTS = ["trainer.accumulate=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert jobs.run(jobs.train, str(folder), PARTS)["steps"] == 8
    return folder


def killed_then_resumed(folder: Path, kill: tuple[int, str], overrides: list[str]) -> None:
    with pytest.raises(jobs.Killed):
        jobs.run(jobs.train, str(folder), overrides, kill=kill)
    assert jobs.run(jobs.train, str(folder), overrides, resume=True)["steps"] == 8


def test_killed_between_the_parts_of_a_step(whole: Path, tmp_path: Path) -> None:
    killed_then_resumed(tmp_path, (4, "accumulation"), PARTS)
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(whole))

    def rows(folder: Path) -> list[tuple[str, str]]:
        with (folder / "metrics.csv").open(newline="") as file:
            return [(row["step"], row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]

    assert rows(tmp_path) == rows(whole)
    assert [int(step) for step, _ in rows(whole)] == list(range(8))


@pytest.mark.parametrize(
    ("step", "place", "every", "kept"),
    [
        (4, "batch", 100, 5),  # the step under way is finished
        (4, "accumulation", 100, 5),
        pytest.param(0, "start", 100, 1, marks=pytest.mark.slow),  # the Trainer gets ready
        pytest.param(3, "validation", 1, 3, marks=pytest.mark.slow),  # left, the checkpoint being of this step
        pytest.param(3, "validation", 100, 4, marks=pytest.mark.slow),
        pytest.param(4, "saving", 2, 5, marks=pytest.mark.slow),
    ],
)
def test_sigterm_writes_a_checkpoint(whole: Path, tmp_path: Path, step: int, place: str, every: int, kept: int) -> None:
    changes = [*PARTS, f"trainer.checkpoint_every={every}", f"data.workers={int(place == 'batch')}"]
    with pytest.raises(RuntimeError, match=r"^Terminated: 143$"):
        jobs.run(jobs.train, str(tmp_path), changes, kill=(step, place, signal.SIGTERM))
    assert not (tmp_path / "model.safetensors").exists()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == kept
    assert jobs.run(jobs.train, str(tmp_path), changes, resume=True)["steps"] == 8
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(whole))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("place", ["batch", "backward", "optimizer", "accumulation", "saving", "validation"])
def test_killed_anywhere(whole: Path, tmp_path: Path, step: int, place: str) -> None:
    if place == "validation" and step % 3:
        pytest.skip("validation comes at the end of an epoch")
    killed_then_resumed(tmp_path, (step, place), PARTS)
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(whole))


@pytest.mark.slow
def test_killed_twice_with_checkpoints_two_steps_apart(whole: Path, tmp_path: Path) -> None:
    """The steps since the last checkpoint are taken again, with the same clips, augmentation and noise."""
    apart = [*PARTS, "trainer.checkpoint_every=2"]
    with pytest.raises(jobs.Killed):
        jobs.run(jobs.train, str(tmp_path), apart, kill=(3, "backward"))
    with pytest.raises(jobs.Killed):
        jobs.run(jobs.train, str(tmp_path), apart, resume=True, kill=(5, "optimizer"))
    jobs.run(jobs.train, str(tmp_path), apart, resume=True)
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(whole))


@pytest.mark.slow
def test_resumed_with_loading_processes(whole: Path, tmp_path: Path) -> None:
    """Clips come from workers now, and ran ahead when the process died."""
    killed_then_resumed(tmp_path, (4, "backward"), [*PARTS, "data.workers=2"])
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(whole))


def test_the_same_run_twice_is_the_same(whole: Path, tmp_path: Path) -> None:
    jobs.run(jobs.train, str(tmp_path), PARTS)
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(whole))
    other = tmp_path / "other"
    jobs.run(jobs.train, str(other), [*PARTS, "seed=1"])
    assert not jobs.same(jobs.parameters(other), jobs.parameters(whole))


def test_what_cannot_be_resumed_is_said(whole: Path, tmp_path: Path) -> None:
    def refused(folder: Path, match: str, *changes: str, resume: bool = True) -> None:
        with pytest.raises(RuntimeError, match=f"^UserError: .*{match}"):
            jobs.run(jobs.train, str(folder), [*PARTS, *changes], resume=resume)

    refused(whole, "already holds a run", resume=False)
    refused(whole, "complete: its last checkpoint is of step 8")
    refused(whole, r"another configuration: optim\.eps was 1e-08 and is now 1e-06", "optim.eps=1e-6")
    shutil.copytree(whole, damaged := tmp_path / "damaged")
    last = damaged / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-2000])
    refused(damaged, r"last\.ckpt is damaged or not a checkpoint: its end is missing or changed; .* --out\.")


def test_what_a_killed_save_left_is_swept(whole: Path, tmp_path: Path) -> None:
    """A run that was killed before it wrote its weights is not complete."""
    shutil.copytree(whole, folder := tmp_path / "run")
    left = folder / "checkpoints" / ".last.ckpt.abc.tmp"
    left.write_bytes(b"half")
    with pytest.raises(RuntimeError, match="complete"):
        jobs.run(jobs.train, str(folder), PARTS, resume=True)
    assert not left.exists()
    weights = folder / "model.safetensors"
    expected = weights.read_bytes()
    weights.unlink()
    assert jobs.run(jobs.train, str(folder), PARTS, resume=True)["steps"] == 8
    assert weights.read_bytes() == expected
