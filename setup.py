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

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MIN_TORCH = "0x020b000000000000"  # the torch 2.11 stable ABI: the oldest release the library loads on
MIN_PYTHON = "0x030B0000"
ABI_TAG = "cp311"

MODULE = "alt_kernels._C"
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
        raise RuntimeError(f"AK_REQUIRE_EXT=1, but {MODULE} could not be built: {reason}")
    warnings.warn(f"{MODULE} could not be built, installing without the compiled CPU kernels: {reason}", stacklevel=2)


class OptionalBuild(build_ext):
    """Hands over to torch's build command; whatever fails on the way leaves a pure-Python package.

    torch is imported here and not above, so that sdists and metadata need neither it nor its two seconds.
    """

    def run(self) -> None:
        try:
            self.build_with_torch()
        except Exception as error:
            text = str(error).strip()
            give_up(f"{type(error).__name__}: {text.splitlines()[0] if text else '(no message)'}")
            self.extensions = []
            self.distribution.ext_modules = []

    def build_with_torch(self) -> None:
        # A virtual environment's ninja is found even when the environment is not activated.
        os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
        from torch.utils import cpp_extension

        cpp_extension.min_supported_cpython = MIN_PYTHON  # torch passes this as -DPy_LIMITED_API
        self.distribution.ext_modules = [
            cpp_extension.CppExtension(
                MODULE,
                SOURCES,
                include_dirs=[os.path.abspath("csrc")],
                depends=HEADERS,
                define_macros=[("TORCH_TARGET_VERSION", MIN_TORCH)],
                extra_compile_args={"cxx": FLAGS},
                py_limited_api=True,
            )
        ]
        command = cpp_extension.BuildExtension(self.distribution)
        for option in ("inplace", "editable_mode", "build_lib", "build_temp", "force", "debug", "parallel"):
            setattr(command, option, getattr(self, option))
        command.ensure_finalized()
        command.run()


class Wheel(bdist_wheel):
    """Builds the library first, so that a wheel without it is tagged as the pure one it is."""

    def run(self) -> None:
        if self.distribution.has_ext_modules():
            self.run_command("build_ext")
            self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


# A stand-in that tells setuptools what file will come; OptionalBuild knows how it is made.
modules = [Extension(MODULE, SOURCES, depends=HEADERS, py_limited_api=True)] if WANTED and SOURCES else []

setup(
    ext_modules=modules,
    cmdclass={"bdist_wheel": Wheel, "build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": ABI_TAG}} if modules else {},
)
