"""The folder of a run: whether a run may start or go on in it, its configuration, and its metrics."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from alt.errors import UserError
from alt.files import replacing
from alt.validation import flatten

from .checkpoint import LAST, read_checkpoint, sweep, write_errors
from .config import TrainConfig, from_tree
from .processes import is_first_process

# Settings that a resumed run may change: its parameters do not depend on them (the checkpoint has embedded texts), or
# they are the cure of a run that diverged.
FREE_ON_RESUME = (
    "optim.lr", "trainer.precision", "about", "model.texts", "data.workers", "data.root", "data.frame_cache",
    "data.feature_cache", "data.cache_gib", "trainer.progress", "trainer.log_every", "trainer.checkpoint_every",
    "trainer.validate_every", "trainer.threads", "trainer.devices", "trainer.nodes", "trainer.strategy",
    "trainer.accelerator", "evaluation",
)  # fmt: skip


class Earlier(NamedTuple):
    """The run that another one goes on from. step: of its checkpoint. changes: a line per setting that has changed
    since it started. origin: see :mod:`alt.train.origin`, None in checkpoints of earlier versions."""

    step: int
    changes: list[str]
    origin: dict[str, Any] | None


def find_earlier(config: TrainConfig, folder: Path, say: Callable[[str], None], *, resume: bool) -> Earlier | None:
    """Returns the run that goes on in ``folder``; None: one starts. Removes what a killed save left there.

    Raises:
        UserError: a run is there that is not to be resumed, or none that can be. The checkpoint is damaged, or belongs
            to another configuration.
    """
    last = folder / LAST
    if is_first_process():
        sweep(last)
    foreign = next(folder.glob("hpc_ckpt_*.ckpt"), None)  # Lightning would go on from it, whatever its configuration
    if foreign is not None:
        raise UserError(
            f"{foreign} is of Lightning's own requeueing, which is off: move it away, or name another --out."
        )
    if not resume:
        if last.exists():
            raise UserError(f"{folder} already holds a run; go on with --resume, or name another folder with --out.")
        return None
    if not last.exists():
        ended = (folder / "config.yaml").exists()
        reason = (
            f"The run in {folder} ended before its first checkpoint" if ended else f"There is no run in {folder} yet"
        )
        say(f"{reason}; it starts at step 0.")
        return None
    checkpoint = read_checkpoint(last, say)
    old, step = from_tree(checkpoint["alt"]["config"]), int(checkpoint["global_step"])
    difference = first_difference(old, config)
    if difference is not None:
        raise UserError(f"{last} belongs to a run of another configuration: {difference}.")
    new = [f"from step {step}: {change}" for change in _differences(old, config).values()]
    for line in new:
        say(line[0].upper() + line[1:])
    return Earlier(step, [*checkpoint["alt"].get("changes", []), *new], checkpoint["alt"].get("origin"))


def first_difference(old: TrainConfig, new: TrainConfig) -> str | None:
    """Returns a phrase on the first changed setting that a resumed run must keep, or None."""
    return next((phrase for key, phrase in _differences(old, new).items() if not _is_free(key)), None)


def _is_free(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in FREE_ON_RESUME)


def _differences(old: TrainConfig, new: TrainConfig) -> dict[str, str]:
    """Returns a phrase for every setting that has changed, by its name."""
    before, after = flatten(old), flatten(new)
    return {
        key: f"{key} was {before.get(key)!r} and is now {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def open_folder(config: TrainConfig, folder: Path, earlier: Earlier | None = None) -> list[Logger]:
    """Writes ``config.yaml`` and returns the loggers: of ``metrics.csv``, and of TensorBoard if it is installed.

    Args:
        config: the run. folder: its folder, which is created. earlier: the run it goes on from, whose metrics are
            kept; its changes are comments in ``config.yaml``.

    Raises:
        WriteError: the folder cannot be written.
    """
    done, changes = (0, []) if earlier is None else (earlier.step, earlier.changes)
    table = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    if is_first_process():
        with write_errors(), replacing(folder / "config.yaml", "the configuration") as partial:
            partial.write_text(config.to_yaml() + "".join(f"# {line}\n" for line in changes), encoding="utf-8")
        rows = _earlier_rows(folder / "metrics.csv", done)
        with warnings.catch_warnings():  # Lightning restarts the file; the rows before the checkpoint are restored
            warnings.simplefilter("ignore")
            writer = table.experiment
        writer.metrics.extend(rows)
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
