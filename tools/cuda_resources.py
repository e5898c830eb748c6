"""Registers, spills and 16-byte accesses of the kernels in a built ``_C_cuda`` library, for every GPU it holds.

``python tools/cuda_resources.py LIBRARY --out docs/kernels_resources_cuda.md`` writes the table; the exit status is 1
where a kernel spills, or one that should move 16 bytes per thread does not. No GPU is needed: ``make cuda-resources``
compiles for sm_80, sm_90 and sm_100. The disassembler is the one on the PATH, or the one that comes with Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Kernel(NamedTuple):
    """The assembler's figures for one kernel and one GPU."""

    name: str
    target: int
    registers: int  # per thread
    stack: int  # bytes per thread; a spill, since these kernels keep no array in memory
    spills: int  # loads and stores of local memory in the code
    accesses: int  # loads and stores of global memory in the code
    wide: int  # of these, 16 bytes per thread

    def complaints(self) -> list[str]:
        """Returns the spills and missing wide accesses, one sentence each."""
        found = []
        if self.stack or self.spills:
            found.append(f"spills ({self.stack} bytes of stack, {self.spills} local accesses)")
        if self.name.endswith("aligned") and not self.wide:
            found.append("no access of 16 bytes")
        return found


def run_tool(name: str, *arguments: str) -> str:
    """Returns the output of a disassembler from the PATH, or of the one that comes with Triton."""
    folders = [os.environ.get("PATH", "")]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        folders.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    path = os.pathsep.join(folders)
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"{name}: not on the PATH and not beside Triton")
    done = subprocess.run(
        [found, *arguments], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=True
    )
    return done.stdout


def readable(mangled: str) -> str:
    """Returns ``match_image<float, 7, true>`` as ``match_image float R=7 aligned``."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\w+)(?:<(.*)>)?\(", name.replace("alt::gpu::", ""))
    if found is None:
        return mangled
    kernel, arguments = found[1], found[2] or ""
    words = arguments.replace("half_t", "fp16").replace("bfloat_t", "bf16").replace("(int)", "").split(", ")
    words = ["bf16" if w == "bfp16" else w for w in words]
    if kernel == "match_image":
        kind, rows, aligned = words
        return f"{kernel} {kind} R={rows} {'aligned' if aligned == 'true' else 'any'}"
    if kernel.startswith("merge_norm"):
        *kinds, warps, vectors, aligned = words
        kinds = [" + ".join(dict.fromkeys(kinds[:2]))]
        if aligned != "true":
            kinds = ["any dtypes"]
        return f"{kernel} {kinds[0]} W={warps} V={vectors} {'aligned' if aligned == 'true' else 'any'}"
    return kernel


def read(library: Path) -> list[Kernel]:
    target, name = 0, ""
    code: dict[tuple[int, str], list[str]] = {}
    for line in run_tool("cuobjdump", "-sass", str(library)).splitlines():
        if found := re.search(r"(?:arch =|code for) sm_(\d+)", line):
            target = int(found[1])
        elif found := re.search(r"Function : ([\w$]+)", line):
            name = found[1]
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?((?:LDG|STG|LDL|STL)[A-Z0-9_.]*)", line):
            code.setdefault((target, name), []).append(found[1])
    usage: dict[tuple[int, str], dict[str, int]] = {}
    # A cubin holds one target, which only the listing above names.
    for line in run_tool("cuobjdump", "--dump-resource-usage", str(library)).splitlines():
        if found := re.search(r"arch = sm_(\d+)", line):
            target = int(found[1])
        elif found := re.search(r"Function ([\w$]+):", line):
            name = found[1]
        elif "REG:" in line:
            usage[target, name] = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", line)}
    kernels = []
    for (sm, mangled), counts in usage.items():
        opcodes = code.get((sm, mangled), [])
        wide = [o for o in opcodes if o.startswith(("LDG", "STG"))]
        kernels.append(
            Kernel(
                name=readable(mangled),
                target=sm,
                registers=counts["REG"],
                stack=counts["STACK"] + counts.get("LOCAL", 0),
                spills=len(opcodes) - len(wide),
                accesses=len(wide),
                wide=sum(".128" in o for o in wide),
            )
        )
    return kernels


def table(kernels: list[Kernel]) -> str:
    targets = sorted({k.target for k in kernels})
    lines = [
        "# CUDA C++ kernels, compiled",
        "",
        f"Generated by `make cuda-resources` for {', '.join(f'sm_{t}' for t in targets)}. Nothing here was run: these"
        " are the assembler's figures.",
        "A column with one value has it on every target; `a / b / c` are the targets in that order.",
        "",
        "- registers: per thread (255 is the limit). stack: bytes per thread; above 0 is a spill.",
        "- 16-byte: loads and stores of global memory in the code that move 16 bytes per thread, of all of them; the"
        " others read the plan, sizes and statistics, or are the sums of the backward.",
        "- R: scores per thread along each side. W: warps per row. V: vectors of 8 channels per thread. `any`: the"
        " variant for misaligned rows and unusual pairs of dtypes.",
        "",
        "| kernel | registers | stack | 16-byte | remarks |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(k.name for k in kernels):
        group = [k for k in kernels if k.name == name]
        columns = (
            [str(k.registers) for k in group],
            [str(k.stack) for k in group],
            [f"{k.wide} of {k.accesses}" for k in group],
        )
        cells = [name, *(v[0] if len(set(v)) == 1 else " / ".join(v) for v in columns)]
        cells.append("; ".join(sorted({f"{c} on sm_{k.target}" for k in group for c in k.complaints()})))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path, nargs="+", help="a built _C_cuda library, or cubins")
    parser.add_argument("--out", type=Path, help="write the table to this file instead of printing it")
    options = parser.parse_args(arguments)
    kernels = sorted(kernel for path in options.library for kernel in read(path))
    if not kernels:
        print("library: no kernels in it", file=sys.stderr)
        return 2
    if options.out:
        options.out.write_text(table(kernels))
    else:
        print(table(kernels))
    complaints = [f"{k.name} on sm_{k.target}: {c}" for k in kernels for c in k.complaints()]
    print(*complaints, f"{len(kernels)} kernels, {len(complaints)} complaints", sep="\n", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
