"""Two processes and accumulated parts give the gradients of one process on the joined batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import jobs

# Mixing pairs the clips of one part on one process and noise is drawn for each, so both are off here.
PLAIN = ["model.options.gumbel=off", "augmentation.mixup=0", "augmentation.cutmix=0", "data.batch_size=16"]

# AdamW makes full steps of gradients that are zero but for rounding (the key biases'); a larger eps keeps them small.
STEADY = [*PLAIN, "optim.eps=1e-3"]


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        scale = value.abs().max().clamp_min(1e-3)
        assert (value - right[name]).abs().max() <= tolerance * scale, name


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Gradients of one process on the whole batch."""
    seen = jobs.run(jobs.gradients, str(tmp_path_factory.mktemp("one")), PLAIN)
    assert sum(float(g.abs().sum() > 0) for g in seen.values()) > 0.5 * len(seen)
    return seen


def test_two_processes_give_the_gradients_of_one(joined: dict[str, torch.Tensor], tmp_path: Path) -> None:
    first, second = jobs.together(2, jobs.gradients, str(tmp_path), PLAIN)
    assert jobs.same(first, second)
    close(first, joined, 1e-5)


def test_accumulated_parts_give_the_gradients_of_the_batch(joined: dict[str, torch.Tensor], tmp_path: Path) -> None:
    close(jobs.run(jobs.gradients, str(tmp_path / "4"), [*PLAIN, "trainer.accumulate=4"]), joined, 1e-5)
    wide = [*PLAIN, "data.batch_size=32", "data.limit=40"]
    whole = jobs.run(jobs.gradients, str(tmp_path / "whole"), wide)
    close(jobs.run(jobs.gradients, str(tmp_path / "parts"), [*wide, "trainer.accumulate=4"]), whole, 1e-5)


@pytest.mark.slow
def test_a_run_of_two_processes(tmp_path: Path) -> None:
    """The parameters are those of one process, the folder is written once, a killed run goes on."""
    alone = tmp_path / "alone"
    one = jobs.run(jobs.train, str(alone), STEADY)
    two = jobs.together(2, jobs.train, str(tmp_path / "two"), STEADY)
    assert [answer["steps"] for answer in two] == [8, 8]
    close(jobs.parameters(tmp_path / "two"), jobs.parameters(alone), 1e-3)
    for key in ("val_top1", "val_top5"):
        assert two[0]["metrics"][key] == pytest.approx(one["metrics"][key], abs=0.051)  # one clip of twenty
    assert two[0]["metrics"]["val_loss"] == pytest.approx(one["metrics"]["val_loss"], rel=1e-3)
    with pytest.raises(jobs.Killed):
        jobs.together(2, jobs.train, str(tmp_path / "killed"), STEADY, kill=(5, "batch"))
    jobs.together(2, jobs.train, str(tmp_path / "killed"), STEADY, resume=True)
    assert jobs.same(jobs.parameters(tmp_path / "killed"), jobs.parameters(tmp_path / "two"))


@pytest.mark.slow
def test_sharded_parameters(tmp_path: Path) -> None:
    sharded = [*STEADY, "trainer.strategy=fsdp"]
    jobs.run(jobs.train, str(tmp_path / "one"), STEADY)
    jobs.together(2, jobs.train, str(tmp_path / "two"), sharded)
    close(jobs.parameters(tmp_path / "two"), jobs.parameters(tmp_path / "one"), 1e-3)
    with pytest.raises(jobs.Killed):
        jobs.together(2, jobs.train, str(tmp_path / "killed"), sharded, kill=(4, "batch"))
    jobs.together(2, jobs.train, str(tmp_path / "killed"), sharded, resume=True)
    assert jobs.same(jobs.parameters(tmp_path / "killed"), jobs.parameters(tmp_path / "two"))


SCRIPT = """
import sys
from tests.train import jobs
if __name__ == "__main__":
    print(jobs.train(sys.argv[1], sys.argv[2:])["steps"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_started_by_a_launcher(tmp_path: Path, launcher: str) -> None:
    """torchrun, and Lightning starting the second process itself."""
    (tmp_path / "job.py").write_text(SCRIPT)
    start = [sys.executable]
    settings = [*PLAIN, "schedule.steps=2", "schedule.warmup_steps=0"]
    if launcher == "torchrun":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    else:
        settings += ["trainer.devices=2", "trainer.strategy=ddp"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [*start, str(tmp_path / "job.py"), str(tmp_path / "run"), *settings],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_batch_that_two_processes_cannot_share(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"UserError: data\.batch_size \(16\) must be a multiple of .*accumulate \(3\)"
    ):
        jobs.run(jobs.train, str(tmp_path), [*PLAIN, "trainer.accumulate=3"])


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    changes = [*STEADY, "trainer.checkpoint_every=100"]
    started = [
        jobs.start(
            jobs.train,
            str(tmp_path),
            changes,
            kill=(3, "batch", signal.SIGTERM) if rank == 1 else None,
            environment=environment,
        )
        for rank, environment in enumerate(jobs.torchrun_environment(2))
    ]
    for one in started:
        with pytest.raises(RuntimeError, match=r"^Terminated: 143$"):
            jobs.finish(one)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
