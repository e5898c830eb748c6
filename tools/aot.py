"""Compiles every kernel and shipped configuration ahead of time, without a GPU, and checks the compiled code.

``python -m tools.aot --out docs/kernels_resources.md`` writes the table for sm_80, sm_90 and sm_100. The exit status is
1 if one of these is true:

- a kernel spills registers, or has a half-precision dot without the target's matrix instruction, and its
  :class:`~tools.aot_case.AotCase` gives no reason;
- a kernel takes more shared memory than the target has, or came out empty;
- a launcher starts a kernel that no case compiles.

``--only`` takes a part of a name. With ``--loops`` it prints the cycles of the loops of these cases on an sm_90
(:mod:`.sass`). ``--sample 4 --turn n`` compiles every kernel once for every target and a fourth of the other cases,
another fourth for each n modulo 4.

The cases are the lists ``AOT`` in ``aot_cases/``. Arguments are declared as divisible as in a real launch. Otherwise
the compiler builds a different kernel, which nobody runs (no 16-byte access, often spills).
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from alt_kernels.triton import launch_configs

from . import sass
from .aot_case import AotCase
from .disassembler import run_tool

TARGETS = (80, 90, 100)
# The instruction of a half-precision dot: of a warp, of a warp group, of tensor memory.
MATRIX = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC[A-Z]*MMA"}
ANY_MATRIX = r"HMMA|HGMMA|UTC[A-Z]*MMA|[IDQ]GMMA|[ID]MMA|OMMA|QMMA"
KERNELS = Path(launch_configs.__file__).parent
CASES = Path(__file__).parent / "aot_cases"
#: Bytes of shared memory that a program may have, by target.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: Our smallest kernel has three times as many; a kernel that the compiler emptied has about ten.
LEAST_INSTRUCTIONS = 40
NO_CASE = "--only: no case has {!r} in its name"
INTERPRETED = "TRITON_INTERPRET is set: kernels are Python functions under it and cannot be compiled; unset it"


class Resources(NamedTuple):
    """The assembler's figures for one case on one target."""

    module: str
    case: AotCase
    target: int
    registers: int  # per thread
    stack: int  # bytes per thread; a spill, since these kernels keep no array
    spills: int  # loads and stores of local memory in the code
    shared: int  # bytes per program
    matrix: Counter[str]  # matrix instructions by name
    accesses: int  # loads and stores of global memory in the code
    wide: int  # of these, 16 bytes per thread
    instructions: int  # in the code, without padding
    stores: int  # to global memory

    def complaints(self) -> list[str]:
        """Returns all objections, whether or not the case gives a reason."""
        found = []
        if self.stack or self.spills:
            found.append(f"spills ({self.stack} bytes of stack, {self.spills} local accesses)")
        if self.case.dots and not any(re.fullmatch(MATRIX[self.target], name) for name in self.matrix):
            found.append(f"a half-precision dot without {MATRIX[self.target].replace('[A-Z]*', '*')}")
        return found + self.defects()

    def defects(self) -> list[str]:
        """Returns the objections that no reason excuses."""
        found = []
        if self.shared > SHARED[self.target]:
            found.append(f"{self.shared} bytes of shared memory, of which there are {SHARED[self.target]}")
        if self.instructions < LEAST_INSTRUCTIONS or not self.stores:
            found.append(f"an empty kernel ({self.instructions} instructions, {self.stores} stores)")
        return found


def modules() -> list[str]:
    """Returns the kernel files that have cases."""
    return sorted(path.stem for path in CASES.glob("*.py") if path.stem != "__init__")


def cases(stem: str) -> list[AotCase]:
    """Returns the cases of a kernel file."""
    return list(importlib.import_module(f".aot_cases.{stem}", __package__).AOT)


def find_uncovered() -> list[str]:
    """Returns the kernels that some launcher starts and no case compiles, as ``module: kernel``."""
    compiled = {case.kernel.__name__ for stem in modules() for case in cases(stem)}
    launched = {
        f"{path.stem}: {name}": name
        for path in sorted(KERNELS.glob("*.py"))
        for name in re.findall(r"^\s+(?:return )?(\w+)\[", path.read_text(), re.M)
        if hasattr(getattr(importlib.import_module(f"alt_kernels.triton.{path.stem}"), name, None), "params")
    }
    return [where for where, name in launched.items() if name not in compiled]


