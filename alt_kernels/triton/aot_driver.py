"""A GPU that kernels can be compiled for and not launched on: what Triton asks its driver before a launch."""

from __future__ import annotations

from typing import Any


class Driver:
    """Answers with its target; whatever a launch itself would need raises AttributeError.

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
