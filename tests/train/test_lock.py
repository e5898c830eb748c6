"""One run at a time in a folder, and one way to be requeued."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment

from alt.errors import UserError
from alt.train import load_config
from alt.train.folder import find_earlier
from alt.train.lock import NAME, hold_folder
from alt.train.processes import is_first_process
from alt.train.trainer import build_trainer

SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NAME": "train",
}  # fmt: skip


def silent(line: str) -> None:
    pytest.fail(line)


def test_a_second_run_is_one_sentence_until_the_first_is_killed(tmp_path: Path) -> None:
    """Kind: two processes that write the same files. A lock that outlives a kill would be as bad."""
    process = os.fork()
    if process == 0:
        with hold_folder(tmp_path / "run", silent):
            (tmp_path / "run" / "held").touch()
            loader = os.fork()  # a loading process that outlives its parent for a while keeps nobody out
            (tmp_path / "loader").write_text(str(loader or os.getpid()))
            time.sleep(60)
        os._exit(0)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "loader").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with (
            pytest.raises(
                UserError, match=rf"Another run is at work in .*run \(process {process} on .*--out\."
            ) as told,
            hold_folder(tmp_path / "run", silent),
        ):
            pass
        assert "\n" not in str(told.value)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with hold_folder(tmp_path / "run", silent):
        assert (tmp_path / "run" / NAME).read_text().startswith(f"process {os.getpid()} on ")
    os.kill(int((tmp_path / "loader").read_text()), signal.SIGKILL)


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_folder(tmp_path / "run", silent):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with hold_folder(tmp_path, silent):
        pass
    assert tmp_path.exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"The folder .* cannot be written: Not a directory\."),
        hold_folder(tmp_path / "file" / "run", silent),
    ):
        pass


def test_the_other_processes_of_a_run_take_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with hold_folder(tmp_path / "run", silent):
        assert not (tmp_path / "run").exists()


def test_lightning_does_not_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind: a library that acts on its surroundings. It went on from its own file, without --resume."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    trainer = build_trainer(load_config("entity-world-cpu", ["trainer.accelerator=cpu"]), tmp_path)
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False
    assert is_first_process()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not is_first_process()


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_lightnings_requeueing_is_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(UserError, match=r"hpc_ckpt_1\.ckpt is of Lightning's own requeueing"):
        find_earlier(load_config("entity-world-cpu"), tmp_path, silent, resume=resume)


def test_resume_of_a_run_that_never_started_starts_it(tmp_path: Path) -> None:
    said: list[str] = []
    assert find_earlier(load_config("entity-world-cpu"), tmp_path / "run", said.append, resume=True) is None
    assert said == [f"There is no run in {tmp_path / 'run'} yet; it starts at step 0."]
