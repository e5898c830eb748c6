"""Registration and dispatch of the ops.

Every op is defined once, in Python, under ``torch.ops.alt_kernels``, with its schema, fake, FLOP formula and
reference implementation for any device. The compiled library adds faster implementations under the CPU key, and
Triton adds them under the CUDA key. So with torch alone an op exists, differentiates, compiles and is counted.

A dispatch key holds one kernel, so the CUDA C++ kernels are separate ops, ``<op>_cuda``, with the same contract.
They run for ``impl="cuda"``, and for ``impl="auto"`` where ``cuda_choice.json`` lists them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .batching import Rule, fold
from .types import Impl

NAMESPACE = "alt_kernels"
_DISABLE = "ALT_KERNELS_DISABLE_CPP"
# pip caches the wheel that it built without a compiler, and takes it again when there is one.
_CURE = (
    "where there is a C++ compiler, `pip install --force-reinstall --no-deps --no-cache-dir alt-kernels` builds it"
    " (`make ext` in a checkout)"
)


def _find_triton() -> bool:
    """True if Triton is installed; it is not imported."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:
        return False


_HAS_TRITON = _find_triton()


class Backend(NamedTuple):
    """State of an implementation: whether it can run in this process, and the reason in words."""

    available: bool
    reason: str


class Op(NamedTuple):
    """Parts of a registered op; tests iterate over this table."""

    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    flops: Callable[..., int]
    batching: Rule
    triton: str | None = None


class Choice(NamedTuple):
    """Line of ``cuda_choice.json``: a case where the CUDA C++ kernel of an op was measured to be faster."""

    op: str
    device: str  # as torch.cuda.get_device_name calls it
    max_batch: int
    max_tokens: int
    max_channels: int
    result: str  # the kept measurement, a file of the repository


OPS: dict[str, Op] = {}
CUDA_OPS: dict[str, Op] = {}  # the ops <op>_cuda
_python_on_cpu: dict[str, Callable[..., Any]] = {}  # registered after the compiled library, where that has no kernel
_library = torch.library.Library(NAMESPACE, "DEF")


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int],
    batching: Rule = fold,
    cpu: Callable[..., Any] | None = None,
    triton: str | None = None,
) -> None:
    """Defines ``alt_kernels::<schema>``.

    Args:
        schema: ``name(arguments) -> results`` in torch.library's notation.
        reference: plain-torch implementation for every device without a kernel of its own.
        fake: shapes and dtypes of the results (no computation).
        flops: 2 x multiply-accumulates from shapes, as ``torch.utils.flop_counter`` calls it.
        batching: how ``torch.func.vmap`` calls the op, see :mod:`alt_kernels.batching`.
        cpu: a Python implementation for the CPU key. A kernel of the compiled library takes precedence.
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
    OPS[name] = Op(schema, reference, fake, flops, batching, triton)
    _complete(name, OPS[name])


def register_cuda(name: str, contract: Op) -> None:
    """Defines ``alt_kernels::<name>``, which is implemented by csrc/cuda and shares all but its name with ``contract``.

    Its only kernel for CUDA tensors is the compiled one: without it the op raises there. On CPU tensors it is
    the reference, so that it can be traced and tested anywhere.
    """
    schema = name + contract.schema[contract.schema.index("(") :]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, contract.reference, "CPU")
    CUDA_OPS[name] = contract._replace(schema=schema, triton=None)
    _complete(name, contract)


def _complete(name: str, op: Op) -> None:
    """Registers the parts of an op that do not depend on a device."""
    qualified, packet = f"{NAMESPACE}::{name}", getattr(getattr(torch.ops, NAMESPACE), name)
    torch.library.register_fake(qualified, op.fake, lib=_library)
    torch.library.register_vmap(qualified, functools.partial(op.batching, packet.default), lib=_library)
    register_flop_formula(packet)(op.flops)


def implement(name: str, kernel: Callable[..., Any], key: str, *, with_keyset: bool = False) -> None:
    """Registers a kernel of ``alt_kernels::<name>`` under a dispatch key."""
    _library.impl(name, kernel, key, with_keyset=with_keyset)


def _launcher(name: str, module: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the CUDA implementation, which imports Triton and the kernels on its first call."""
    found: Callable[..., Any] | None = None
    tensors: list[int] = []  # places of the tensors among the arguments

    def launch(*args: Any) -> Any:
        nonlocal found
        if found is None:
            schema = getattr(getattr(torch.ops, NAMESPACE), name).default._schema
            tensors[:] = [i for i, argument in enumerate(schema.arguments) if "Tensor" in str(argument.type)]
            found = getattr(importlib.import_module(f".triton.{module}", __package__), name)
        for i in tensors:
            if args[i] is not None and args[i].dtype is torch.float64:
                return reference(*args)  # float64 is for checking gradients; the kernels do not support it
        if args[0].get_device() == torch.cuda.current_device():
            return found(*args)
        with torch.cuda.device(args[0].device):  # Triton launches on the current device
            return found(*args)

    return launch


