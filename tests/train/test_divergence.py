"""Advice that can be followed: after a loss that is not finite, and after a loading process was killed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alt.errors import UserError
from alt.train import run
from alt.train.checkpoint import LAST, AtomicCheckpointIO


def advice(folder: Path, step: int, saved: int | None, precision: str = "32-true", error: Any = None) -> str:
    """What a run says that ends at a step, its last checkpoint being of another."""
    if saved is not None:
        content = {"alt": {"config": {}}, "global_step": saved}
        AtomicCheckpointIO().save_checkpoint(content, folder / LAST)

    def fail(*_: Any, **__: Any) -> None:
        raise error or FloatingPointError(f"The loss became nan at step {step}.")

    trainer = SimpleNamespace(
        default_root_dir=folder, global_step=step, precision=precision, is_global_zero=True, callbacks=[]
    )
    before, run.run_trainer = run.run_trainer, fail
    try:
        with pytest.raises(UserError) as told:
            run._train(trainer, None, None, None)  # type: ignore[arg-type]
    finally:
        run.run_trainer = before
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("saved", "precision", "says", "kept"),
    [
        (4, "32-true", "Go on from step 4 with --resume and a lower optim.lr", True),
        (None, "32-true", "Go on from step 0 with --resume and a lower optim.lr", False),
        (6, "bf16-mixed", "--resume with trainer.precision=32-true, or start anew", True),
        (6, "32-true", "now diverged.ckpt: start at step 0 with --resume", False),
    ],
)
def test_advice_after_a_loss_that_is_not_finite(
    tmp_path: Path, saved: int | None, precision: str, says: str, kept: bool
) -> None:
    """Kind: advice that is refused when it is followed, or that leads to the same error."""
    said = advice(tmp_path, 6, saved, precision)
    assert said.startswith("The loss became nan at step 6. ")
    assert says in said
    assert (tmp_path / LAST).exists() == kept


def test_a_killed_loading_process_is_one_sentence(tmp_path: Path) -> None:
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    said = advice(tmp_path, 6, 4, error=killed)
    assert said.startswith("DataLoader worker (pid 7) is killed by signal: Killed; if memory")
    while_saving = RuntimeError("unexpected pos 64 vs 0")  # the signal came while torch wrote the checkpoint
    while_saving.__context__ = killed
    assert advice(tmp_path, 6, 4, error=while_saving) == said
    with pytest.raises(RuntimeError, match="something else"):
        advice(tmp_path, 6, 4, error=RuntimeError("something else"))
