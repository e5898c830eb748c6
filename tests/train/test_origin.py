"""What a resumed run must find again is refused by name; a learning rate may change, and takes effect."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from alt.corpus import Corpus
from alt.data.clips import write_clips
from alt.train import load_config
from alt.train.data import ClipData
from alt.train.optim import build_optimizer, build_schedule, scale_rates
from alt.train.origin import describe_change, describe_origin

from . import jobs


def origin(root: Path, *changes: str) -> dict[str, Any]:
    lists = ["data.kind=frames", f"data.root={root}", "data.train_list=list.txt", "data.val_list=val.txt"]
    files = [f"model.corpus={root / 'corpus.json'}", "data.batch_size=2", "schedule={epochs: 3, warmup_epochs: 1}"]
    config = load_config("entity-world-cpu", [*lists, *files, *changes])
    return describe_origin(config, ClipData(config))


def make(root: Path) -> Path:
    write_clips(root, torch.zeros(6, 2, 3, 8, 8, dtype=torch.uint8), [0, 1, 2, 0, 1, 2], ["a", "b", "c"], "npy")
    (root / "val.txt").write_text((root / "list.txt").read_text())
    Corpus.from_labels(["cup", "box"]).save(root / "corpus.json")
    return root


def test_moved_data_are_the_same(tmp_path: Path) -> None:
    before = origin(make(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    assert describe_change(before, origin(tmp_path / "two")) is None


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("list.txt", "clips/000005.npy 2\n", "", "the clips of list.txt: 6 before, 5 now"),
        ("list.txt", "clips/000005.npy 2", "clips/000005.npy 1", "the clips of list.txt: not the same, or in another"),
        ("list.txt", "clips/000005.npy 2", "clips/000002.npy 2", "the clips of list.txt: not the same, or in another"),
        ("val.txt", "clips/000000.npy 0\n", "", "the clips of val.txt: 6 before, 5 now"),
        (
            "labels.csv",
            "1,b",
            "1,bat",
            "the class names: not the same, or in another order, first 'b', which is now",
        ),
        ("labels.csv", "2,c", "2,c\r\n3,d", "the class names: 3 before, 4 now"),
        ("corpus.json", '"cup"', '"cap"', "the corpus: not the same, or in another order"),
    ],
)
def test_a_change_is_named(tmp_path: Path, file: str, old: str, new: str, says: str) -> None:
    """Kind: a run that goes on with other data than it began with, without a word."""
    before = origin(make(tmp_path))
    content = (tmp_path / file).read_bytes().decode()
    assert old in content
    (tmp_path / file).write_bytes(content.replace(old, new).encode())
    assert str(describe_change(before, origin(tmp_path))).startswith(says)


def test_another_length_of_the_schedule_is_named(tmp_path: Path) -> None:
    before = origin(make(tmp_path))
    now = origin(tmp_path, "schedule.epochs=4")
    assert describe_change(before, now) == "the length of the schedule: 9 before, 12 now"


def test_generated_clips_are_compared() -> None:
    def of(*changes: str) -> dict[str, Any]:
        config = load_config("entity-world-cpu", ["data.preset=tiny", *changes])
        return describe_origin(config, ClipData(config))

    assert describe_change(of(), of()) is None
    assert str(describe_change(of("data.limit=8"), of("data.limit=9"))).endswith(": 8 before, 9 now")


def test_scaled_rates_are_those_of_a_run_that_began_with_them() -> None:
    def start(lr: float) -> tuple[torch.optim.Optimizer, Any]:
        groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (lr, 10 * lr)]
        optimizer = build_optimizer(groups, load_config("entity-world-cpu").optim)
        return optimizer, build_schedule(optimizer, 9, 2, 0.01)

    def step(optimizer: torch.optim.Optimizer, schedule: Any) -> list[float]:
        optimizer.step()
        schedule.step()
        return [float(group["lr"]) for group in optimizer.param_groups]

    old, new, resumed = start(0.5), start(2e-3), start(2e-3)
    for _ in range(4):
        step(*old)
        step(*new)
    states = old[0].state_dict(), old[1].state_dict()
    scale_rates([states[0]], [states[1]], 2e-3 / 0.5)
    resumed[0].load_state_dict(states[0])
    resumed[1].load_state_dict(states[1])
    for _ in range(4):
        assert step(*resumed) == pytest.approx(step(*new), rel=1e-12)


@pytest.mark.slow
def test_a_resumed_run_takes_another_learning_rate_and_records_it(tmp_path: Path) -> None:
    with pytest.raises(jobs.Killed):
        jobs.run(jobs.train, str(tmp_path), kill=(4, "backward"))
    changes = ["optim.lr=1e-5", "trainer.precision=32-true"]
    assert jobs.run(jobs.train, str(tmp_path), changes, resume=True)["steps"] == 8
    line = "from step 4: optim.lr was 0.001 and is now 1e-05"
    assert f"# {line}\n" in (tmp_path / "config.yaml").read_text()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert line in last["alt"]["changes"]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = next(key for key in rows[0] if key.endswith("backbone/decay"))
    rates = [float(row[column]) for row in rows if row[column]]
    assert max(rates[:4]) > 5e-4
    assert max(rates[4:]) <= 1e-5
