"""One kernel with one configuration, as :mod:`alt_kernels.triton.aot` compiles it without a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple


class AotCase(NamedTuple):
    """Arguments that a launch of ``kernel`` passes to the compiler.

    A module's list ``AOT`` holds one for every shipped configuration at the sizes that people run.
    """

    name: str  # unique in its module: kernel, sizes, dtype ("reduce C=768 bf16")
    kernel: Any  # the function under @triton.jit
    signature: dict[str, str]  # run-time arguments in Triton's notation: {"x_ptr": "*bf16", "tokens": "i32"}
    constants: dict[str, Any]  # the tl.constexpr arguments, and integers that are 1 in that launch
    num_warps: int
    num_stages: int
    dots: bool  # whether it has a tl.dot of half-precision operands, which must become a matrix instruction
    reason: str = ""  # why it may spill, or run its dots without matrix instructions; printed in the table
    # Pointers and integers are compiled as multiples of 16, as in a launch on tensors whose rows are aligned, unless
    # the kernel says do_not_specialize; name here the ones of which that is not so (a stride of 197, say).
    unaligned: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()  # 90 for sm_90; none: all of them
    max_registers: int = 0  # the launch's ``maxnreg``; 0: the compiler's choice


def keep(cases: dict[str, AotCase], case: AotCase) -> None:
    """Put a case into a dictionary by name; of one that is there already only the targets grow."""
    if case.name in cases:
        before = cases[case.name].targets
        both = tuple(sorted({*before, *case.targets})) if before and case.targets else ()
        case = cases[case.name]._replace(targets=both)
    cases[case.name] = case
