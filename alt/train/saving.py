"""When a run is saved: every few steps, and once more on SIGTERM or SIGUSR1, which schedulers send before they kill."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from alt.errors import Terminated

__all__ = ["KeepLast", "was_signalled"]


class KeepLast(Checkpoint):
    """Writes the last checkpoint every few steps. SIGTERM and SIGUSR1 end the run with one more, for --resume.

    The current step is finished first, so the checkpoint is like any other. A running validation is abandoned if the
    last checkpoint is of the step before it, and finished otherwise. If one process receives the signal, all stop
    together. Lightning's own handler would stop without a checkpoint and with exit status 0.

    Args:
        path: the file to write. The learner's ``checkpoint_every`` is the number of steps between checkpoints.

    Raises:
        Terminated: at the end of the step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received = False
        self._step = self._saved = -1

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def on_train_start(self, trainer: Trainer, learner: Any) -> None:
        self._step = trainer.global_step
        self.received = trainer.received_sigterm  # while the Trainer got ready: it would stop without a checkpoint
        trainer._signal_connector.received_sigterm = False
        if threading.current_thread() is threading.main_thread():  # the only one that may
            for number in (signal.SIGTERM, signal.SIGUSR1):  # Lightning puts back what was there before it
                signal.signal(number, self._remember)

    def on_save_checkpoint(self, trainer: Trainer, learner: Any, checkpoint: dict[str, Any]) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, learner: Any, *_: Any) -> None:
        if trainer.global_step == self._step:  # between the parts of a step
            return
        self._step = trainer.global_step
        stop = self._stop_wanted(trainer)
        if stop or self._step % learner.checkpoint_every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)
        if stop:
            self._stop()

    def on_validation_batch_end(self, trainer: Trainer, learner: Any, *_: Any) -> None:
        if self._stop_wanted(trainer) and self._saved == trainer.global_step:
            self._stop()

    def _stop_wanted(self, trainer: Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(self.received, all=False))

    def _stop(self) -> None:
        raise Terminated(f"Terminated; the checkpoint is of step {self._saved}, go on from it with --resume.")


def was_signalled(trainer: Trainer) -> bool:
    """Returns True if this process was told to end its run."""
    return any(isinstance(callback, KeepLast) and callback.received for callback in trainer.callbacks)  # type: ignore[attr-defined]
