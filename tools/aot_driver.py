"""Launches that compile and do not start, and a driver for them where there is no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class Driver:
    """Driver that knows its target only; anything that a real launch needs raises AttributeError.

    ``triton.runtime.driver.set_active(Driver(90))`` lets the launchers run up to the launch.
    """

    def __init__(self, target: int) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a launch asked the driver for {name}")


@contextlib.contextmanager
def stopped_launches() -> Iterator[None]:
    """Makes launches inside bind their arguments, compile the kernel or find it in a cache, and stop."""
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    run, interpret = JITFunction.run, GridExecutor.__call__

    def stop(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = stop  # type: ignore[method-assign]
    GridExecutor.__call__ = lambda self, *args, **kwargs: None  # under TRITON_INTERPRET, which compiles nothing
    try:
        yield
    finally:
        JITFunction.run, GridExecutor.__call__ = run, interpret  # type: ignore[method-assign]
