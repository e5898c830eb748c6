"""Work that runs beside attention in a CUDA graph.

Matching needs a block's keys alone, and nothing needs its plan before attention is done. At small batches both are
short kernels that leave most of a GPU idle, so in a captured graph matching is a branch of its own. Launched one by
one they stay in line: there the host is the limit, and a second stream costs it more than matching takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["start"]

T = TypeVar("T")


def start(make: Callable[[], T]) -> Callable[[], T]:
    """Begins ``make()`` and returns what gives its result, to be called once, on the same stream.

    While a CUDA graph is captured, ``make`` runs on another stream until then. What it reads must exist before, and
    lives as long as ``make``. Everywhere else it runs at once.
    """
    if torch.compiler.is_compiling() or not _is_capturing():
        result = make()
        return lambda: result
    stream = torch.cuda.current_stream()
    side = _side_stream(stream.device.index)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        found = make()

    # ``make`` is kept: the allocator gives freed memory of the first stream away without asking the second. The other
    # way round is safe, because the second stream begins by waiting for all that the first has used.
    def finish(make: Callable[[], T] = make) -> T:
        stream.wait_stream(side)
        return found

    return finish


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
