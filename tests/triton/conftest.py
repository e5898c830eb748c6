"""The Triton kernels on CPU tensors through Triton's interpreter, or on the GPU with ALT_KERNELS_TEST_DEVICE=cuda.

``TRITON_INTERPRET=1`` is set by tests/conftest.py, because Triton reads it at its first import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
from torch import Tensor

DEVICE = os.environ.get("ALT_KERNELS_TEST_DEVICE", "cpu")
GUARD = 64  # elements on either side of a result

if DEVICE == "cpu":
    from . import interpreter, interpreter_speed

    interpreter.install()
    interpreter_speed.install()


@pytest.fixture
def device() -> torch.device:
    """The device of the tensors of these tests: the CPU under the interpreter, else the GPU."""
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Infinities and NaN raise no warning on a GPU; the interpreter computes with NumPy, which warns."""
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every result that a launcher allocates starts as NaN (the largest integer) and lies between guards of the same.

    A kernel that leaves an element out shows NaN; one that writes beside its result fails the test when it ends.
    """
    buffers: list[Tensor] = []

    def inside(like: Tensor) -> Tensor:
        """A tensor of ``like``'s shape, strides and dtype in the middle of a filled buffer."""
        if like.numel() == 0:
            return like
        filler = torch.nan if like.is_floating_point() else torch.iinfo(like.dtype).max
        buffer = torch.full((like.numel() + 2 * GUARD,), filler, dtype=like.dtype, device=like.device)
        buffers.append(buffer)
        return buffer.as_strided(like.shape, like.stride(), GUARD)

    def replaced(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: inside(original(*args, **kwargs))

    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, replaced(getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch, "empty", replaced(torch.empty))
    monkeypatch.setattr(torch, "empty_like", replaced(torch.empty_like))
    yield
    monkeypatch.undo()
    for buffer in buffers:
        for guard in (buffer[:GUARD], buffer[-GUARD:]):
            whole = guard.isnan() if guard.is_floating_point() else guard == torch.iinfo(guard.dtype).max
            assert whole.all(), f"written beside a result of {buffer.numel() - 2 * GUARD} elements of {buffer.dtype}"
