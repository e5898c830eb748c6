"""What only a device shows, on the device that ALT_KERNELS_TEST_DEVICE names.

On a CPU the same tests run through the CPU's kernels with small shapes, so that a machine with a GPU finds no mistake
of the tests themselves; what a CPU has no counterpart of is marked ``gpu``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import alt_kernels

DEVICE = os.environ.get("ALT_KERNELS_TEST_DEVICE", "cpu")
IMPLEMENTATIONS = ("triton", "cuda") if DEVICE == "cuda" else ("auto",)


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's convolutions, a tower's patch embedding, round float32 to TF32 unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def gigabytes_go_back() -> Iterator[None]:
    """What a large test took goes back to the other processes of the run on the same GPU."""
    yield
    if DEVICE == "cuda" and torch.cuda.memory_reserved() > 2**30:
        torch.cuda.empty_cache()


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> str:
    """Each implementation of this device; a missing one is skipped with the reason that ``backends()`` gives."""
    if request.param != "auto":
        backend = alt_kernels.backends()[request.param]
        if not backend.available:
            pytest.skip(backend.reason)
    return request.param
