"""A cache of launches: from a kernel's arguments to its compiled code by one look into a dictionary.

Triton binds, specialises and prints the arguments of every launch anew, which takes longer than most kernels of a small
batch run. A kernel under :func:`cache_launches` remembers what Triton found, and starts it by Triton's C launcher. The
key is finer than Triton's own: for each pointer dtype, device and whether it is a multiple of 16 bytes; for each scalar
value and type; names, values and types of constants and options; the driver and its current device. The stream is asked
for at every launch. What is not in the cache Triton launches.

Triton also launches where something wants to see it: a hook before, after or in a launch, debugging, or a replaced
``JITFunction.run``. Under TRITON_INTERPRET a kernel is Triton's interpreted function. One thing is not seen: a global
constant of a kernel that changes after its first launch, which Triton would refuse.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

VERSION = "3.6."  # whose C launcher is called here; other versions launch by themselves
LAUNCHER = "triton.backends.nvidia.driver"  # the module of that launcher's class
MOST = 4096  # launches that a kernel remembers; it forgets all of them before one more

#: Triton's own, by which a replaced one is known; none where it was replaced before this module was imported.
_RUN = JITFunction.run if JITFunction.run.__qualname__ == "JITFunction.run" else None
_address, _device, _dtype = Tensor.data_ptr, Tensor.get_device, Tensor.dtype.__get__  # type: ignore[attr-defined]


class Launch(NamedTuple):
    """What a remembered launch needs beside its grid, stream, pointers and scalars."""

    start: Callable[..., object]  # the C launcher
    before: tuple[Any, ...]  # its arguments between the stream and those of the kernel
    constants: tuple[Any, ...]  # in the order of the kernel's parameters; the C launcher skips them


class CachedKernel(JITFunction):
    """A ``JITFunction`` that remembers its launches.

    Its parameters are pointers, whose names end in ``_ptr``, then scalars, then constants, which are passed by name.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names = self.arg_names
        self.pointers = sum(name.endswith("_ptr") for name in names)
        self.scalars = len(names) - len(self.constexprs)
        in_order = [*names[: self.pointers]] == [name for name in names if name.endswith("_ptr")]
        if not in_order or self.constexprs != [*range(self.scalars, len(names))]:
            raise TypeError(f"{self.__name__}: expected pointers *_ptr, then scalars, then constants, got {names}")
        self.launches: dict[tuple[Any, ...], Launch] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """Starts the kernel; ``args`` are its pointers (tensors) and scalars, ``constants`` include options."""
        runtime = knobs.runtime
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        if (
            getattr(enter, "calls", enter)
            or getattr(leave, "calls", leave)
            or runtime.debug
            or self.pre_run_hooks
            or JITFunction.run is not _RUN
        ):
            self.run(*args, grid=grid, warmup=False, **constants)
            return
        active = driver.active
        device = active.get_current_device()
        tensors, scalars, values = args[: self.pointers], args[self.pointers :], constants.values()
        addresses = (*map(_address, tensors),)
        aligned = functools.reduce(operator.or_, addresses) % 16 == 0
        key = (
            active, device, aligned or (*[address % 16 == 0 for address in addresses],),
            *map(_dtype, tensors), *map(_device, tensors), *scalars, *map(type, scalars),
            *constants, *values, *map(type, values),
        )  # fmt: skip
        found = self.launches.get(key)
        if found is None:
            self._remember(key, self.run(*args, grid=grid, warmup=False, **constants), constants)
            return
        start, before, constants_ = found
        stream = active.get_current_stream(device)
        start(*grid, *_ONES[len(grid)], stream, *before, *addresses, *scalars, *constants_)

    def _remember(self, key: tuple[Any, ...], compiled: Any, constants: dict[str, Any]) -> None:
        """Keeps what Triton launched, unless this launcher is unknown here or takes scratch memory at every launch."""
        launcher = getattr(compiled, "run", None)
        if type(launcher).__module__ != LAUNCHER or launcher.global_scratch_size or launcher.profile_scratch_size:
            return
        if len(self.launches) >= MOST:
            self.launches.clear()
        before = (
            compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None,  # no scratch
            compiled.packed_metadata, None, None, None,  # no hooks
        )  # fmt: skip
        ordered = tuple(constants[name] for name in self.arg_names[self.scalars :])
        self.launches[key] = Launch(launcher.launch, before, ordered)


_ONES = ((1, 1, 1), (1, 1), (1,), ())  # the other dimensions of a grid, by the number of those given


def cache_launches(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a kernel that is launched, in the place of ``triton.jit``, whose options it takes."""
    cached = triton.__version__.startswith(VERSION) and not knobs.runtime.interpret
    return functools.partial(CachedKernel, **options) if cached else triton.jit(**options)
