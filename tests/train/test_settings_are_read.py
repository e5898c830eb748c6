"""No setting that nobody reads: every field of a configuration is asked for while it is trained, tested and listed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from alt.cli import build_app
from alt.data.clips import write_clips
from alt.evaluate.execute import execute
from alt.train import config as module
from alt.train import fit, load_config
from alt.train.config import TrainConfig
from alt.train.data import ClipData

SECTIONS = [getattr(module, name) for name in dir(module) if name.endswith("Section")] + [TrainConfig]
FIELDS = {(section.__name__, field.name) for section in SECTIONS for field in dataclasses.fields(section)}
COPIERS = {"alt.train.config", "alt.validation"}  # check, copy and print settings, which is not to read them


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Fields that code of ours asks for from now on."""
    found: set[tuple[str, str]] = set()

    def watched(section: type) -> Any:
        def get(self: Any, name: str) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            # `length` belongs to the schedule and is its reader; replace() and pydantic are neither ours nor readers.
            own = caller == "alt.train.config" and sys._getframe(1).f_code.co_name == "length"
            if own or (caller.startswith("alt.") and caller not in COPIERS):
                found.add((section.__name__, name))
            return object.__getattribute__(self, name)

        return get

    for section in SECTIONS:
        monkeypatch.setattr(section, "__getattribute__", watched(section), raising=False)
    return found


def test_every_field_is_read(tmp_path: Path, reads: set[tuple[str, str]]) -> None:
    tiny = ["data.preset=tiny", "data.batch_size=4", "data.limit=4", "trainer.progress=false", "model.templates=none"]
    world = load_config("entity-world-cpu", [*tiny, "schedule={steps: 1, warmup_steps: 0}"])
    run = fit(world, tmp_path / "run", say=lambda line: None)
    fit(load_config("entity-world-maxi", [*tiny, "schedule={steps: 1, warmup_steps: 0}"]), tmp_path / "maxi", say=print)

    video = torch.zeros(2, 4, 3, 24, 24, dtype=torch.uint8)
    write_clips(tmp_path / "set", video, [0, 1], ["a", "b"], "npy").rename(tmp_path / "set" / "val.txt")
    lists = ["data.kind=frames", f"data.root={tmp_path / 'set'}", "data.train_list=val.txt", "data.val_list=val.txt"]
    cache = f"data.frame_cache={tmp_path / 'cache'}"
    ClipData(load_config("entity-world-cpu", [*tiny, *lists, "data.shots=1", cache]))

    unread = {name for section, name in FIELDS - reads if section == "EvaluationSection"}
    assert unread == {field.name for field in dataclasses.fields(module.EvaluationSection)}  # training reads none

    zero = ["evaluation={protocol: zero-shot, subset: 2, draws: 1}", "data.val_split=transfer-b-1"]
    execute(load_config("entity-world-cpu", [*tiny, *zero]), run.weights)
    probe = ["evaluation.protocol=linear-probe", "schedule={epochs: 1, warmup_epochs: 0}"]
    execute(load_config("entity-world-cpu", [*tiny, *probe]), run.weights)
    assert CliRunner().invoke(build_app(), ["train", "--list"]).exit_code == 0
    assert sorted(FIELDS - reads) == []