def source(case: AotCase) -> Any:
    """Returns the case as Triton's compiler takes it: types, constants, and which arguments are multiples of 16."""
    from triton.compiler import ASTSource

    kernel = case.kernel
    names = [p.name for p in kernel.params]
    if set(names) != case.signature.keys() | case.constants.keys():
        odd = sorted(set(names) ^ (case.signature.keys() | case.constants.keys()))
        raise ValueError(f"{case.name}: expected the arguments of {kernel.__name__} exactly, got more or fewer: {odd}")
    signature = {name: "constexpr" if name in case.constants else case.signature[name] for name in names}
    attributes = {}
    for place, parameter in enumerate(kernel.params):
        kind = signature[parameter.name]
        aligned = kind.startswith("*") or (kind in ("i32", "i64") and not parameter.do_not_specialize)
        if aligned and parameter.name not in case.unaligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, dict(case.constants), attributes)


def compile_case(stem: str, case: AotCase, target: int) -> tuple[Resources, str]:
    """Compiles and disassembles a case; returns its resources and its SASS."""
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(
        source(case),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers or None},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = run_tool("cuobjdump", "--dump-resource-usage", str(cubin))
        listing = run_tool("nvdisasm", "-c", str(cubin))
    counts = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    opcodes = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing)
    accesses = [name for name in opcodes if re.match(r"(LDG|STG|LDGSTS|UTMALDG|UTMASTG)\b", name)]
    resources = Resources(
        module=stem,
        case=case._replace(kernel=None),  # a result travels between processes, a kernel need not
        target=target,
        registers=counts["REG"],
        stack=counts["STACK"] + counts.get("LOCAL", 0),
        spills=sum(bool(re.match(r"(LDL|STL)\b", name)) for name in opcodes),
        shared=compiled.metadata.shared,
        matrix=Counter(name.split(".")[0] for name in opcodes if re.match(rf"({ANY_MATRIX})\b", name)),
        accesses=len(accesses),
        wide=sum(".128" in name or name.startswith("UTMA") for name in accesses),
        instructions=sum(name != "NOP" for name in opcodes),
        stores=sum(bool(re.match(r"(STG|UTMASTG)\b", name)) for name in accesses),
    )
    return resources, listing


def _work(job: tuple[str, int, int]) -> Resources:
    stem, index, target = job
    return compile_case(stem, cases(stem)[index], target)[0]


def select_cases(only: str = "") -> list[tuple[str, int, str]]:
    """Returns module, place in its list and ``module: name`` of every case whose name contains ``only``."""
    found = ((stem, i, f"{stem}: {case.name}") for stem in modules() for i, case in enumerate(cases(stem)))
    return [case for case in found if only in case[2]]


def sample_cases(work: list[tuple[str, int, int]], every: int, turn: int) -> list[tuple[str, int, int]]:
    """Returns the first case of every kernel on every target and every ``every``-th other, a new part per ``turn``."""
    found, seen, others = [], set(), 0
    for job in work:
        stem, index, target = job
        kernel = (cases(stem)[index].kernel.__name__, target)
        if kernel in seen:
            others += 1
        if kernel not in seen or others % every == turn % every:
            found.append(job)
        seen.add(kernel)
    return found


def compile_all(
    only: str = "", targets: Iterable[int] = TARGETS, jobs: int | None = None, every: int = 1, turn: int = 0
) -> list[Resources]:
    """Compiles every selected case on every target, or a sample of them, several at a time."""
    targets = tuple(targets)
    work = [
        (stem, i, target)
        for stem, i, _ in select_cases(only)
        for target in targets
        if target in (cases(stem)[i].targets or targets)
    ]
    work = sample_cases(work, every, turn)
    if jobs == 1:
        return [_work(job) for job in work]
    # spawn: a fork of a process that holds a compiler's threads may hang.
    with ProcessPoolExecutor(jobs or os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_work, work))


def _row(group: list[Resources]) -> Iterator[str]:
    case = group[0].case
    alone = f"sm_{', sm_'.join(map(str, case.targets))}"
    yield case.name + (f" ({alone} alone)" if case.targets and not case.name.endswith(alone) else "")
    yield " ".join(f"{k}={v}" for k, v in case.constants.items() if not isinstance(v, bool) and k != "C")
    yield f"{case.num_warps} × {case.num_stages}"
    for values in (
        [str(r.registers) for r in group],
        [f"{r.stack}" for r in group],
        [f"{r.shared:,}" for r in group],
        [" ".join(f"{name} {count}" for name, count in sorted(r.matrix.items())) or "none" for r in group],
        [f"{r.wide} of {r.accesses}" for r in group],
    ):
        yield values[0] if len(set(values)) == 1 else " / ".join(values)
    complaints = sorted({f"{text} on sm_{r.target}" for r in group for text in r.complaints()})
    yield "; ".join([*complaints, *([f"reason: {case.reason}"] if case.reason and complaints else [])])


