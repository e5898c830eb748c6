"""The machine record: no host is named, a commit only where it is ours, the driver's silence is no error."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import alt_kernels
from alt.measure import describe_machine, is_busy, machine, machine_slug

IDENTITY = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")


def test_the_record_says_what_a_time_depends_on_and_names_no_host() -> None:
    record = describe_machine()
    assert record["threads"] == torch.get_num_threads()
    assert record["torch"] == torch.__version__
    assert record["alt_kernels"] == alt_kernels.__version__
    assert record["compiled_kernels"] == alt_kernels.backends()["cpp"].available
    assert set(record) >= {"cpu", "cores", "isa", "python", "numpy", "lightning", "open_clip_torch", "triton", "load"}
    text = json.dumps(record)
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert getpass.getuser() not in (record["cpu"], record["system"])


def test_threads_are_those_of_now() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert describe_machine()["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_slug_names_the_gpu_or_the_processor() -> None:
    assert machine_slug({"cpu": "AMD EPYC 9", "isa": "AVX512"}) == "cpu-amd-epyc-9-avx512"
    assert machine_slug({"cpu": "AMD EPYC 9", "isa": "AVX512", "gpu": "NVIDIA H200"}) == "nvidia-h200"


def test_the_commit_is_that_of_our_checkout_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *IDENTITY, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    unknown = {"commit": "unknown", "modified": None}
    assert machine.find_commit(tmp_path) == unknown
    file = tmp_path / "alt" / "measure" / "machine.py"
    file.parent.mkdir(parents=True)
    file.write_text("one")
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody else's repository, in which we are installed")
    assert machine.find_commit(tmp_path) == unknown
    git("add", "-A")
    git("commit", "-q", "-m", "ours")
    assert machine.find_commit(tmp_path) == {"commit": git("rev-parse", "--short=10", "HEAD"), "modified": False}
    file.write_text("two")
    assert machine.find_commit(tmp_path)["modified"] is True


def test_without_a_driver_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", absent)
    assert machine.query_driver(["driver_version"]) == []


def test_a_gpu_is_named_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(machine, "query_driver", lambda _: ["570.1"])
    record = describe_machine("cuda")
    assert (record["gpu"], record["capability"], record["driver"]) == ("NVIDIA H200", "9.0", "570.1")
    assert machine_slug(record) == "nvidia-h200"


@pytest.mark.parametrize(("load", "busy"), [(0.2, False), (1e6, True)])
def test_more_processes_than_cores_are_a_busy_machine(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert is_busy() is busy
