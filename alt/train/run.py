"""One training run: a folder with its configuration, checkpoints, logs and weights. It can resume from any step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from alt.data.clips import ClipError
from alt.errors import UserError, one_line
from alt.files import replacing
from alt.models.weights import model_file

from .build import build_model, check_files, export
from .checkpoint import LAST, WriteError, read_checkpoint, sweep, write_errors
from .config import TrainConfig, first_difference, from_tree
from .data import ClipData
from .module import VideoLearner
from .optim import describe_groups
from .processes import is_first_process
from .trainer import Say, build_trainer, run_trainer


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run. ``metrics``: the last logged values. ``steps``: optimiser steps in total."""

    folder: Path
    checkpoint: Path
    weights: Path
    steps: int
    metrics: dict[str, float]


def fit(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    say: Say = lambda line: print(line, flush=True),
    callbacks: list[Callback] | None = None,
) -> RunResult:
    """Trains a model, and restores the global random state afterwards.

    The folder (``runs/<name>`` without ``out``) gets ``config.yaml``, ``checkpoints/last.ckpt``, ``metrics.csv``,
    TensorBoard's files if it is installed, and in the end ``model.safetensors``.

    Args:
        config: the run. out: its folder. resume: continue from the folder's last checkpoint.
        say: receives lines for the user, from the first process only. callbacks: further ones for Lightning.

    Raises:
        UserError: an error that the user can put right, in one sentence. KeyboardInterrupt: Ctrl-C. Terminated:
            SIGTERM, after one more checkpoint. The last checkpoint is whole in every case.
    """
    folder = Path(out) if out is not None else Path("runs") / config.name
    report: Say = say if is_first_process() else (lambda line: None)
    last = folder / LAST
    if resume and not last.exists() and (folder / "config.yaml").exists():
        report(f"The run in {folder} ended before its first checkpoint; it starts at step 0.")
        resume = False
    done = resume_step(config, last) if resume else 0
    check_files(config)
    if is_first_process():
        _open_folder(config, folder, last, resume)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    with isolate_rng():
        torch.manual_seed(config.seed)  # of new parameters; every step seeds itself
        data = ClipData(config)
        learner = VideoLearner(
            build_model(config, data.class_names, data.world, say=report), config, data.steps_per_epoch
        )
        if done >= learner.total_steps:
            raise UserError(f"The run in {folder} is complete: its last checkpoint is of step {done}.")
        report(f"{config.name}: {len(data.train_set)} clips, {learner.total_steps} steps of {config.data.batch_size}")
        for line in describe_groups(learner.groups()):
            report(line)
        if done:
            report(f"Resuming at step {done} of {learner.total_steps}.")
        trainer = build_trainer(
            config,
            folder,
            total_steps=learner.total_steps,
            steps_per_epoch=data.steps_per_epoch,
            validate=data.val_set is not None,
            done=done,
            report=report,
            callbacks=callbacks,
        )
        _train(trainer, learner, data, last if resume else None)
        return _finish(trainer, learner, data, folder, report)


def resume_step(config: TrainConfig, last: Path) -> int:
    """Returns the step of the checkpoint ``last``, after checking that it belongs to this configuration."""
    checkpoint = read_checkpoint(last)
    difference = first_difference(from_tree(checkpoint["alt"]["config"]), config)
    if difference is not None:
        raise UserError(f"{last} belongs to a run of another configuration: {difference}.")
    return int(checkpoint["global_step"])


def _open_folder(config: TrainConfig, folder: Path, last: Path, resume: bool) -> None:
    if last.exists() and not resume:
        raise UserError(f"{folder} already holds a run; go on with --resume, or name another folder with --out.")
    sweep(last)
    with write_errors(), replacing(folder / "config.yaml", "the configuration") as partial:
        partial.write_text(config.to_yaml(), encoding="utf-8")


def _train(trainer: Trainer, learner: VideoLearner, data: ClipData, resume_from: Path | None) -> None:
    """Runs the Trainer, and turns errors that the user can put right into one sentence."""
    try:
        run_trainer(trainer, learner, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except FloatingPointError as error:
        raise UserError(f"{error} Lower optim.lr, or train with trainer.precision=32-true.") from None
    except WriteError as error:
        raise WriteError(f"{error} Make room and go on with --resume.") from error.__cause__
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"Out of memory ({one_line(error)}); raise trainer.accumulate or set model.options.grad_checkpointing=true."
        ) from None
    except ClipError as error:
        raise UserError(f"{error}.") from None
    except OSError as error:
        raise UserError(f"Training stopped: {error.filename or ''} {error.strerror or one_line(error)}.") from error


def _finish(trainer: Trainer, learner: VideoLearner, data: ClipData, folder: Path, report: Say) -> RunResult:
    weights = model_file(folder)
    trainer.save_checkpoint(folder / LAST, weights_only=False)
    if trainer.is_global_zero:
        model = learner.model
        if learner.config.trainer.strategy == "fsdp":  # sharded here, whole in the checkpoint
            model = build_model(learner.config, learner.classes, data.world)
            state = read_checkpoint(folder / LAST)["state_dict"]
            model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        export(model, weights)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for line in data.describe_short():
        report(line)
    report(f"Wrote {weights}")
    return RunResult(folder, folder / LAST, weights, int(trainer.global_step), metrics)
