"""A cache of launches: from a kernel's arguments to its compiled code by one look into a dictionary.

Triton binds, specialises and prints the arguments of every launch anew, which takes longer than most kernels of a small
batch run. A kernel under :func:`cache_launches` remembers what Triton found, and starts it by Triton's C launcher. The
key is finer than Triton's own: for each pointer dtype, device and whether it is a multiple of 16 bytes; for each scalar
value and type; values and types of constants and options; the driver and its current device. The stream is asked
for at every launch. What is not in the cache Triton launches.

Triton also launches where something wants to see it: a hook before, after or in a launch, debugging, instrumentation,
or a replaced ``JITFunction.run``. Under TRITON_INTERPRET a kernel is Triton's interpreted function. One thing is not
seen: a global constant of a kernel that changes after its first launch, which Triton would refuse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

VERSION = "3.6."  # whose C launcher is called here; other versions launch by themselves
LAUNCHER = "triton.backends.nvidia.driver"  # the module of that launcher's class
MOST = 4096  # launches that a kernel remembers; it forgets all of them before one more

#: Triton's own, by which a replaced one is known; none where it was replaced before this module was imported.
_RUN = JITFunction.run if JITFunction.run.__qualname__ == "JITFunction.run" else None

#: The function that starts a kernel, written for the names of its parameters as Triton writes its own binder: three
#: attributes of every pointer, read in one expression, take half the time of a loop over them.
SOURCE = """
def launch(_grid, {arguments}, *, {constants}, num_warps, num_stages, maxnreg=None):
    _runtime = _knobs.runtime
    _enter, _leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    if (
        getattr(_enter, "calls", _enter)
        or getattr(_leave, "calls", _leave)
        or _runtime.debug
        or _knobs.compilation.instrumentation_mode
        or _kernel.pre_run_hooks
        or _JITFunction.run is not _RUN
    ):
        _kernel.run({arguments}, grid=_grid, warmup=False, {named})
        return
    _active = _driver.active
    _device = _active.get_current_device()
    {addresses}
    _aligned = ({any_bit}) % 16 == 0 or ({each_aligned},)
    _key = (_active, _device, _aligned, {kinds}, {values})
    _found = _launches.get(_key)
    if _found is None:
        _compiled = _kernel.run({arguments}, grid=_grid, warmup=False, {named})
        _kernel.remember(_key, _compiled, ({constants},))
        return
    _start, _before, _constants = _found
    _stream = _active.get_current_stream(_device)
    _start(*_grid, *_OTHERS[len(_grid)], _stream, *_before, {passed}, *_constants)
"""
OTHERS = ((1, 1, 1), (1, 1), (1,), ())  # the dimensions that a grid does not name, by the number of those it does
OPTIONS = ("num_warps", "num_stages", "maxnreg")


class Launch(NamedTuple):
    """What a remembered launch needs beside its grid, stream, pointers and scalars."""

    start: Callable[..., object]  # the C launcher
    before: tuple[Any, ...]  # its arguments between the stream and those of the kernel
    constants: tuple[Any, ...]  # in the order of the kernel's parameters; the C launcher skips them


class CachedKernel(JITFunction):
    """A ``JITFunction`` that remembers its launches.

    Its parameters are pointers, whose names end in ``_ptr``, then scalars, then constants. A launch passes constants
    and the options ``num_warps``, ``num_stages`` and ``maxnreg`` by name.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names = self.arg_names
        first = len(names) - len(self.constexprs)  # of the constants
        pointers = [name for name in names if name.endswith("_ptr")]
        if names[: len(pointers)] != pointers or self.constexprs != [*range(first, len(names))]:
            raise TypeError(f"{self.__name__}: expected pointers *_ptr, then scalars, then constants, got {names}")
        self.launches: dict[tuple[Any, ...], Launch] = {}
        self._launch = self._write_launch(pointers, names[len(pointers) : first], names[first:])

    def _write_launch(self, pointers: list[str], scalars: list[str], constants: list[str]) -> Callable[..., None]:
        by_name = [*constants, *OPTIONS]
        text = SOURCE.format(
            arguments=", ".join((*pointers, *scalars)),
            constants=", ".join(constants),
            named=", ".join(f"{name}={name}" for name in by_name),
            addresses="; ".join(f"_{name} = {name}.data_ptr()" for name in pointers),
            any_bit=" | ".join(f"_{name}" for name in pointers),
            each_aligned=", ".join(f"_{name} % 16 == 0" for name in pointers),
            kinds=", ".join(f"{name}.dtype, {name}.get_device()" for name in pointers),
            values=", ".join(f"{name}, {name}.__class__" for name in (*scalars, *by_name)),  # 1 == 1.0 == True
            passed=", ".join((*(f"_{name}" for name in pointers), *scalars)),
        )
        names = {
            "_kernel": self, "_launches": self.launches, "_knobs": knobs, "_driver": driver,
            "_JITFunction": JITFunction, "_RUN": _RUN, "_OTHERS": OTHERS,
        }  # fmt: skip
        exec(compile(text, f"<launch of {self.__name__}>", "exec"), names)
        return names["launch"]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def remember(self, key: tuple[Any, ...], compiled: Any, constants: tuple[Any, ...]) -> None:
        """Keeps what Triton launched, unless its launcher is unknown here or takes scratch memory at every launch."""
        launcher = getattr(compiled, "run", None)
        if type(launcher).__module__ != LAUNCHER or launcher.global_scratch_size or launcher.profile_scratch_size:
            return
        if len(self.launches) >= MOST:
            self.launches.clear()
        before = (
            compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None,  # no scratch
            compiled.packed_metadata, None, None, None,  # no hooks
        )  # fmt: skip
        self.launches[key] = Launch(launcher.launch, before, constants)


def cache_launches(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a kernel that is launched, in the place of ``triton.jit``, whose options it takes."""
    cached = triton.__version__.startswith(VERSION) and not knobs.runtime.interpret
    return functools.partial(CachedKernel, **options) if cached else triton.jit(**options)
