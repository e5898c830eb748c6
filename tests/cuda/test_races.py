"""The emulated kernels under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer: see races.cpp."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from . import emulation

pytestmark = pytest.mark.slow

# GCC warns of its own sanitizers' temporaries.
QUIET = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")


def program(name: str, *flags: str) -> Path:
    return emulation.built(name, "-O1", "-g", *QUIET, *flags, str(emulation.HERE / "races.cpp"))


def run(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(path)], capture_output=True, text=True, check=False, timeout=1500, env={**os.environ, **environment}
    )


def test_no_thread_waits_for_nothing_and_none_races() -> None:
    """Within a block, within a warp and between blocks; results do not depend on the order of the threads."""
    done = run(program("tsan", "-fsanitize=thread"), TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert ", 0 failures" in done.stdout


def test_a_missing_barrier_is_found() -> None:
    path = program("tsan-without-barriers", "-fsanitize=thread", "-DALT_EMULATION_WITHOUT_BARRIERS")
    done = run(path, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode != 0
    assert "data race" in done.stderr
    assert ".cuh:" in done.stderr


def test_every_address_is_inside() -> None:
    done = run(program("asan", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert ", 0 failures" in done.stdout
