"""Cases of ahead-of-time compilation: a kernel with one configuration, and the configurations of the files."""

from __future__ import annotations

from typing import Any, NamedTuple

from alt_kernels.triton import launch_configs


class AotCase(NamedTuple):
    """The arguments that a launch of ``kernel`` passes to the compiler.

    The list ``AOT`` of a file in ``aot_cases/`` holds one for every shipped configuration at common sizes.
    """

    name: str  # unique in its module: kernel, sizes, dtype ("reduce C=768 bf16")
    kernel: Any  # the function under @triton.jit
    signature: dict[str, str]  # run-time arguments in Triton's notation: {"x_ptr": "*bf16", "tokens": "i32"}
    constants: dict[str, Any]  # the tl.constexpr arguments, and integers that are 1 in that launch
    num_warps: int
    num_stages: int
    dots: bool  # whether it has a tl.dot of half-precision operands, which must become a matrix instruction
    reason: str = ""  # why it may spill, or run its dots without matrix instructions; printed in the table
    # Pointers and integers are compiled as multiples of 16, as in a launch on aligned rows, unless the kernel says
    # do_not_specialize. The names of those that are not (a stride of 197, say) go here.
    unaligned: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()  # 90 for sm_90; none: all of them
    max_registers: int = 0  # the launch's ``maxnreg``; 0: the compiler's choice


def add_case(cases: dict[str, AotCase], case: AotCase) -> None:
    """Adds a case to a dictionary by name; a case that is already there gains the targets."""
    if case.name in cases:
        before = cases[case.name].targets
        both = tuple(sorted({*before, *case.targets})) if before and case.targets else ()
        case = cases[case.name]._replace(targets=both)
    cases[case.name] = case


class ShippedConfig(NamedTuple):
    """Configuration of a file, and the targets (80 for sm_80) whose GPUs may use it; none: all."""

    use: dict[str, Any]
    targets: tuple[int, ...] = ()


def list_configs(stem: str, **sizes: int) -> list[ShippedConfig]:
    """Returns the configurations that GPUs use at these sizes, each once, the default first."""
    devices = launch_configs.load(stem)
    found: list[ShippedConfig] = []
    for device in ("default", *sorted(devices.keys() - {"default"})):
        use = dict(launch_configs._config(stem, device, tuple(sizes.items())))
        targets = (int(device.rpartition("sm_")[2]),) if device != "default" else ()
        if not any(use == other.use and other.targets in ((), targets) for other in found):
            found.append(ShippedConfig(use, targets))
    return found
