"""One training run: a folder with its configuration, checkpoints, logs and weights. It can resume from any step."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from alt.data.clips import ClipError
from alt.errors import Terminated, UserError, one_line
from alt.models.weights import model_file

from .build import build_model, build_with_encoder, check_files, export
from .checkpoint import LAST, WriteError, read_checkpoint
from .config import TrainConfig
from .data import ClipData
from .folder import Earlier, find_earlier, open_folder
from .lock import hold_folder
from .matching import open_bags
from .module import VideoLearner
from .optim import describe_groups
from .origin import describe_change, describe_origin
from .processes import is_first_process
from .saving import was_signalled
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
            SIGTERM or SIGUSR1, after one more checkpoint. The last checkpoint is whole in every case.
    """
    folder = Path(out) if out is not None else Path("runs") / config.name
    report: Say = say if is_first_process() else (lambda line: None)
    with hold_folder(folder, report), isolate_rng():
        earlier = find_earlier(config, folder, report, resume=resume)
        trainer = build_trainer(config, folder, report, callbacks)
        if config.trainer.threads is not None:
            torch.set_num_threads(config.trainer.threads)
        torch.manual_seed(config.seed)  # of new parameters; every step seeds itself
        data = ClipData(config)
        check_files(config)
        build = functools.cache(lambda: build_with_encoder(config, data.class_names, data.world, say=report))
        bags = None
        if config.task == "unlabelled":
            bags = open_bags(config, data, folder, report, resume=earlier is not None, build=build)
        origin = describe_origin(config, data, *(() if bags is None else (bags.file, bags.dictionary)))
        if earlier is not None:
            _check_origin(earlier, origin, folder, report)
            if earlier.step >= data.total_steps and model_file(folder).exists():  # else killed before it was written
                raise UserError(f"The run in {folder} is complete: its last checkpoint is of step {earlier.step}.")
        trainer.loggers = open_folder(config, folder, earlier)
        model, encoder = build()
        objective = None if bags is None else bags.make_objective(encoder, report)
        learner = VideoLearner(model, config, data.steps_per_epoch, objective)
        learner.record = {"origin": origin, "changes": [] if earlier is None else earlier.changes}
        report(f"{config.name}: {len(data.train_set)} clips, {data.total_steps} steps of {config.data.batch_size}")
        for line in describe_groups(learner.groups()):
            report(line)
        if earlier is not None:
            report(f"Resuming at step {earlier.step} of {data.total_steps}.")
        _train(trainer, learner, data, None if earlier is None else folder / LAST)
        return _finish(trainer, learner, data, folder, report)


def _check_origin(earlier: Earlier, origin: dict[str, Any], folder: Path, report: Say) -> None:
    """Compares what decides a run besides its configuration with what the checkpoint recorded."""
    if earlier.origin is None:
        report("The checkpoint does not record its clips, class names and corpus, so they are not compared.")
        return
    change = describe_change(earlier.origin, origin)
    if change is not None:
        raise UserError(f"{folder / LAST} belongs to a run of other data: {change}; put it back, or start anew.")


def _train(trainer: Trainer, learner: VideoLearner, data: ClipData, resume_from: Path | None) -> None:
    """Runs the Trainer, and turns errors that the user can put right into one sentence."""
    try:
        run_trainer(trainer, learner, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except FloatingPointError as error:
        raise UserError(f"{error} {_advise_after_divergence(trainer)}") from None
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"Out of memory ({one_line(error)}); raise trainer.accumulate or set model.options.grad_checkpointing=true."
        ) from None
    except ClipError as error:
        raise UserError(f"{error}.") from None
    except (WriteError, RuntimeError) as error:
        killed = _find_killed_loader(error)
        if killed is not None and was_signalled(trainer):  # before the loading process could ignore it
            raise Terminated("Terminated; go on from the last checkpoint with --resume.") from None
        if killed is not None:
            raise UserError(
                f"{one_line(killed)}; if memory ran out, lower data.workers. Go on with --resume."
            ) from error
        if isinstance(error, WriteError):
            raise WriteError(f"{error} Make room and go on with --resume.") from error.__cause__
        raise
    except OSError as error:
        raise UserError(f"Training stopped: {error.filename or ''} {error.strerror or one_line(error)}.") from error


def _find_killed_loader(error: BaseException | None) -> BaseException | None:
    """Returns PyTorch's error of a killed loading process. A signal raises it anywhere, also while a file is saved."""
    while error is not None and not str(error).startswith("DataLoader worker"):
        error = error.__cause__ or error.__context__
    return error


def _advise_after_divergence(trainer: Trainer) -> str:
    """Returns the sentence that helps. A float32 checkpoint of this very step is set aside: it would diverge again."""
    last = Path(trainer.default_root_dir) / LAST
    step = int(read_checkpoint(last)["global_step"]) if last.exists() else 0
    if not last.exists() or step < trainer.global_step:
        return f"Go on from step {step} with --resume and a lower optim.lr, or with trainer.precision=32-true."
    if trainer.precision != "32-true":
        return "The checkpoint is of this step: --resume with trainer.precision=32-true, or start anew with --out."
    if trainer.is_global_zero:
        last.replace(last.with_name("diverged.ckpt"))
    return "The checkpoint of this step is now diverged.ckpt: start at step 0 with --resume and a lower optim.lr."


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
    for line in data.describe_clips():
        report(line)
    report(f"Wrote {weights}")
    return RunResult(folder, folder / LAST, weights, int(trainer.global_step), metrics)
