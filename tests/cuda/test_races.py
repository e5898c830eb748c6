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


def run(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(path), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
        env={**os.environ, **environment},
    )


def barriers() -> list[tuple[str, str]]:
    """File and line of every barrier of a block."""
    return [
        (path.name, str(number))
        for path in sorted(emulation.SOURCES.glob("*.cuh"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "sync_block();" in line
    ]


def test_no_thread_waits_for_nothing_and_none_races() -> None:
    """Within a block, within a warp and between blocks; results do not depend on the order of the threads."""
    done = run(program("tsan", "-fsanitize=thread"), TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert ", 0 failures" in done.stdout


def found_race(*arguments: str) -> None:
    done = run(program("tsan", "-fsanitize=thread"), *arguments, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode != 0, f"nothing found without {arguments}"
    assert "data race" in done.stderr


@pytest.mark.parametrize(("file", "line"), barriers())
def test_each_barrier_is_needed_and_would_be_missed(file: str, line: str) -> None:
    found_race(file, line)


def test_a_shuffle_is_no_barrier() -> None:
    """Lanes of a warp that share memory without one: harmless wherever they run in step, so no run would show it."""
    found_race("shuffle")


def test_every_address_is_inside() -> None:
    done = run(program("asan", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert ", 0 failures" in done.stdout
