"""One training run: a folder with its configuration, checkpoints, logs and weights; killed at any step it goes on."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng

from alt.data.clips import ClipError
from alt.errors import UserError, one_line
from alt.files import replacing

from .build import build_model, export
from .checkpoint import LAST, AtomicCheckpointIO, WriteError, read_checkpoint, sweep, write_errors
from .config import TrainConfig, first_difference, from_tree
from .data import ClipData
from .module import VideoLearner
from .sources import open_sources
from .strategy import cluster, is_first_process, make_strategy

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What a finished run left. ``metrics``: the last values logged, ``steps``: optimiser steps of the whole run."""

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
    """Trains a model; the global random state is afterwards as before.

    The folder (``runs/<name>`` without ``out``) gets ``config.yaml``, ``checkpoints/last.ckpt``, ``metrics.csv``,
    TensorBoard's files where it is installed, and in the end ``model.safetensors``.

    Args:
        config: the run. out: its folder. resume: go on from the folder's last checkpoint.
        say: receives lines for the user, from the first process only. callbacks: further ones for Lightning.

    Raises:
        UserError: one sentence, for whatever the user can put right. KeyboardInterrupt: Ctrl-C; the last checkpoint is
            whole in both cases.
    """
    folder = Path(out) if out is not None else Path("runs") / config.name
    first = is_first_process()
    report: Say = say if first else (lambda line: None)
    last = folder / LAST
    if resume and not last.exists() and (folder / "config.yaml").exists():
        report(f"The run in {folder} ended before its first checkpoint; it starts at step 0.")
        resume = False
    done = resume_step(config, last) if resume else 0
    if first:
        _open_folder(config, folder, last, resume)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    with isolate_rng():
        torch.manual_seed(config.seed)  # of new parameters; every step seeds itself
        return _fit(config, folder, last if resume else None, done, report, callbacks)


def _fit(
    config: TrainConfig,
    folder: Path,
    resume_from: Path | None,
    done: int,
    report: Say,
    callbacks: list[Callback] | None,
) -> RunResult:
    sources = open_sources(config)
    data = ClipData(config, sources)
    model = build_model(config, data.class_names, sources.world, say=report)
    learner = VideoLearner(model, config, data.steps_per_epoch)
    if done >= learner.total_steps:
        raise UserError(f"The run in {folder} is complete: its last checkpoint is of step {done}.")
    report(f"{config.name}: {len(data.train_set)} clips, {learner.total_steps} steps of {config.data.batch_size}")
    for line in learner.group_lines():
        report(line)
    if done:
        report(f"Resuming at step {done} of {learner.total_steps}.")

    trainer = build_trainer(config, folder, learner, data, done, report, callbacks)
    _run(trainer, learner, data, resume_from)
    return _finish(trainer, learner, data, folder, report)


def resume_step(config: TrainConfig, last: Path) -> int:
    """The step of the checkpoint ``last``, after checking that it belongs to this configuration."""
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


def build_trainer(
    config: TrainConfig,
    folder: Path,
    learner: VideoLearner,
    data: ClipData,
    done: int = 0,
    report: Say = lambda line: None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """Lightning's trainer for a run."""
    settings = config.trainer
    devices, nodes = cluster(settings)
    every = settings.checkpoint_every or data.steps_per_epoch
    folder.mkdir(parents=True, exist_ok=True)
    bar = settings.progress and sys.stderr.isatty()
    watchers: list[Callback] = [
        ModelCheckpoint(
            dirpath=folder / LAST.parent,
            every_n_train_steps=min(every, learner.total_steps),
            save_top_k=0,
            save_last=True,
            enable_version_counter=False,
        ),
        LearningRateMonitor(logging_interval="step"),
        *([TQDMProgressBar(refresh_rate=max(1, settings.log_every // 2))] if bar else [Lines(report)]),
        *(callbacks or []),
    ]
    with quiet():
        return Trainer(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=make_strategy(settings, devices, nodes),
            precision=settings.precision,
            max_steps=learner.total_steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=config.optim.clip_norm,
            gradient_clip_algorithm="norm" if config.optim.clip_norm is not None else None,
            check_val_every_n_epoch=settings.validate_every or None,
            limit_val_batches=1.0 if settings.validate_every and data.val_set is not None else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=settings.log_every,
            logger=_loggers(folder, done),
            callbacks=watchers,
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=bar,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )


class Lines(Callback):
    """Progress where there is no terminal: a line now and then."""

    def __init__(self, report: Say, lines: int = 20) -> None:
        self.report, self.lines, self.told = report, lines, -1

    def on_train_batch_end(self, trainer: Trainer, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, total = trainer.global_step, int(trainer.max_steps)
        if step not in (0, self.told) and step % max(1, total // self.lines) == 0:
            self.told = step
            loss = trainer.callback_metrics.get("train_loss")
            if loss is not None:
                self.report(f"step {step}/{total}  loss {float(loss):.4f}")

    def on_validation_end(self, trainer: Trainer, learner: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        self.report("  ".join([f"step {trainer.global_step}", *(f"{k} {v:.4f}" for k, v in values.items())]))


def _loggers(folder: Path, done: int) -> list[Logger]:
    table = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    earlier = _earlier_rows(folder / "metrics.csv", done)
    if is_first_process():
        with warnings.catch_warnings():  # Lightning starts the file anew; the rows before the checkpoint go back in
            warnings.simplefilter("ignore")
            writer = table.experiment
        writer.metrics.extend(earlier)
        writer.save()
    loggers: list[Logger] = [table]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    return loggers


def _earlier_rows(path: Path, done: int) -> list[dict[str, Any]]:
    if not done or not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < done]


def _run(trainer: Trainer, learner: VideoLearner, data: ClipData, resume_from: Path | None) -> None:
    with quiet():
        try:
            trainer.fit(learner, datamodule=data, ckpt_path=resume_from, weights_only=True)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit status 1
                raise KeyboardInterrupt from None
            raise
        except FloatingPointError as error:
            raise UserError(f"{error} Lower optim.lr, or train with trainer.precision=32-true.") from None
        except WriteError as error:
            raise WriteError(f"{error} Make room and go on with --resume.") from error.__cause__
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Out of memory ({one_line(error)}); raise trainer.accumulate or set "
                "model.options.grad_checkpointing=true."
            ) from None
        except ClipError as error:
            raise UserError(f"{error}.") from None
        except OSError as error:
            raise UserError(f"Training stopped: {error.filename or ''} {error.strerror or one_line(error)}.") from error


def _finish(trainer: Trainer, learner: VideoLearner, data: ClipData, folder: Path, report: Say) -> RunResult:
    weights = folder / "model.safetensors"
    trainer.save_checkpoint(folder / LAST, weights_only=False)
    if trainer.is_global_zero:
        model = learner.model
        if learner.config.trainer.strategy == "fsdp":  # sharded here, whole in the checkpoint
            model = build_model(learner.config, learner.classes, data.sources.world)
            state = read_checkpoint(folder / LAST)["state_dict"]
            model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        export(model, weights)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for line in data.describe_short():
        report(line)
    report(f"Wrote {weights}")
    return RunResult(folder, folder / LAST, weights, int(trainer.global_step), metrics)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's remarks on devices, workers and intervals: what matters of them we say ourselves."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
