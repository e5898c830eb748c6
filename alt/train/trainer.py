"""Lightning's Trainer, the only training loop of models: for a run with a folder, or for some steps in memory."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .checkpoint import LAST, AtomicCheckpointIO
from .config import TrainConfig
from .module import Learner
from .processes import choose_environment, choose_processes
from .sampler import SampleIndex, StepSampler
from .saving import KeepLast

Say = Callable[[str], None]


def build_trainer(
    config: TrainConfig, folder: Path, report: Say = lambda line: None, callbacks: list[Callback] | None = None
) -> Trainer:
    """Returns the Trainer of a run in ``folder``. It needs neither model nor data, and writes nothing yet.

    Args:
        config: the run. folder: gets the checkpoints. report: gets progress lines if there is no terminal.
        callbacks: further ones.

    Raises:
        UserError, ValueError: this machine cannot run it so.
    """
    settings = config.trainer
    bar = settings.progress and sys.stderr.isatty()
    watchers: list[Callback] = [
        KeepLast(folder / LAST),
        LearningRateMonitor(logging_interval="step"),
        *([TQDMProgressBar(refresh_rate=max(1, settings.log_every // 2))] if bar else [Lines(report)]),
        *(callbacks or []),
    ]
    return _make_trainer(
        **choose_processes(settings),
        accelerator=settings.accelerator,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optim.clip_norm,
        check_val_every_n_epoch=settings.validate_every or None,
        limit_val_batches=1.0 if settings.validate_every else 0,
        log_every_n_steps=settings.log_every,
        callbacks=watchers,
        plugins=[AtomicCheckpointIO(), *choose_environment()],
        enable_progress_bar=bar,
        default_root_dir=folder,
    )


def _make_trainer(**settings: Any) -> Trainer:
    with quiet():
        return Trainer(
            max_epochs=-1,
            logger=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
            gradient_clip_algorithm="norm",
            **settings,
        )


def run_trainer(trainer: Trainer, learner: Learner, **arguments: Any) -> None:
    """Runs ``trainer.fit`` without Lightning's remarks; Ctrl-C raises KeyboardInterrupt as usual."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    with quiet():
        try:
            trainer.fit_loop.epoch_loop.max_steps = learner.total_steps  # known now; Lightning's tuner sets it so too
            trainer.fit(learner, **arguments)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit status 1
                raise KeyboardInterrupt from None
            raise
        finally:
            if handler is not None:  # after one Ctrl-C, Lightning ignores all further ones
                signal.signal(signal.SIGINT, handler)


def run_steps(
    learner: Learner,
    take: Callable[[Tensor], Any],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    mixed_precision: bool = False,
    report: Callable[[int, Tensor], None] | None = None,
) -> float:
    """Trains for ``learner.total_steps`` on one device in this process, on data in memory; nothing is written.

    Args:
        learner: trained in place, on the CPU afterwards. Gradients are clipped at norm 1.
        take: makes a batch of the learner from sample numbers, int64 ``[B]`` on the CPU.
        samples: number of samples. batch_size: B, at most all of them. seed: of their order.
        device: "cpu" or a GPU. mixed_precision: bfloat16 autocast.
        report: called with (step, loss) after every step, counted from 0; the loss is a tensor, not yet read.

    Returns:
        Seconds from the start of the first step to the end of the last.
    """
    place, clock = torch.device(device), _Clock()
    gpu = place.type == "cuda"
    sampler = StepSampler(samples, min(batch_size, samples), seed=seed, start=lambda: trainer.global_step)
    loader: DataLoader[Any] = DataLoader(
        _Indices(),
        batch_sampler=sampler,
        collate_fn=lambda batch: take(torch.tensor([index.clip for index in batch])),
        generator=torch.Generator(),  # unused, but without it DataLoader would draw from the global one
    )
    with isolate_rng():
        trainer = _make_trainer(
            accelerator="gpu" if gpu else place.type,
            devices=[place.index or 0] if gpu else 1,
            plugins=[LightningEnvironment()],  # one process, whatever started us
            precision="bf16-mixed" if mixed_precision else "32-true",
            gradient_clip_val=1.0,
            limit_val_batches=0,
            callbacks=[clock] if report is None else [clock, _StepReport(report)],
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        run_trainer(trainer, learner, train_dataloaders=loader)
    return clock.seconds


class _Indices(Dataset[SampleIndex]):
    """Every index stands for itself."""

    def __getitem__(self, index: SampleIndex) -> SampleIndex:
        return index


class _Clock(Callback):
    """Measures the seconds from the first step to the end of the last."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, learner: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, learner: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.seconds = time.perf_counter() - self.began


class _StepReport(Callback):
    """Calls ``report(step, loss)`` after every step, counted from 0; the loss is a tensor, not yet read."""

    def __init__(self, report: Callable[[int, Tensor], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: Trainer, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.report(trainer.global_step - 1, outputs["loss"].detach())


class Lines(Callback):
    """Reports progress as occasional lines if there is no terminal."""

    def __init__(self, report: Say, lines: int = 20) -> None:
        self.report, self.lines, self.last = report, lines, -1

    def on_train_batch_end(self, trainer: Trainer, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, total = trainer.global_step, int(trainer.max_steps)
        if step not in (0, self.last) and step % max(1, total // self.lines) == 0:
            self.last = step
            loss = trainer.callback_metrics.get("train_loss")
            if loss is not None:
                self.report(f"step {step}/{total}  loss {float(loss):.4f}")

    def on_validation_end(self, trainer: Trainer, learner: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        self.report("  ".join([f"step {trainer.global_step}", *(f"{k} {v:.4f}" for k, v in values.items())]))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's remarks on devices, workers and intervals; we report what matters of them."""
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
