"""Capturing calls in a CUDA graph, so that a failure stays where it happened.

A call that a capture forbids (a value read on the host, memory from the system) invalidates the capture; then
`torch.cuda.graph` does not get to its end: the capture's stream stays the current one, the allocator still waits for
the end of the pool, and the device's random generator refuses to draw, as if it were captured still. What comes
after would be measured wrong, or not at all. Here all three are put right, and the failure is raised.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import torch


def capture(run: Callable[[], object], device: torch.device) -> Callable[[], Any]:
    """A replay of ``run``, which was called before, and is called once more on the stream of the capture.

    Raises:
        RuntimeError: what ``run`` does cannot be captured.
    """
    before = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(before)
    with torch.cuda.stream(side):  # libraries set themselves up per stream
        run()
    before.wait_stream(side)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    collecting = gc.isenabled()
    gc.disable()  # what else a collection ends would be ended inside the capture
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side):
            run()
    except Exception:
        torch.cuda.set_stream(before)
        _mend(device, pool)
        raise
    finally:
        if collecting:
            gc.enable()
    torch.cuda.synchronize(device)
    return graph.replay


def _mend(device: torch.device, pool: Any) -> None:
    """End what `capture_end` left open; whatever of it had ended complains, and that is all."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)  # raises where the capture had ended, whose graph has the pool
        torch._C._cuda_releasePool(index, pool)
    generator = torch.cuda.default_generators[index]
    with contextlib.suppress(RuntimeError):
        generator.graphsafe_set_state(generator.clone_state())  # the same numbers, in a state that is not captured
    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize(device)
