"""The Triton kernels on CPU tensors through Triton's interpreter, or on the GPU with ALT_KERNELS_TEST_DEVICE=cuda.

``TRITON_INTERPRET=1`` is set by tests/conftest.py, because Triton reads it at its first import.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("ALT_KERNELS_TEST_DEVICE", "cpu")

if DEVICE == "cpu":
    from . import interpreter

    interpreter.install()


@pytest.fixture
def device() -> torch.device:
    """Where the tensors of these tests live: the CPU under the interpreter, else the GPU."""
    return torch.device(DEVICE)
