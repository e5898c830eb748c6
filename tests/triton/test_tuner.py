"""The search over configurations, with a clock that is told what each configuration takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alt_kernels.triton import launch_configs
from tools import tune as tuner
from tools.tune import Problem, Use, axis

FILE = {
    "default": [
        {"when": {"channels": 64}, "use": {"R": 4, "num_warps": 4}},
        {"when": {"channels": 512}, "use": {"R": 2, "num_warps": 8}},
    ]
}
AXES = [axis("R", 1, 2, 4, 8), axis("num_warps", 2, 4, 8)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(launch_configs, "CONFIGS", tmp_path)
    monkeypatch.setattr(launch_configs, "device_name", lambda: "default")  # also on a GPU that one of these tests names
    (tmp_path / "op.json").write_text(json.dumps(FILE))
    tuner.clear_caches()
    yield tmp_path
    monkeypatch.undo()
    tuner.clear_caches()


def used() -> Use:
    """Returns the configuration that a launch would take now."""
    return launch_configs.config("op", channels=64)


class Bench:
    """Runs and times by a formula: seconds of a configuration; ``broken`` raise, ``wrong`` give another result."""

    def __init__(
        self,
        seconds: Callable[[Use], float],
        *,
        broken: Callable[[Use], bool] = lambda _: False,
        wrong: Callable[[Use], bool] = lambda _: False,
    ) -> None:
        self.seconds, self.broken, self.wrong = seconds, broken, wrong
        self.contests: list[list[str]] = []

    def call(self) -> torch.Tensor:
        use = used()
        if self.broken(use):
            raise RuntimeError("out of resource: shared memory")
        self.last = self.seconds(use)
        return torch.full((8,), 2.0 if self.wrong(use) else 1.0)

    def timer(self, calls: Mapping[str, Sequence[Callable[[], Any]]]) -> dict[str, list[float]]:
        self.contests.append(list(calls))
        found = {}
        for name, several in calls.items():
            several[0]()
            found[name] = [self.last * drift for drift in (1.0, 3.0, 2.0)]  # the machine slows down and recovers
        return found

    def search(self, seconds: float = 1e9, clock: Callable[[], float] = lambda: 0.0) -> tuner.Search:
        problem = Problem("op", {"channels": 64}, [self.call], AXES)
        return tuner.search(problem, self.timer, seconds=seconds, clock=clock)


def test_the_best_is_found_along_the_axes(folder: Path) -> None:
    bench = Bench(lambda use: 1 + abs(use["R"] - 8) + abs(use["num_warps"] - 2) / 4)
    found = bench.search()
    assert found.use == {"R": 8, "num_warps": 2}
    assert found.default == {"R": 4, "num_warps": 4}
    assert found.after < found.before
    assert not found.stopped
    assert not found.failures
    assert bench.contests[0][0] == "incumbent"
    assert bench.contests[-1] == ["default", "best"], "the winner is held against the default once more"
    assert used() == found.default, "a search leaves no configuration behind"


def test_the_nearest_are_tried_first_and_compiled_at_once(folder: Path) -> None:
    """Before a sweep all of its configurations; after a better one is found, those of the axes that are left."""
    prepared: list[list[Use]] = []
    bench = Bench(lambda use: 1.0 / use["R"])
    problem = Problem("op", {"channels": 64}, [bench.call], AXES)
    found = tuner.search(
        problem, bench.timer, seconds=1e9, clock=lambda: 0.0, prepare=lambda _, uses: prepared.append(list(uses))
    )
    assert found.use["R"] == 8
    assert [use["R"] for use in prepared[0]] == [2, 8, 1, 4, 4], "R = 1 is further from 4 than 2 and 8 are"
    assert [use["num_warps"] for use in prepared[0]] == [4, 4, 4, 2, 8]
    assert prepared[0] == tuner.first_sweep(problem)[1:]
    assert prepared[1] == [{"R": 8, "num_warps": 2}, {"R": 8, "num_warps": 8}]
    assert [use for use, _ in found.tried][:3] == prepared[0][:3]


def test_noise_does_not_change_a_configuration(folder: Path) -> None:
    """1 % faster is not faster."""
    found = Bench(lambda use: 1.0 if use["R"] == 4 else 0.99).search()
    assert found.use == found.default
    assert tuner.entries([found]) == {}


def test_what_does_not_run_or_is_wrong_is_dropped(folder: Path) -> None:
    bench = Bench(lambda use: 1.0 / use["R"], broken=lambda use: use["R"] == 8, wrong=lambda use: use["num_warps"] == 8)
    found = bench.search()
    assert found.use == found.default, "8 would be the fastest"
    assert "R=8: RuntimeError" in found.failures
    assert "num_warps=8: another result" in found.failures
    assert all(use["R"] != 8 for use, _ in found.tried)


def test_a_spill_where_the_default_has_none_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "count_spills", lambda _: int(used()["R"] == 1))
    found = Bench(lambda use: float(use["R"])).search()
    assert found.use["R"] == 2
    assert "R=1: spills" in found.failures


def test_time_runs_out(folder: Path) -> None:
    """Measurements up to the time limit count, and the search says that it stopped."""
    now = iter(range(1000))
    bench = Bench(lambda use: float(use["R"]))
    found = bench.search(seconds=2.5, clock=lambda: float(next(now)))
    assert found.stopped
    assert found.use["R"] == 2, "the nearest, which was tried first"
    assert all("num_warps" not in name for names in bench.contests for name in names)


def test_no_candidate_is_tried_twice(folder: Path) -> None:
    bench = Bench(lambda use: float(use["R"] + use["num_warps"]))
    found = bench.search()
    keys = [tuple(use.items()) for use, _ in found.tried]
    assert len(keys) == len(set(keys))


def test_entries_are_stored_beside_the_default_and_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = launch_configs.load("op")["default"]
    listed = [{"when": {"channels": 64}, "use": {"R": 8, "num_warps": 2}}]
    tuner.store("op", "NVIDIA H200, sm_90", listed)
    assert launch_configs.load("op") == {"default": before, "NVIDIA H200, sm_90": listed}
    assert used() == before[0]["use"]
    monkeypatch.setattr(launch_configs, "device_name", lambda: "NVIDIA H200, sm_90")
    assert used() == listed[0]["use"]
    assert launch_configs.config("op", channels=512) == before[1]["use"], "what was not tuned is the default's"
    tuner.store("op", "NVIDIA H200, sm_90", [{"when": {"channels": 64}, "use": {"R": 1, "num_warps": 1}}])
    assert used() == {"R": 1, "num_warps": 1}
    assert len(launch_configs.load("op")["NVIDIA H200, sm_90"]) == 1


def test_a_bad_entry_leaves_the_file_alone(folder: Path) -> None:
    text = (folder / "op.json").read_text()
    with pytest.raises(ValueError, match=r"listed: op\.json: expected the fields"):
        tuner.store("op", "NVIDIA H200, sm_90", [{"when": {"channels": 64}, "use": {"R": 8}}])
    assert (folder / "op.json").read_text() == text
    with pytest.raises(ValueError, match="device: expected the name of a GPU, got 'default'"):
        tuner.store("op", "default", [])


def test_forced_configurations_end_with_their_block(folder: Path) -> None:
    def fails() -> None:
        with launch_configs.force_config("op", {"R": 16, "num_warps": 1}):
            assert used()["R"] == 16
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert used()["R"] == 4


@pytest.mark.parametrize(
    ("got", "want", "same"),
    [
        (torch.ones(4), torch.ones(4), True),
        (torch.ones(4), torch.ones(4) + 0.02, True),
        (torch.ones(4), torch.ones(4) + 0.1, False),
        (torch.tensor([1.0, torch.nan]), torch.ones(2), False),
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), True),
        (torch.arange(1000), torch.arange(1000).index_fill(0, torch.tensor([5]), 0), True),
        (torch.arange(10), torch.arange(10).index_fill(0, torch.tensor([5]), 0), False),
        ((torch.ones(2), torch.ones(3)), (torch.ones(2), torch.ones(2)), False),
    ],
)
def test_what_counts_as_the_same_result(got: Any, want: Any, same: bool) -> None:
    assert tuner.agrees(got, want) is same


@pytest.mark.parametrize("stem", sorted(path.stem for path in launch_configs.CONFIGS.glob("*.json")))
def test_axes_fit_every_default(stem: str) -> None:
    """Fields that the file has, values that the kernels take: powers of two, or 0 and 1 for switches."""
    prefixes = {
        "cosine_gumbel_assign": ("hard_", "soft_"),
        "cosine_gumbel_assign_backward": ("delta_", "rows_", "entities_", "values_"),
        "proportional_attention_backward": ("key_", "query_"),
    }.get(stem, ("",))
    for entry in launch_configs.load(stem)["default"]:
        for changes in tuner.axes_of(stem, entry["when"], prefixes):
            assert len(changes) > 1 or "resident" in changes[0]
            for change in changes:
                assert change.keys() <= entry["use"].keys()
                if not any(name.endswith(("programs", "stages")) for name in change):
                    assert all(value & (value - 1) == 0 for value in change.values())
    with pytest.raises(ValueError, match="no axes are known for 'nothing'"):
        tuner.axes_of("nothing", {})
