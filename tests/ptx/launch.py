"""From the launchers of ``alt_kernels.triton`` to programs that run: Triton binds, specialises and compiles.

:func:`install` is for a process of its own, without TRITON_INTERPRET: launches on CPU tensors then compile as far as
the PTX of sm_80 (of sm_90 with ALT_KERNELS_PTX_TARGET=90), with the constants and divisibility that they would have on
a GPU, and are emulated. No assembler runs.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor

from tools.aot_driver import Driver

from .arithmetic import Array
from .machine import Machine
from .memory import Global, HazardError
from .translate import Program, translate

LANES = 2048  # threads that run side by side, in programs: NumPy's cost of a call is shared among them
GRIDS = (2**31 - 1, 65_535, 65_535)

#: What ran, by kernel: launches, programs, seconds; compilations by kernel and specialisation.
launches: Counter[str] = Counter()
programs: Counter[str] = Counter()
seconds: Counter[str] = Counter()
variants: dict[str, set[str]] = {}


TARGET = int(os.environ.get("ALT_KERNELS_PTX_TARGET", "80"))  # or 90
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}[TARGET]  # bytes of a program


translated = functools.lru_cache(maxsize=None)(translate)


def bits_of(value: Any, kind: str) -> Array:
    """A kernel argument as the launcher packs it."""
    if isinstance(value, Tensor):
        return np.array([value.data_ptr()], np.uint64)
    if kind in ("fp32", "f32"):
        return np.array([value], np.float32).view(np.uint32)
    width = int(kind[1:])
    if kind[0] not in "iu" or width not in (1, 8, 16, 32, 64):
        raise TypeError(f"an argument of type {kind}")
    width = max(width, 8)
    return np.array([int(value) & (1 << width) - 1], f"u{width // 8}")


def execute(
    code: Program,
    parameters: list[Array],
    arguments: list[tuple[str, Tensor]],
    grid: tuple[int, int, int],
    shared: int,
) -> None:
    """Every program of a grid. Raises on the first bad access, and in the end on hazards."""
    if len(parameters) != len(code.kernel.parameters):
        raise TypeError(f"{code.kernel.name}: {len(parameters)} arguments for {len(code.kernel.parameters)} parameters")
    for value, parameter in zip(parameters, code.kernel.parameters, strict=True):
        if 8 * value.dtype.itemsize != parameter.bits and parameter.bits > 8:
            raise TypeError(f"{code.kernel.name}: {parameter.name} has {parameter.bits} bits, {value.dtype} was passed")
    memory = Global(arguments)
    hazards: dict[str, None] = {}
    places = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    together = max(1, LANES // code.kernel.threads)
    with np.errstate(all="ignore"):
        for first in range(0, len(places), together):
            Machine(code, memory, parameters, grid, places[first : first + together], shared, hazards).run()
    if hazards:
        raise HazardError(f"{len(hazards)} hazards:\n  " + "\n  ".join(hazards))


def launch(function: Any, kernel: Any, bound: dict[str, Any], specialization: list[Any], grid: Any) -> None:
    """One launch: what is left of the arguments when constants are gone, and the compiled kernel's own figures."""
    name = function.fn.__name__
    sizes = tuple(grid(bound) if callable(grid) else grid)
    if not all(isinstance(n, int) and 0 < n <= most for n, most in zip(sizes, GRIDS, strict=False)):
        raise ValueError(f"{name}: grid {sizes}")
    if kernel.metadata.shared > SHARED_LIMIT:
        raise ValueError(f"{name}: {kernel.metadata.shared} bytes of shared memory")
    left = [(k, v, s[0]) for (k, v), s in zip(bound.items(), specialization, strict=True) if s[0] != "constexpr"]
    parameters = [bits_of(value, kind) for _, value, kind in left]
    parameters += [np.zeros(1, np.uint64)] * 2  # scratch memory, of which these kernels have none
    start = time.perf_counter()
    execute(
        translated(kernel.asm["ptx"]),
        parameters,
        [(key, value) for key, value, _ in left if isinstance(value, Tensor)],
        (*sizes, 1, 1)[:3],  # type: ignore[arg-type]
        kernel.metadata.shared,
    )
    launches[name] += 1
    programs[name] += int(np.prod(sizes))
    seconds[name] += time.perf_counter() - start  # type: ignore[assignment]
    variants.setdefault(name, set()).add(kernel.hash)


def install() -> None:
    """From now on launches of this process are emulated.

    What the compiler leaves is no code of a GPU and must not be found by one: it goes to a cache of its own.
    """
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="emulated-kernels-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import triton
    from triton import knobs
    from triton.runtime.jit import JITFunction

    from alt_kernels.triton import launch_configs

    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are Python functions under it and are not compiled")
    launch_configs.device_name = lambda: f"emulated, sm_{TARGET}"  # type: ignore[assignment]  # its configurations as well
    triton.runtime.driver.set_active(Driver(TARGET))  # type: ignore[arg-type]

    def stop_at_ptx(backend: Any, stages: dict[str, Any], *rest: Any) -> None:
        stages["cubin"] = lambda source, metadata: b"-"

    knobs.runtime.add_stages_inspection_hook = stop_at_ptx  # type: ignore[assignment]
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        binder = self.device_caches[0][4]
        options = {
            "debug": self.debug or knobs.runtime.debug,
            "instrumentation_mode": knobs.compilation.instrumentation_mode,
        }
        bound, specialization, _ = binder(*args, **{**options, **kwargs})
        launch(self, kernel, bound, specialization, grid)
        return kernel

    JITFunction.run = run  # type: ignore[method-assign]


def main(only: str = "") -> None:
    """Translate every case compiled ahead of time for the target: an instruction that is not emulated raises."""
    import triton
    from triton.backends.compiler import GPUTarget

    from tools import aot

    install()
    for stem, number, name in aot.select_cases(only):
        case = aot.cases(stem)[number]
        if TARGET in (case.targets or (TARGET,)):
            options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
            kernel = triton.compile(aot.source(case), target=GPUTarget("cuda", TARGET, 32), options=options)
            code = translate(kernel.asm["ptx"])
            for block in range(len(code.ends)):
                code.whole[block], code.partial[block]
            print(f"{name}: {len(code.kernel.body)} instructions", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
