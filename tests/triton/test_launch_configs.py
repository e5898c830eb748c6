"""The lookup of launch configurations, the files that are shipped, and the launchers that use them."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import alt_kernels  # noqa: F401  registers the ops
from alt_kernels import library
from alt_kernels.triton import launch_configs
from tools import aot, aot_case

STEMS = sorted(path.stem for path in launch_configs.CONFIGS.glob("*.json"))
TWO_GPUS = {
    "default": [
        {"when": {"channels": 64, "depth": 8}, "use": {"R": 1, "num_warps": 1}},
        {"when": {"channels": 1024, "depth": 8}, "use": {"R": 2, "num_warps": 1}},
        {"when": {"channels": 1024, "depth": 64}, "use": {"R": 3, "num_warps": 1}},
    ],
    "NVIDIA H200, sm_90": [{"when": {"channels": 512, "depth": 8}, "use": {"R": 9, "num_warps": 8}}],
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of configurations, and no memory of those read before."""

    def forget() -> None:
        for function in (launch_configs.load, launch_configs.device_name, launch_configs._config):
            function.cache_clear()

    monkeypatch.setattr(launch_configs, "CONFIGS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def write(folder: Path, content: Any, stem: str = "op") -> None:
    (folder / f"{stem}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("channels", "depth", "expected"),
    [
        (64, 8, 1),
        (1, 8, 1),  # smaller than all
        (255, 8, 1),  # nearest in the logarithm: 256 lies half-way between 64 and 1,024
        (257, 8, 2),
        (256, 8, 1),  # half-way: the first of the file
        (10**6, 8, 2),
        (1024, 22, 2),  # every size counts
        (1024, 23, 3),
        (1024, 10**5, 3),
        (0, 0, 1),
    ],
)
def test_the_nearest_entry_in_logarithms(files: Path, channels: int, depth: int, expected: int) -> None:
    write(files, TWO_GPUS)
    assert launch_configs.config("op", channels=channels, depth=depth) == {"R": expected, "num_warps": 1}


def test_the_gpu_before_the_default(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(files, TWO_GPUS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert launch_configs.config("op", channels=500, depth=8)["R"] == 9
    assert launch_configs.config("op", channels=64, depth=8)["R"] == 1, "what was not tuned there is the default's"
    launch_configs.device_name.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU that nobody tuned for")
    assert launch_configs.config("op", channels=500, depth=8)["R"] == 2


def test_a_caller_cannot_change_what_the_next_one_gets(files: Path) -> None:
    write(files, TWO_GPUS)
    with pytest.raises(TypeError, match="does not support item assignment"):
        launch_configs.config("op", channels=64, depth=8)["R"] = 77  # type: ignore[index]
    assert launch_configs.config("op", channels=64, depth=8)["R"] == 1


def test_shipped_lists_each_configuration_once(files: Path) -> None:
    same = {**TWO_GPUS, "another GPU, sm_80": TWO_GPUS["default"]}
    write(files, same)
    assert [(s.use["R"], s.targets) for s in aot_case.list_configs("op", channels=500, depth=8)] == [
        (2, ()),
        (9, (90,)),
    ]
    assert [(s.use["R"], s.targets) for s in aot_case.list_configs("op", channels=64, depth=8)] == [(1, ())]


def test_a_call_that_names_other_sizes(files: Path) -> None:
    write(files, TWO_GPUS)
    with pytest.raises(ValueError, match=r"sizes: expected \['channels', 'depth'\] for 'op', got \['channels'\]"):
        launch_configs.config("op", channels=64)
    with pytest.raises(ValueError, match=r"stem: expected one of \['op'\], got 'opp'"):
        launch_configs.config("opp", channels=64, depth=8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "at least one entry under 'default'"),
        ({"default": []}, "at least one entry under 'default'"),
        ({**TWO_GPUS, "NVIDIA H200": []}, "expected 'default', 'sm_90' or"),
        ({**TWO_GPUS, "NVIDIA H200, sm_90": []}, "at least one entry under 'NVIDIA H200, sm_90'"),
        (
            {**TWO_GPUS, "x, sm_90": [{"when": {"channels": 1}, "use": {"R": 1, "num_warps": 1}}]},
            r"expected the fields \['channels', 'depth'\] in every 'when', got \['channels'\] under 'x, sm_90'",
        ),
        (
            {**TWO_GPUS, "x, sm_90": [{"when": {"channels": 1, "depth": 1}, "use": {"R": 1}}]},
            r"expected the fields \['R', 'num_warps'\] in every 'use', got \['R'\] under 'x, sm_90'",
        ),
        (
            {"default": [{"when": {"channels": 1}, "use": {"R": 0.5}}]},
            "expected whole numbers >= 0 under 'default'",
        ),
    ],
)
def test_a_broken_file_is_named(files: Path, content: Any, sentence: str) -> None:
    write(files, content)
    with pytest.raises(ValueError, match=f"op.json: .*{sentence}"):
        launch_configs.load("op")


@pytest.mark.parametrize("stem", STEMS)
def test_every_shipped_file(stem: str) -> None:
    """Readable, warps a power of two up to 32, no two entries for the same sizes."""
    for entries in launch_configs.load(stem).values():
        sizes = [tuple(entry["when"].items()) for entry in entries]
        assert len(set(sizes)) == len(sizes)
        for entry in entries:
            for key, value in entry["use"].items():
                if key.endswith("warps") and (value or key == "num_warps"):  # 0: that kernel is not used there
                    assert value in (1, 2, 4, 8, 16, 32)
            assert launch_configs.nearest(entries, entry["when"]) == entry["use"]


@pytest.mark.parametrize("name", sorted(library.OPS))
def test_a_launcher_takes_what_its_op_takes(name: str) -> None:
    """Same name, same arguments in the same order: the dispatcher passes them by position."""
    modules = [importlib.import_module(f"alt_kernels.triton.{stem}") for stem in aot.modules()]
    launchers = {getattr(module, name) for module in modules if hasattr(module, name)}
    assert len(launchers) == 1
    schema = getattr(torch.ops.alt_kernels, name).default._schema
    assert list(inspect.signature(launchers.pop()).parameters) == [argument.name for argument in schema.arguments]