def no_products(*_: object, **__: object) -> int:
    """Returns 0, the FLOP count of an op without matrix products, which alone the formulas count."""
    return 0


def _is_switched_off() -> bool:
    return os.environ.get(_DISABLE, "") not in ("", "0")


def load_compiled() -> Backend:
    """Loads ``alt_kernels/_C.*.so`` if it exists; its kernels register themselves under the CPU key."""
    if _is_switched_off():
        return Backend(False, f"switched off by {_DISABLE}={os.environ[_DISABLE]}; the plain-torch reference runs")
    return _load(
        "_C",
        absent="no compiled library beside the package (it was installed without a C++ compiler, or from source"
        " without building)",
        instead=f"the plain-torch reference runs; {_CURE}",
        loaded="runs on CPU tensors",
    )


def _load(name: str, *, absent: str, instead: str, loaded: str) -> Backend:
    """Loads a compiled library from beside this file; the arguments are the words of the reason."""
    found = sorted(p for p in Path(__file__).parent.glob(f"{name}.*") if p.suffix in (".so", ".pyd", ".dylib"))
    if not found:
        return Backend(False, f"{absent}; {instead}")
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return Backend(False, f"{found[0].name} could not be loaded ({error}); {instead}")
    return Backend(True, f"{found[0].name} is loaded and {loaded}")


def load_cuda() -> Backend:
    """Loads ``alt_kernels/_C_cuda.*.so`` if it exists and torch has CUDA; no device is touched."""
    if torch.version.cuda is None:
        return Backend(False, "this build of torch has no CUDA")
    return _load(
        "_C_cuda",
        absent="no CUDA C++ library beside the package (it is built from source, where nvcc and a torch with CUDA are)",
        instead="CUDA tensors run Triton's kernels",
        loaded=f"has {', '.join(CUDA_OPS)}",
    )


def load_choices() -> tuple[Choice, ...]:
    """Reads the measured cases in which ``impl="auto"`` takes the CUDA C++ kernel of an op."""
    path = Path(__file__).with_name("cuda_choice.json")
    choices = tuple(Choice(**line) for line in json.loads(path.read_text())["choices"])
    for choice in choices:
        if f"{choice.op}_cuda" not in CUDA_OPS:
            raise ValueError(f"{path.name}: expected the name of an op with a CUDA C++ kernel, got {choice.op!r}")
    return choices


_compiled = Backend(False, "not loaded yet")
_cuda = Backend(False, "not loaded yet")
_choices: tuple[Choice, ...] = ()
_told = False  # that the compiled library is missing


def initialise() -> None:
    """Loads the compiled libraries; the package calls it once, after every op is defined."""
    global _compiled, _cuda, _choices
    _compiled = load_compiled()
    _cuda = load_cuda()
    _choices = load_choices()
    if _choices and _cuda.available:  # only then: the decorator imports torch._dynamo, as slow as torch itself
        torch.compiler.assume_constant_result(_device_name)  # marks the function and returns it
    missed = not _compiled.available and not _is_switched_off()
    for name, op in OPS.items():
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU"):
            continue
        cpu = _python_on_cpu.get(name, op.reference if missed else None)
        if cpu is not None:
            _library.impl(name, _warn_first(cpu) if missed else cpu, "CPU")


