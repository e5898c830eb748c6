"""The cache of launches, in a process without the interpreter, which has no launches to remember."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import triton

from alt_kernels.triton.launch import VERSION

from .test_compiled import COMPILED, ROOT


@pytest.mark.skipif(not triton.__version__.startswith(VERSION), reason="other versions of Triton launch by themselves")
def test_launch_cache() -> None:
    environment = os.environ | COMPILED | {"ALT_KERNELS_DISABLE_CPP": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/triton/launch_cache.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
