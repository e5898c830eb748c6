"""A driver without a GPU on which launches run through all of Triton's host code and start nothing.

:func:`install` is for a process of its own, without TRITON_INTERPRET and without the compiled library. Arguments are
bound, specialised and looked up as on an sm_90. Where Triton would compile, it gets a kernel without code. Where its
launcher would enter C, it calls a function that does nothing. So what is left out is the C launcher's parsing of its
arguments and the driver's launch. Tensors are those of the CPU, which the ops then send to the launchers of CUDA
tensors.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.nvidia.driver import CudaLauncher
from triton.compiler.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from .aot_driver import Driver

#: Stands for the C launcher: takes any arguments, does nothing, and is no Python call.
NOTHING: Callable[..., Any] = "".format


class SilentDriver(Driver):
    """Driver whose device and stream can be set."""

    def __init__(self, target: int = 90) -> None:
        super().__init__(target)
        self.device, self.stream = 0, 0

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.stream


class EmptyKernel(CompiledKernel):
    """A kernel as Triton compiles it, but without code, whose launcher calls ``launch`` in the place of C."""

    def __init__(self, src: Any, options: Any, launch: Callable[..., Any]) -> None:
        launcher = object.__new__(CudaLauncher)  # its constructor would compile C against the driver's library
        launcher.launch = launch
        launcher.num_ctas = options.num_ctas
        launcher.global_scratch_size = launcher.profile_scratch_size = 0
        launcher.global_scratch_align = launcher.profile_scratch_align = 1
        launcher.launch_cooperative_grid = launcher.launch_pdl = False
        self.src, self.name, self.metadata = src, src.fn.__name__, options
        self.function = id(self)  # what a launch shows of its kernel
        self.packed_metadata = (options.num_warps, options.num_ctas, 0)
        self.module, self._run = object(), launcher


def install(launch: Callable[..., Any] = NOTHING) -> SilentDriver:
    """Makes launches of this process end in ``launch``, and sends the ops' CPU tensors to the Triton launchers.

    Returns:
        The active driver.

    Raises:
        RuntimeError: kernels are interpreted in this process, or the compiled library has taken the CPU tensors.
    """
    from alt_kernels import backends, library

    if triton.knobs.runtime.interpret or backends()["cpp"].available:
        raise RuntimeError("expected a process without TRITON_INTERPRET and with ALT_KERNELS_DISABLE_CPP=1")

    def do_compile(
        self: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attrs: Any, warmup: bool
    ) -> Any:
        kernel = EmptyKernel(self.ASTSource(self, signature, constants, attrs), options, launch)
        self.device_caches[device][0][key] = kernel
        return kernel

    JITFunction._do_compile = do_compile  # type: ignore[method-assign]
    torch.cuda.current_device = lambda: -1  # type: ignore[assignment]  # what get_device() of a CPU tensor says
    torch.cuda.device = lambda device: contextlib.nullcontext()  # type: ignore[misc,assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some ops have an implementation in Python for the CPU, which is replaced
        for name, op in library.OPS.items():
            if op.triton is not None:
                launcher = library._launcher(name, op.triton, op.reference)
                library._library.impl(name, launcher, "CPU", allow_override=True)
    driver = SilentDriver()
    triton.runtime.driver.set_active(driver)  # type: ignore[arg-type]
    return driver