def table(results: list[Resources], targets: Iterable[int] = TARGETS) -> str:
    """Returns Markdown: a section per module, a line per case."""
    import triton

    names = ", ".join(f"sm_{target}" for target in targets)
    lines = [
        "# Kernels, compiled ahead of time",
        "",
        "Generated by `python -m tools.aot --out docs/kernels_resources.md`,"
        f" Triton {triton.__version__}, for {names}.",
        "Nothing here was run: these are the compiler's figures for the shipped configurations, not measured speed.",
        "A column with one value has it on every target; `a / b / c` are the targets in that order.",
        "",
        "- registers: per thread (255 is the limit). stack: bytes per thread; above 0 is a spill.",
        "- shared: bytes per program. matrix: matrix instructions in the code.",
        "- 16-byte: loads and stores of global memory in the code that move 16 bytes per thread, of all of them; the"
        " others read the plan and sizes.",
    ]
    for stem in dict.fromkeys(r.module for r in results):
        lines += ["", f"## {stem}", ""]
        lines += ["| case | tile | warps × stages | registers | stack | shared | matrix | 16-byte | remarks |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        groups: dict[tuple[Any, ...], list[Resources]] = {}
        for r in results:
            if r.module == stem:
                key = (r.case.name, r.case.num_warps, r.case.num_stages, tuple(r.case.constants.items()))
                groups.setdefault(key, []).append(r)
        lines += ["| " + " | ".join(_row(group)) + " |" for group in groups.values()]
    return "\n".join(lines) + "\n"


def print_loops(only: str) -> int:
    """Prints the pipes of the loops of each selected case on sm_90; returns 2 if there is no such case."""
    for stem, index, name in (found := select_cases(only)):
        resources, listing = compile_case(stem, cases(stem)[index], 90)
        print(f"{name}: {resources.registers} registers, {resources.stack} stack, {resources.shared:,} shared")
        print(*sass.report(listing), sep="\n")
    if not found:
        print(NO_CASE.format(only), file=sys.stderr)
    return 0 if found else 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table to this file")
    parser.add_argument("--check", action="store_true", help="print objections only, no table")
    parser.add_argument("--only", default="", help="a part of 'module: case'")
    parser.add_argument("--target", type=int, action="append", choices=TARGETS, help="80, 90 or 100; more than once")
    parser.add_argument("--list", action="store_true", help="print the cases' names and compile nothing")
    parser.add_argument("--loops", action="store_true", help="print the cycles of the loops of --only's cases on sm_90")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every kernel once, every N-th other case")
    parser.add_argument("--turn", type=int, default=0, help="which of the N samples")
    parser.add_argument("--jobs", type=int, help="compilations at a time; default: one per core")
    options = parser.parse_args(arguments)
    import triton

    if triton.knobs.runtime.interpret:
        print(INTERPRETED, file=sys.stderr)
        return 2
    if options.list:
        print(*(name for _, _, name in select_cases(options.only)), sep="\n")
        return 0
    if options.loops:
        return print_loops(options.only)
    if options.sample < 1 or (options.sample > 1 and options.out):
        print("--sample: expected a number >= 1, and no --out, whose table is of all cases", file=sys.stderr)
        return 2
    targets = tuple(options.target or TARGETS)
    results = compile_all(options.only, targets, options.jobs, options.sample, options.turn)
    if not results:
        print(NO_CASE.format(options.only), file=sys.stderr)
        return 2
    text = table(results, targets)
    if options.out:
        options.out.write_text(text)
    elif not options.check:
        print(text)
    failures = [
        f"{r.module}: {r.case.name} on sm_{r.target}: {complaint}"
        for r in results
        for complaint in (r.defects() if r.case.reason else r.complaints())
    ]
    if not options.only:
        failures += [f"{where}: launched, but in no AOT list" for where in find_uncovered()]
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(results)} compilations, {len(failures)} complaints", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
