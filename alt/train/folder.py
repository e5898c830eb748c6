"""The folder of a run: whether a run may start or go on in it, its configuration, and its metrics."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from alt.errors import UserError
from alt.files import replacing
from alt.validation import flatten

from .checkpoint import LAST, read_checkpoint, sweep, write_errors
from .config import TrainConfig, from_tree
from .processes import is_first_process

# Settings that a resumed run may change, because they do not affect its parameters. The checkpoint has embedded texts.
FREE_ON_RESUME = (
    "about", "model.texts", "data.workers", "data.root", "trainer.progress", "trainer.log_every",
    "trainer.checkpoint_every", "trainer.validate_every", "trainer.threads", "trainer.devices", "trainer.nodes",
    "trainer.strategy", "trainer.accelerator", "evaluation",
)  # fmt: skip


def find_step(config: TrainConfig, folder: Path, say: Callable[[str], None], *, resume: bool) -> int | None:
    """Returns the step at which a run goes on in ``folder``; None: it starts. Removes what a killed save left there.

    Raises:
        UserError: a run is there that is not to be resumed, or none that can be. The checkpoint is damaged, or belongs
            to another configuration.
    """
    last = folder / LAST
    if is_first_process():
        sweep(last)
    if not resume:
        if last.exists():
            raise UserError(f"{folder} already holds a run; go on with --resume, or name another folder with --out.")
        return None
    if not last.exists() and (folder / "config.yaml").exists():
        return None
    checkpoint = read_checkpoint(last, say)
    difference = first_difference(from_tree(checkpoint["alt"]["config"]), config)
    if difference is not None:
        raise UserError(f"{last} belongs to a run of another configuration: {difference}.")
    return int(checkpoint["global_step"])


def first_difference(old: TrainConfig, new: TrainConfig) -> str | None:
    """Returns a phrase on the first changed setting that a resumed run must keep, or None."""
    before, after = flatten(old), flatten(new)
    for key in [*before, *(k for k in after if k not in before)]:
        free = any(key == name or key.startswith(name + ".") for name in FREE_ON_RESUME)
        if not free and before.get(key) != after.get(key):
            return f"{key} was {before.get(key)!r} and is now {after.get(key)!r}"
    return None


def open_folder(config: TrainConfig, folder: Path, done: int = 0) -> list[Logger]:
    """Writes ``config.yaml`` and returns the loggers: of ``metrics.csv``, and of TensorBoard if it is installed.

    Args:
        config: the run. folder: its folder, which is created. done: steps of a resumed run, whose metrics are kept.

    Raises:
        WriteError: the folder cannot be written.
    """
    table = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    if is_first_process():
        with write_errors(), replacing(folder / "config.yaml", "the configuration") as partial:
            partial.write_text(config.to_yaml(), encoding="utf-8")
        earlier = _earlier_rows(folder / "metrics.csv", done)
        with warnings.catch_warnings():  # Lightning restarts the file; the rows before the checkpoint are restored
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
