"""Build of the compiled libraries ``alt_kernels._C`` and ``_C_cuda``; everything else is declared in pyproject.toml.

They are written against the LibTorch stable ABI and Python's limited API, so one build serves
torch >= 2.11 and Python >= 3.11. ``_C`` is optional: where it cannot be built, the package installs as
pure Python with one warning, and ``alt_kernels.backends()`` says so at run time. ``_C_cuda`` is built
as well where there are nvcc, a torch with CUDA and a GPU; where they are not, nothing is said about it.

Environment variables:
    AK_BUILD_EXT=0         do not try to build the libraries
    AK_REQUIRE_EXT=1       fail when _C cannot be built; it asks nothing of _C_cuda
    AK_BUILD_CUDA=0, 1     do not try to build _C_cuda; build it without a GPU too, and fail when it cannot be built
    TORCH_CUDA_ARCH_LIST   the GPUs of _C_cuda; default: those of this machine, else 8.0, 9.0 and 10.0
    CUDA_HOME, CXX, MAX_JOBS   as everywhere
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import warnings
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MIN_TORCH = "0x020b000000000000"  # the torch 2.11 stable ABI: the oldest release the library loads on
MIN_PYTHON = "0x030B0000"
ABI_TAG = "cp311"

MODULE = "alt_kernels._C"
SOURCES = sorted(glob.glob("csrc/cpu/*.cpp"))
HEADERS = sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cpu/*.h"))

CUDA_MODULE = "alt_kernels._C_cuda"
CUDA_SOURCES = sorted(glob.glob("csrc/cuda/*.cu") + glob.glob("csrc/cuda/*.cpp"))
CUDA_HEADERS = sorted(glob.glob("csrc/*.h") + glob.glob("csrc/cuda/*.h") + glob.glob("csrc/cuda/*.cuh"))
CUDA = os.environ.get("AK_BUILD_CUDA", "")

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


def cuda_home() -> str | None:
    """The folder of an nvcc that has the runtime's headers beside it (a wrapper script on the PATH has not)."""
    found = shutil.which("nvcc")
    beside = os.path.dirname(os.path.dirname(os.path.realpath(found))) if found else None
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), beside, "/usr/local/cuda"):
        needed = ("bin/nvcc", "include/cuda_runtime.h")
        if home and all(os.path.isfile(os.path.join(home, name)) for name in needed):
            return home
    return None


def cuda_architectures(home: str) -> str:
    """Those this nvcc knows of the ones the kernels are compiled for in the tests; the last as PTX too."""
    listed = subprocess.run(
        [os.path.join(home, "bin", "nvcc"), "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    known = [name for name in ("8.0", "9.0", "10.0") if f"compute_{name.replace('.', '')}" in listed]
    return ";".join(known) + "+PTX"


class OptionalBuild(build_ext):
    """Hands over to torch's build command; whatever fails on the way leaves a package without the library.

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
            return
        built = self.distribution.ext_modules
        try:
            self.build_with_nvcc()
        except Exception as error:
            text = str(error).strip()
            reason = f"{type(error).__name__}: {text.splitlines()[0] if text else '(no message)'}"
            if CUDA == "1":
                raise RuntimeError(f"AK_BUILD_CUDA=1, but {CUDA_MODULE} could not be built: {reason}") from error
            warnings.warn(f"{CUDA_MODULE} could not be built, installing without it: {reason}", stacklevel=2)
        self.distribution.ext_modules = built

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
        self.hand_over()

    def build_with_nvcc(self) -> None:
        """The CUDA library, where it can be built or was asked for. It brings the CUDA runtime along, hidden."""
        import torch
        from torch.utils import cpp_extension

        home = cuda_home()
        if CUDA == "0" or not CUDA_SOURCES:
            return
        if CUDA != "1" and (home is None or torch.version.cuda is None or not torch.cuda.is_available()):
            return  # minutes of nvcc are for who has a GPU, or asks
        if torch.version.cuda is None:
            raise RuntimeError("this build of torch has no CUDA")
        if home is None:
            raise RuntimeError("no nvcc with its headers; CUDA_HOME names the toolkit's folder")
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = home
        if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
            os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures(home)
        extension = cpp_extension.CUDAExtension(
            CUDA_MODULE,
            CUDA_SOURCES,
            include_dirs=[os.path.abspath("csrc")],
            depends=CUDA_HEADERS,
            define_macros=[("TORCH_TARGET_VERSION", MIN_TORCH), ("USE_CUDA", None)],
            # Fused multiply-adds are those that the kernels ask for: see csrc/cuda/device.h.
            extra_compile_args={"cxx": ["-O3", "-g0"], "nvcc": ["-O3", "-fmad=false"]},
            extra_link_args=["-Wl,--exclude-libs,ALL"],
            py_limited_api=True,
        )
        # A library that asked for one libcudart would load only beside a torch of the same CUDA release.
        shared = ("cudart", "c10_cuda")
        extension.libraries = [name for name in extension.libraries if name not in shared]
        extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
        self.distribution.ext_modules = [extension]
        self.hand_over()

    def hand_over(self) -> None:
        from torch.utils import cpp_extension

        command: Any = cpp_extension.BuildExtension(self.distribution)
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
