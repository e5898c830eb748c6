"""Registration and dispatch: which implementation of an op runs, and why.

Every op is defined once, in Python, under ``torch.ops.alt_kernels``, with its schema, its fake, its FLOP formula
and its reference implementation for any device. The compiled library, where there is one, only adds faster
implementations under the CPU key, and Triton, where it is installed, under the CUDA key. So an op exists,
differentiates, compiles and is counted whether or not there is anything but torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .types import Impl

NAMESPACE = "alt_kernels"
_DISABLE = "ALT_KERNELS_DISABLE_CPP"


def _find_triton() -> bool:
    """Whether Triton is installed: looked for, not imported."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:
        return False


_HAS_TRITON = _find_triton()


class Backend(NamedTuple):
    """Whether an implementation can run in this process, and the reason in words."""

    available: bool
    reason: str


class Op(NamedTuple):
    """What was registered under a name; the tests go through this table."""

    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    flops: Callable[..., int]
    triton: str | None = None


OPS: dict[str, Op] = {}
_python_on_cpu: dict[str, Callable[..., Any]] = {}  # taken up once it is known what the compiled library has
_library = torch.library.Library(NAMESPACE, "DEF")


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int],
    cpu: Callable[..., Any] | None = None,
    triton: str | None = None,
) -> None:
    """Define ``alt_kernels::<schema>``.

    Args:
        schema: ``name(arguments) -> results`` in torch.library's notation.
        reference: plain-torch implementation for every device without a kernel of its own.
        fake: shapes and dtypes of the results (no computation).
        flops: 2 x multiply-accumulates from shapes, as ``torch.utils.flop_counter`` calls it.
        cpu: a Python implementation for the CPU key, made of a library's kernels; where the compiled library has
            one of its own, that one runs.
        triton: the module of ``alt_kernels.triton`` whose function of the op's name runs on CUDA tensors.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    # CompositeExplicitAutograd: the fallback of every backend key that has no kernel of its own.
    _library.impl(name, reference, "CompositeExplicitAutograd")
    if cpu is not None:
        _python_on_cpu[name] = cpu
    if triton is not None and _HAS_TRITON:
        _library.impl(name, _launcher(name, triton, reference), "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name))(flops)
    OPS[name] = Op(schema, reference, fake, flops, triton)


def _launcher(name: str, module: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """The CUDA implementation: Triton and the kernels are imported when the first CUDA tensor comes."""

    def launch(*args: Any) -> Any:
        if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
            return reference(*args)  # double is for checking gradients; the kernels have no such path
        with torch.cuda.device(args[0].device):  # Triton launches on the current device
            return getattr(importlib.import_module(f".triton.{module}", __package__), name)(*args)

    return launch


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)


def register_no_second_derivative(name: str) -> None:
    """A backward op that is differentiated again raises one sentence instead of giving silently nothing."""

    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"alt_kernels: {name.removesuffix('_backward')} has no second derivative")

    register_autograd(name, backward, lambda ctx, inputs, output: None)


def load_compiled() -> Backend:
    """Load ``alt_kernels/_C*.so`` if it is there; its kernels register themselves under the CPU key."""
    if os.environ.get(_DISABLE, "") not in ("", "0"):
        return Backend(False, f"switched off by {_DISABLE}={os.environ[_DISABLE]}; the plain-torch reference runs")
    found = sorted(p for p in Path(__file__).parent.glob("_C*") if p.suffix in (".so", ".pyd", ".dylib"))
    if not found:
        return Backend(
            False,
            "no compiled library beside the package (it was installed without a C++ compiler, or from source"
            " without building); the plain-torch reference runs",
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return Backend(False, f"{found[0].name} could not be loaded ({error}); the plain-torch reference runs")
    return Backend(True, f"{found[0].name} is loaded and runs on CPU tensors")


_compiled = Backend(False, "not loaded yet")


def initialise() -> None:
    """Called once by the package, after every op has been defined."""
    global _compiled
    _compiled = load_compiled()
    for name, cpu in _python_on_cpu.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU"):
            _library.impl(name, cpu, "CPU")


def backends() -> dict[str, Backend]:
    """Which implementations can run in this process, and why.

    Returns:
        ``{"reference": ..., "cpp": ..., "triton": ..., "cuda": ...}``; each a ``Backend(available, reason)``.
        ``impl="auto"`` takes C++ on CPU tensors and Triton on CUDA tensors where they are available, and the
        reference elsewhere.

    Example:
        >>> import alt_kernels
        >>> alt_kernels.backends()["reference"].available
        True
    """
    return {
        "reference": Backend(True, "plain torch, any device"),
        "cpp": _compiled,
        "triton": _triton(),
        "cuda": Backend(False, f"this version of {NAMESPACE} has no CUDA C++ kernels; CUDA tensors run Triton's"),
    }


def _triton() -> Backend:
    if not _HAS_TRITON:
        return Backend(False, "Triton is not installed; CUDA tensors run the plain-torch reference")
    if not torch.cuda.is_available():
        return Backend(False, "torch sees no CUDA device")
    return Backend(True, "runs on CUDA tensors, except in float64, which the plain-torch reference takes")


def use_reference(impl: Impl, x: Tensor, *, needs_compiled: bool = True) -> bool:
    """Resolve ``impl`` for an op on ``x``: True for the reference, False for the registered op.

    A named implementation that cannot run raises; nothing falls back silently.

    Args:
        impl: the caller's choice.
        x: the tensor whose device decides.
        needs_compiled: whether "cpp" of this op needs the compiled library (attention can do with PyTorch's kernels).
    """
    if impl not in get_args(Impl):
        choices = ", ".join(repr(c) for c in get_args(Impl))
        raise ValueError(f"impl: expected one of {choices}, got {impl!r}")
    if impl == "auto":
        return False
    if impl == "reference":
        return True
    if impl == "cpp":
        if x.device.type != "cpu":
            raise ValueError(f"impl: 'cpp' runs on CPU tensors, got a tensor on {x.device}")
        if needs_compiled and not _compiled.available:
            raise RuntimeError(f"impl: 'cpp' is not available: {_compiled.reason.split(';')[0]}")
        return False
    backend = backends()[impl]
    if not backend.available:
        raise RuntimeError(f"impl: {impl!r} is not available: {backend.reason.split(';')[0]}")
    if x.device.type != "cuda":
        raise ValueError(f"impl: {impl!r} runs on CUDA tensors, got a tensor on {x.device}")
    if x.dtype == torch.float64:
        raise TypeError(f"impl: {impl!r} works in float32, float16 and bfloat16, got float64")
    return False
