"""Full disk, Ctrl-C, wrong data: one sentence, the exit code that says so, the last checkpoint whole."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import jobs


def full_disk_after(folder: str, saves: int) -> None:
    """A run whose disk is full from the given number of checkpoints on: files cannot grow past 100 kB.

    (A limit of the system on this process, so that the error comes out of the write itself, in the middle of the file.)
    """
    import resource

    from lightning.pytorch.callbacks import Callback

    from alt.train import fit, load_config

    class Fill(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == saves:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    config = load_config("entity-world-cpu", jobs.BASE)
    fit(config, folder, say=lambda line: None, callbacks=[Fill()])


def test_full_disk(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"^WriteError: Could not save the checkpoint to .*last\.ckpt.*--resume\."
    ) as told:
        jobs.run(full_disk_after, str(tmp_path), 3)
    assert os.strerror(errno.EFBIG) in str(told.value)
    assert "\n" not in str(told.value)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]  # nothing half written stays
    assert jobs.run(jobs.train, str(tmp_path), resume=True)["steps"] == 8
    jobs.run(jobs.train, str(tmp_path / "whole"))
    assert jobs.same(jobs.parameters(tmp_path), jobs.parameters(tmp_path / "whole"))


def no_space(folder: str) -> str:
    """A checkpoint onto a device without space; what is said."""
    import torch

    from alt.train.checkpoint import AtomicCheckpointIO, WriteError

    path = Path(folder) / "last.ckpt"
    path.write_bytes(b"before")
    original = Path.open
    Path.open = lambda self, *a, **k: original(  # type: ignore[method-assign]
        Path("/dev/full") if self.suffix == ".tmp" and a == ("wb+",) else self, *a, **k
    )
    try:
        AtomicCheckpointIO().save_checkpoint({"x": torch.ones(100_000)}, path)
    except WriteError as error:
        assert path.read_bytes() == b"before"
        return str(error)
    return "nothing was raised"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_no_space_left(tmp_path: Path) -> None:
    said = jobs.run(no_space, str(tmp_path))
    assert said.startswith("Could not save the checkpoint to ")
    assert "No space left on device, the previous file is unchanged." in said
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]


def command(*arguments: str) -> None:
    """``alt train`` in this process."""
    import torch

    from alt.cli import build_app

    torch.set_num_threads(1)
    build_app()(["train", *arguments])


def spawn(tmp_path: Path, *arguments: str) -> tuple[Any, Path]:
    """``alt train`` in a process of the fork server, its error stream in a file."""
    told = tmp_path / "stderr"
    process = jobs.context().Process(target=_command_to, args=(str(told), *arguments))
    process.start()
    return process, told


def _command_to(told: str, *arguments: str) -> None:
    with open(told, "w") as file:
        os.dup2(file.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command(*arguments)


def settings() -> list[str]:
    return [part for change in jobs.BASE for part in ("--set", change)]


@pytest.mark.parametrize(
    ("number", "status", "sentence"),
    [
        (signal.SIGINT, 130, r"Interrupted; go on from the last checkpoint with --resume\."),
        (signal.SIGTERM, 143, r"Terminated; the checkpoint is of step \d+, go on from it with --resume\."),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_signals(tmp_path: Path, number: int, status: int, sentence: str) -> None:
    folder = tmp_path / "run"
    long = ["--set", "schedule.steps=5000", "--set", "trainer.progress=false", "--out", str(folder)]
    process, told = spawn(tmp_path, "entity-world-cpu", *settings(), *long)
    last = folder / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 100
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status
    assert re.fullmatch(sentence, told.read_text().strip())
    assert jobs.parameters(folder)


@pytest.mark.parametrize(
    ("status", "arguments", "sentence"),
    [
        (1, ["no-such"], "Error: no-such is neither a YAML file nor a shipped configuration"),
        (2, ["alt-b16-k400-8f", "--set", "optim.lrr=1"], "Error: optim.lrr is not a setting; did you mean 'lr'?"),
        (1, ["alt-b16-k400-8f", "--set", "data.root=/no/where"], "Error: data.root: there is no folder /no/where."),
        (1, ["entity-world-cpu", "--set", "data.train_split=sene"], "Error: data: split: one of ['seen-train'"),
        (2, ["entity-world-cpu", "--set", "model.name=alt-b17"], "Error: model.name: expected one of"),
        (2, ["entity-world-cpu", "--set", "model.frames=0"], "Error: model.frames must be 1 or more, got 0."),
        (1, ["entity-world-cpu", "--set", "model.pretrained=/no/file"], "Error: model: pretrained: expected"),
        (
            1,
            ["entity-world-cpu", "--set", "model.pretrained=null"],
            "Error: model.pretrained is null, so its text tower",
        ),
        (1, ["entity-world-cpu", "--set", "model.corpus=/no/corpus.json"], "Error: model.corpus: there is no file"),
        (1, ["entity-world-cpu", "--set", "model.corpus=null"], "Error: model.corpus must name a corpus"),
        (1, ["entity-world-cpu", "--set", "model.corpus_categories=[smell]"], "Error: model: "),
        (
            1,
            ["entity-world-cpu", "--set", "model.init_from=no.safetensors"],
            "Error: model.init_from: there is no file",
        ),
        (1, ["entity-world-cpu", "--set", "data.shots=9"], "Error: data.shots: expected 9 samples of every class"),
        (1, ["entity-world-cpu", "--set", "trainer.accelerator=gpu"], "Error: trainer.accelerator is gpu, but"),
        (2, [], "Error: Name a configuration"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_one_sentence_and_exit_status(tmp_path: Path, status: int, arguments: list[str], sentence: str) -> None:
    import torch

    if "trainer.accelerator=gpu" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    tiny = ["--set", "data.preset=tiny"] if arguments and arguments[0] == "entity-world-cpu" else []
    process, told = spawn(tmp_path, *arguments, *tiny, "--out", str(tmp_path / "run"))
    process.join(100)
    assert process.exitcode == status
    said = told.read_text().strip()
    assert said.startswith(sentence)
    assert "\n" not in said
    assert said[-1] in ".?"


def test_a_damaged_clip_is_named(tmp_path: Path) -> None:
    """Also where a loading process met it."""
    answer = jobs.run(make_files, str(tmp_path / "clips"))
    assert answer == 6
    (tmp_path / "clips" / "clips" / "000003.npy").write_bytes(b"not an array")
    changes = ["data.kind=frames", f"data.root={tmp_path / 'clips'}", "data.train_list=list.txt", "data.val_list=null"]
    changes += [
        "data.size=24",
        "data.resize=24",
        "data.batch_size=4",
        "model.corpus=labels",
        "data.limit=null",
        "data.damaged=error",
    ]
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match=r"^UserError: .*000003\.npy: not a readable array file \(") as told:
            jobs.run(jobs.train, str(tmp_path / f"run{workers}"), [*changes, f"data.workers={workers}"])
        assert "\n" not in str(told.value)


def make_files(folder: str) -> int:
    from alt.data.clips import write_clips
    from alt.entityworld.world import World

    world = World("tiny")
    split = world.split("seen-train")
    frames = world.render(split[:6]).frames
    write_clips(folder, frames, split.labels[:6], split.class_names, form="npy")
    return len(frames)


def test_trains_on_files(tmp_path: Path) -> None:
    jobs.run(make_files, str(tmp_path / "clips"))
    changes = ["data.kind=frames", f"data.root={tmp_path / 'clips'}", "data.train_list=list.txt"]
    changes += ["data.val_list=list.txt", "data.size=24", "data.resize=28", "data.batch_size=4", "model.corpus=labels"]
    answer = jobs.run(jobs.train, str(tmp_path / "run"), [*changes, "schedule.steps=3", "data.limit=null"])
    assert answer["steps"] == 3
    assert {"val_top1", "val_top5", "val_loss"} <= answer["metrics"].keys()


@pytest.mark.slow
def test_the_installed_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alt.cli", "train", "alt-b16-k400-8f", "--smoke", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Smoke run: two steps on the small model" in done.stdout
    assert "model.name: alt-b16 -> alt-mini" in done.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "setting", ["model.init_from=no.safetensors", "model.pretrained=/no/file", "model.corpus=no.json"]
)
def test_missing_files_are_found_before_anything_slow(tmp_path: Path, setting: str, monkeypatch: Any) -> None:
    from alt import models
    from alt.errors import UserError
    from alt.train import fit, load_config
    from alt.train.sources import WorldClips

    monkeypatch.setattr(WorldClips, "render", lambda clips: pytest.fail("clips are rendered first"))
    monkeypatch.setattr(models, "create_model", lambda *_, **__: pytest.fail("the model is built first"))
    with pytest.raises(UserError, match=setting.partition("=")[2]):
        fit(load_config("entity-world-cpu", [setting]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_cannot_run_here_is_refused_before_the_clips_are_opened(
    tmp_path: Path, monkeypatch: Any
) -> None:
    import torch

    from alt.errors import UserError
    from alt.train import data, fit, load_config

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(data, "open_sources", lambda config: pytest.fail("clips are opened first"))
    with pytest.raises(UserError, match="this machine has none"):
        fit(load_config("entity-world-cpu", ["trainer.accelerator=gpu"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrong_setting_is_one_of_usage_and_a_wrong_file_is_not(tmp_path: Path) -> None:
    from alt.errors import UsageError, UserError
    from alt.train import load_config

    (tmp_path / "wrong.yaml").write_text("base: entity-world-cpu\noptim: {lr: fast}\n")
    with pytest.raises(UsageError, match="seed must be 0 or more"):
        load_config("entity-world-cpu", ["seed=-1"])
    with pytest.raises(UserError, match=r"optim\.lr must be a number") as told:
        load_config(tmp_path / "wrong.yaml", ["seed=1"])
    assert not isinstance(told.value, UsageError)
    assert load_config(tmp_path / "wrong.yaml", ["optim.lr=1e-3"]).optim.lr == 1e-3
