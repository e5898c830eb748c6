"""Build of the compiled library ``alt_kernels._C``; everything else is declared in pyproject.toml.

The library is written against the LibTorch stable ABI and Python's limited API, so one build serves
torch >= 2.11 and Python >= 3.11. It is optional: where it cannot be built, the package installs as
pure Python with one warning, and ``alt_kernels.backends()`` says so at run time.

Environment variables:
    AK_BUILD_EXT=0     do not try to build the library
    AK_REQUIRE_EXT=1   fail when the library cannot be built
    CXX, MAX_JOBS      as everywhere
"""

from __future__ import annotations

import glob
import os
import sys
import warnings
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MIN_TORCH = "0x020b000000000000"  # the torch 2.11 stable ABI: the oldest release the library loads on
MIN_PYTHON = "0x030B0000"
ABI_TAG = "cp311"

SOURCES = sorted(glob.glob("csrc/cpu/*.cpp"))
HEADERS = sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h"))

REQUIRED = os.environ.get("AK_REQUIRE_EXT", "0") == "1"
WANTED = REQUIRED or os.environ.get("AK_BUILD_EXT", "1") != "0"

# Loops are vectorised from `#pragma omp simd`; the two -fno flags let the compiler if-convert them.
# No -ffast-math: infinities and NaN keep their meaning. No -std: torch adds the one its headers need.
FLAGS = ["/O2"] if sys.platform == "win32" else [
    "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
]  # fmt: skip


def give_up(reason: object) -> None:
    """Go on without the library, or stop if the caller asked for it."""
    if REQUIRED:
        raise RuntimeError(f"AK_REQUIRE_EXT=1, but alt_kernels._C could not be built: {reason}")
    warnings.warn(
        f"alt_kernels._C could not be built, installing without the compiled CPU kernels: {reason}", stacklevel=2
    )


def extension() -> Extension | None:
    """The extension, or None where it is not wanted or torch's build tools cannot be imported."""
    if not (WANTED and SOURCES):
        return None
    try:
        from torch.utils import cpp_extension
    except Exception as error:  # a torch without headers, a broken one, or none
        give_up(f"torch.utils.cpp_extension cannot be imported ({type(error).__name__}: {error})")
        return None
    cpp_extension.min_supported_cpython = MIN_PYTHON  # torch passes this as -DPy_LIMITED_API
    return cpp_extension.CppExtension(
        "alt_kernels._C",
        SOURCES,
        include_dirs=[os.path.abspath("csrc")],
        depends=HEADERS,
        define_macros=[("TORCH_TARGET_VERSION", MIN_TORCH)],
        extra_compile_args={"cxx": FLAGS},
        py_limited_api=True,
    )


def build_command() -> type[build_ext]:
    """torch's build command, made optional."""
    # A virtual environment's ninja is found even when the environment is not activated.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    from torch.utils.cpp_extension import BuildExtension

    class OptionalBuildExtension(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
                self.extensions = []
                self.distribution.ext_modules = []

    return OptionalBuildExtension


class Wheel(bdist_wheel):
    """Builds the library first, so that a wheel without it is tagged as the pure one it is."""

    def run(self) -> None:
        if self.distribution.has_ext_modules():
            self.run_command("build_ext")
            self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


module = extension()
commands: dict[str, Any] = {"bdist_wheel": Wheel}
if module is not None:
    commands["build_ext"] = build_command()

setup(
    ext_modules=[module] if module is not None else [],
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": ABI_TAG}} if module is not None else {},
)
