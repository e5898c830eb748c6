"""Compiled kernels without a GPU: PTX of sm_80 and sm_90, emulated, against float64; accesses and races are checked.

What the emulator of ``tests/ptx`` raises on fails a test here: an access beside the arguments or at an address that its
width does not allow, a race in shared memory, an element stored twice, a barrier that some threads miss. The cases are
those of ``compiled.py``, in processes of their own, since this one has Triton's interpreter in the compiler's place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("merge", "norm", "matching", "attention", "assignment")


#: On a GPU machine, too, these tests work on CPU tensors.
COMPILED = {"TRITON_INTERPRET": "0", "ALT_KERNELS_TEST_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}


def emulate(folder: Path, *arguments: str, timeout: int = 1500, **extra: str) -> str:
    """Run the cases in a process whose launches are emulated; its report."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)} | COMPILED
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ptx.plugin", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | extra, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def emulated(report: str) -> set[str]:
    """Names of the kernels that ran."""
    return {line.split()[1].rstrip(":") for line in report.splitlines() if line.startswith("emulated ")}


def test_every_kernel_on_compiled_code(tmp_path: Path) -> None:
    from tools import aot

    report = emulate(tmp_path, "tests/triton/compiled.py")
    kernels = {case.kernel.__name__ for stem in aot.modules() for case in aot.cases(stem)}
    assert kernels - emulated(report) == set()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_on_compiled_code(family: str, target: str, tmp_path: Path) -> None:
    """On sm_90 products of halves are wgmma, whose operands lie swizzled in shared memory."""
    chosen = ("tests/triton/compiled.py", "-k", f"test_{family}")
    emulate(tmp_path, *chosen, ALT_KERNELS_PTX_EVERY="1", ALT_KERNELS_PTX_TARGET=target)


@pytest.mark.slow
def test_tolerances_leave_room_for_approximate_instructions(tmp_path: Path) -> None:
    """The same bounds with every approximation as wrong as documented, and sums of matrix products truncated."""
    emulate(tmp_path, "tests/triton/compiled.py", ALT_KERNELS_PTX_PESSIMISM="1")


@pytest.mark.slow
def test_every_kernel_compiled_ahead_of_time_is_understood(tmp_path: Path) -> None:
    """No shipped configuration uses an instruction that the emulator lacks."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)} | COMPILED
    command = [sys.executable, "-m", "tests.ptx.launch"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
