"""Training runs in processes of their own, which can be killed. A fork server has the slow imports behind it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue as queue_module
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

BASE = [
    "model.pretrained=null",
    "model.texts=random",
    "model.options.strategy=full",
    "model.options.layers=1",
    "data.preset=tiny",
    "data.batch_size=8",
    "data.limit=28",  # no multiple of the batch: steps run over the end of a turn
    "optim.lr=1e-3",
    "schedule.steps=8",
    "schedule.warmup_steps=2",
    "augmentation={flip: 0.5, crop_scales: [1, 0.875], color_jitter: 0.5, mixup: 0.8, cutmix: 1.0}",
    "trainer.checkpoint_every=1",
    "trainer.validate_every=1",
    "trainer.log_every=1",
]


class Killed(Exception):
    pass


def kill_at(step: int, place: str, number: int = signal.SIGKILL) -> Any:
    """A Lightning callback that sends its process a signal at a place of a step (counted from 0).

    SIGTERM goes to its loading processes too, as from SLURM.
    """
    from lightning.pytorch.callbacks import Callback

    class Kill(Callback):
        def _here(self, name: str, trainer: Any) -> None:
            if name == place and trainer.global_step == step:
                for child in multiprocessing.active_children() if number == signal.SIGTERM else ():
                    subprocess.run(["kill", f"-{number}", str(child.pid)], check=True)  # not from its parent
                os.kill(os.getpid(), number)

        def on_train_start(self, trainer: Any, *_: Any) -> None:
            self._here("start", trainer)

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            self._here("batch", trainer)

        def on_after_backward(self, trainer: Any, *_: Any) -> None:
            self._here("backward", trainer)

        def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
            self._here("optimizer", trainer)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.fit_loop._should_accumulate():  # between the parts of a step
                self._here("accumulation", trainer)

        def on_validation_start(self, trainer: Any, *_: Any) -> None:
            self._here("validation", trainer)

        def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
            self._here("saving", trainer)

    return Kill()


def train(
    folder: str,
    overrides: Sequence[str] = (),
    resume: bool = False,
    kill: tuple[int, str] | tuple[int, str, int] | None = None,
    source: str = "entity-world-cpu",
) -> dict[str, Any]:
    """A run; what it ended with as plain values."""
    from alt.train import fit, load_config

    torch.set_num_threads(1)
    config = load_config(source, [*BASE, *overrides])
    watchers = [kill_at(*kill)] if kill is not None else None
    result = fit(config, folder, resume=resume, say=lambda line: None, callbacks=watchers)
    return {"steps": result.steps, "metrics": result.metrics, "weights": str(result.weights)}


def gradients(
    folder: str, overrides: Sequence[str] = (), source: str = "entity-world-cpu", base: Sequence[str] = BASE
) -> dict[str, torch.Tensor]:
    """The gradients that the optimiser of the first step sees."""
    from lightning.pytorch.callbacks import Callback

    from alt.train import fit, load_config

    torch.set_num_threads(1)
    seen: dict[str, torch.Tensor] = {}

    class Stop(Callback):
        def on_before_optimizer_step(self, trainer: Any, learner: Any, *_: Any) -> None:
            for name, parameter in learner.model.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, name
                    seen[name] = parameter.grad.detach().clone()
            trainer.should_stop = True

    config = load_config(source, [*base, "schedule.steps=1", "schedule.warmup_steps=0", *overrides])
    fit(config, folder, say=lambda line: None, callbacks=[Stop()])
    return seen


def _entry(queue: Any, function: Callable[..., Any], environment: dict[str, str], args: Any, kwargs: Any) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of a user's, for the loading processes
    try:
        answer = function(*args, **kwargs)
    except BaseException as error:
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        queue.put(("error", f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None
    # a tensor in a queue is a handle of shared memory, which would end with this process
    queue.put(("done", pickle.dumps(answer)))


def context() -> Any:
    """The fork server; a process of it starts with everything imported."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.train.jobs", "alt.train.run", "open_clip", "alt.models.alt"])
    return found


def start(function: Callable[..., Any], *args: Any, environment: dict[str, str] | None = None, **kwargs: Any) -> Any:
    """Run in a new process; to be passed to :func:`finish`."""
    queue = context().Queue()
    process = context().Process(target=_entry, args=(queue, function, environment or {}, args, kwargs))
    process.start()
    return process, queue


def finish(started: Any, timeout: float = 300) -> Any:
    """What the function returned; :class:`Killed` where a signal ended its process."""
    process, queue = started
    while True:
        try:
            kind, answer = queue.get(timeout=0.2)
            break
        except queue_module.Empty:
            if not _exists(process.pid) and queue.empty():
                raise Killed(f"process {process.pid} is gone") from None
            timeout -= 0.2
            if timeout < 0:
                process.kill()
                raise TimeoutError("the process did not end") from None
    process.join(timeout=30)
    if process.is_alive():
        process.kill()
        raise TimeoutError("the process answered but did not end")
    if kind == "error":
        raise RuntimeError(answer)
    return pickle.loads(answer)


def _exists(pid: int) -> bool:
    """Asked of the system: a killed process's loading workers keep its sentinel open for a while."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return finish(start(function, *args, **kwargs))


def torchrun_environment(world: int) -> list[dict[str, str]]:
    """What torchrun sets for each of ``world`` processes of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def together(world: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """The function in ``world`` processes that see each other as torchrun would have them."""
    started = [start(function, *args, environment=env, **kwargs) for env in torchrun_environment(world)]
    return [finish(one) for one in started]


def parameters(folder: str | Path) -> dict[str, torch.Tensor]:
    """The model in a run's last checkpoint."""
    state = torch.load(Path(folder) / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return {name: value for name, value in state["state_dict"].items() if name.startswith("model.")}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
