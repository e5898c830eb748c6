"""The CPU kernels compiled for one x86 level, with or without sanitizers, in a package of their own.

The shipped library holds every level and chooses when it is loaded, so a machine runs one of them. Here the choice in
csrc/common.h is replaced by one level. Sanitizers can then see AVX code too, which that choice excludes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
LEVELS = {"baseline": "", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}  # GCC's names of the architectures
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1")


def find_compiler() -> str | None:
    """Returns GCC on x86, or None: other compilers compile the baseline alone."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    machine = os.uname().machine == "x86_64"
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    return found if machine and "Free Software Foundation" in version else None


def runnable(level: str) -> bool:
    """Returns True if this processor has the instructions of a level."""
    best = torch.backends.cpu.get_cpu_capability()
    return level == "baseline" or best.startswith("AVX512") or (level == "avx2" and best == "AVX2")


def build(level: str, *, sanitize: bool = False) -> dict[str, str]:
    """Compiles the kernels unless that was done, and returns the environment in which ``alt_kernels`` loads them."""
    compiler = find_compiler()
    assert compiler is not None, "no GCC for x86"
    files = sorted([*SOURCES.glob("*.h"), *(SOURCES / "cpu").iterdir(), Path(__file__)])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files) + torch.__version__.encode())
    folder = ROOT / "build" / "levels" / f"{level}{'-sanitized' if sanitize else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "digest"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != digest.hexdigest():
            _compile(compiler, folder, level, sanitize)
            stamp.write_text(digest.hexdigest())
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder / "package"), str(ROOT)]),
        "PYTHONSAFEPATH": "1",  # the current folder has an alt_kernels too
        "OMP_NUM_THREADS": "1",
    }
    if sanitize:
        libraries = (
            _library(compiler, "libasan.so"),
            _library(compiler, "libubsan.so"),
            _library(compiler, "libstdc++.so"),
        )
        environment |= {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python's own leaks
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
    return environment


def _library(compiler: str, name: str) -> str:
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return os.path.realpath(done.stdout.strip())


def _replace(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.DOTALL)
    assert count == 1, f"{path.name} chooses the level in another way"
    path.write_text(text)


def _compile(compiler: str, folder: Path, level: str, sanitize: bool) -> None:
    copy, package = folder / "csrc", folder / "package" / "alt_kernels"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("cuda"))
    flags = ["-DALT_NO_MULTIVERSION"] if level == "baseline" else []
    if level != "baseline":
        _replace(
            copy / "common.h",
            r"#if !defined\(ALT_NO_MULTIVERSION\).*?#else\n",
            "#if 1\n#define ALT_HAS_MULTIVERSION 1\n"
            f'#define ALT_MULTIVERSION __attribute__((target("arch={LEVELS[level]}")))\n#else\n',
        )
        # Not ATEN_CPU_CAPABILITY, which limits PyTorch's kernels too: some of them fail then on processors with AMX.
        number = list(LEVELS).index(level)
        _replace(copy / "cpu" / "vectors.h", r"(inline int cpu_level\(\) \{\n)", rf"\1  return {number};\n")
    flags += ["-O1", *_SANITIZERS] if sanitize else ["-O3", "-g0"]
    include = [TORCH / "include", TORCH / "include/torch/csrc/api/include", Path(sysconfig.get_path("include"))]
    common = [
        *("-shared", "-fPIC", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-w"),
        *("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030B0000", f"-I{copy}"),
        *(f"-isystem{path}" for path in include),
        *(f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]
    sources = sorted(map(str, (copy / "cpu").glob("*.cpp")))
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        if not old.is_symlink():
            old.unlink()
    for path in (ROOT / "alt_kernels").iterdir():
        if path.suffix not in (".so", ".pyd") and path.name != "__pycache__":
            with contextlib.suppress(FileExistsError):
                (package / path.name).symlink_to(path)
    command = [compiler, *flags, *sources, *common, "-o", str(package / "_C.abi3.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
