"""Places where the kernels of csrc/cuda run: emulated on CPU tensors, and the GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

import alt_kernels

from . import emulation


class Place(NamedTuple):
    """Ops by name, and where their tensors live."""

    ops: Any
    device: torch.device
    emulated: bool


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "emulated":
        emulation.library()
        return Place(getattr(torch.ops, emulation.NAMESPACE), torch.device("cpu"), True)
    available, reason = alt_kernels.backends()["cuda"]
    assert available, reason  # a machine with a GPU whose library is missing is no success
    return Place(torch.ops.alt_kernels, torch.device("cuda"), False)


@pytest.fixture(params=[0, 1, 7], ids=["ascending", "descending", "shuffled"])
def order(request: pytest.FixtureRequest) -> Iterator[int]:
    """The order in which the threads of an emulated block take turns."""
    emulation.library().alt_emulation_order(request.param)
    yield request.param
    emulation.library().alt_emulation_order(0)