def _warn_first(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a CPU implementation; the first call of any of them warns that the compiled library is missing."""

    def run(*args: Any) -> Any:
        global _told
        if not _told:
            _told = True
            warnings.warn(f"alt_kernels on CPU tensors: {_compiled.reason}", UserWarning, stacklevel=2)
        return kernel(*args)

    return run


def backends() -> dict[str, Backend]:
    """Returns the implementations, and for each whether and why it can run in this process.

    Returns:
        ``{"reference": ..., "cpp": ..., "triton": ..., "cuda": ...}``; each a ``Backend(available, reason)``.
        ``impl="auto"`` takes C++ on CPU tensors and Triton on CUDA tensors where they are available, and the
        reference elsewhere. "cuda" are the C++ kernels for CUDA tensors, which few operations have.

    Example:
        >>> import alt_kernels
        >>> alt_kernels.backends()["reference"].available
        True
    """
    return {
        "reference": Backend(True, "plain torch, any device"),
        "cpp": _compiled,
        "triton": _triton(),
        "cuda": _cuda_cpp(),
    }


def _cuda_cpp() -> Backend:
    if _cuda.available and not torch.cuda.is_available():
        return Backend(False, "torch sees no CUDA device")
    return _cuda


def _triton() -> Backend:
    if not _HAS_TRITON:
        return Backend(False, "Triton is not installed; CUDA tensors run the plain-torch reference")
    if not torch.cuda.is_available():
        return Backend(False, "torch sees no CUDA device")
    return Backend(True, "runs on CUDA tensors, except in float64, which the plain-torch reference takes")


def use_reference(impl: Impl, x: Tensor, *others: Tensor | None, needs_compiled: bool = True) -> bool:
    """Resolves ``impl`` for an op on ``x``: True for the reference, False for the registered op.

    A named implementation that cannot run raises; nothing falls back silently.

    Args:
        impl: the caller's choice.
        x: the tensor whose device decides.
        others: the other floating arguments, any of which may be float64.
        needs_compiled: False where "cpp" of this op also runs without the compiled library, on PyTorch's kernels.
    """
    if impl == "auto":
        return False
    if impl not in get_args(Impl):
        choices = ", ".join(repr(c) for c in get_args(Impl))
        raise ValueError(f"impl: expected one of {choices}, got {impl!r}")
    if impl == "reference":
        return True
    if impl == "cpp":
        if x.device.type != "cpu":
            raise ValueError(f"impl: 'cpp' runs on CPU tensors, got a tensor on {x.device}")
        if needs_compiled and not _compiled.available:
            raise RuntimeError(f"impl: 'cpp' is not available: {_compiled.reason.split(';')[0]}")
        return False
    if impl == "cuda":  # an operation that has such kernels asks use_cuda first
        raise RuntimeError("impl: 'cuda' is not available for this operation, which has no CUDA C++ kernel")
    _require_gpu(impl, x, *others)
    return False


def _require_gpu(impl: Impl, *tensors: Tensor | None) -> None:
    there = _cuda.available if impl == "cuda" else _HAS_TRITON
    # A CUDA tensor shows that torch sees a device; asking the driver again would cost more than the launch.
    if not there or any(x is not None and x.device.type != "cuda" for x in tensors):
        backend = backends()[impl]
        if not backend.available:
            raise RuntimeError(f"impl: {impl!r} is not available: {backend.reason.split(';')[0]}")
    for x in tensors:
        if x is not None and x.device.type != "cuda":
            raise ValueError(f"impl: {impl!r} runs on CUDA tensors, got a tensor on {x.device}")
        if x is not None and x.dtype == torch.float64:
            raise TypeError(f"impl: {impl!r} works in float32, float16 and bfloat16, got float64")


def use_cuda(name: str, impl: Impl, x: Tensor, *others: Tensor | None) -> bool:
    """True if ``<name>_cuda`` runs: for "cuda", and for "auto" where a kept result lists it.

    Args:
        name: the name of the op.
        impl: the caller's choice; "cuda" raises where it cannot run.
        x: ``[B, ..., N, C]``, whose device and shape decide.
        others: the other floating arguments.
    """
    if impl == "cuda":
        _require_gpu(impl, x, *others)
        return True
    # An empty table costs one comparison. Limits are inequalities, so a graph is not recompiled as N shrinks.
    if impl != "auto" or not _choices or not _cuda.available or x.device.type != "cuda":
        return False
    if any(t is not None and t.dtype == torch.float64 for t in (x, *others)):
        return False
    device = _device_name(x.device.index)
    batch, (tokens, channels) = x.shape[0], x.shape[-2:]
    return any(
        c.op == name
        and c.device == device
        and batch <= c.max_batch
        and tokens <= c.max_tokens
        and channels <= c.max_channels
        for c in _choices
    )


@functools.cache
def _read_device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _device_name(index: int) -> str:
    """Returns the name of a GPU: looked up once, and a constant under ``torch.compile`` (see :func:`initialise`).

    The mark must be on a plain function: Dynamo looks through ``functools.cache`` and would not see it there.
    """
    return _read_device_name(index)
