"""Argument checks shared by the contracts: one wording for every op.

Each message names the argument, what was expected and what came. The checks read shapes, dtypes and devices, never
values on a device. So they cost no synchronisation and vanish under ``torch.compile``.

The host time of a call counts in small batches, so a contract first asks whether everything fits (``fits_plan`` and
its like, one expression over all arguments), and runs the checks, which say what is wrong, only where something does
not. What fits passes every check.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from .types import Matching

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def tensor(name: str, value: Any, layout: str) -> Tensor:
    """Returns ``value``, a float tensor with the number of dimensions of ``layout`` ("[B, N, C]")."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {layout}, got {type(value).__name__}")
    ndim = layout.count(",") + 1
    if value.dim() != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions {layout}, got shape {_shape(value)}")
    return float_dtype(name, value)


def float_dtype(name: str, value: Tensor) -> Tensor:
    """Returns ``value``, a tensor of one of the four float dtypes."""
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {_dtype(value)}")
    return value


def shape(name: str, value: Tensor, expected: tuple[int, ...], why: str) -> None:
    """Raises unless ``value`` has the shape ``expected``; ``why`` explains it in the message."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {_sizes(expected)} ({why}), got {_shape(value)}")


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name} ({other.device}), got {value.device}")


def same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both tensors have one dtype."""
    if value.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name} ({_dtype(other)}), got {_dtype(value)}")


def integer(name: str, value: Any, minimum: int) -> int:
    """Returns ``value`` as an int not below ``minimum``: an int (symbolic while compiling) or NumPy's, no bool."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}: expected an int >= {minimum}, got {type(value).__name__} {value!r}")
        value = int(value)
    if value < minimum:
        raise ValueError(f"{name}: expected an int >= {minimum}, got {value}")
    return value


def finite_float(name: str, value: Any, *, positive: bool = False) -> float:
    """Returns ``value`` as a float that is finite, and above 0 where ``positive``."""
    expected = "a finite number > 0" if positive else "a finite number"
    # Real covers NumPy's numbers; it comes last because torch.compile cannot ask it of a float that it made dynamic.
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or isinstance(value, numbers.Real)):  # noqa: SIM101
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of floats
        number = math.inf
    # Not math.isfinite, which does not take a float that torch.compile made dynamic. NaN fails too.
    if not (-math.inf < number < math.inf) or (positive and number <= 0):
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return number


def is_readable(value: Tensor) -> bool:
    """True if reading values costs no synchronisation: a plain tensor on the CPU, not while compiling or in a vmap."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def token_size(name: str, size: Tensor | None, batch: int, tokens: int, like_name: str, like: Tensor) -> None:
    """Raises unless ``size`` is None or float32 ``[B, N]`` on the tokens' device and constant for autograd."""
    if size is None:
        return
    if not isinstance(size, Tensor):
        raise TypeError(f"{name}: expected a float32 tensor [B, N] or None, got {type(size).__name__}")
    if size.dtype != torch.float32:
        # bfloat16 cannot count: 256 + 1 = 256 there.
        raise TypeError(f"{name}: expected float32, got {_dtype(size)}")
    shape(name, size, (batch, tokens), f"one size for each token of {like_name}")
    same_device(name, size, like_name, like)
    if size.requires_grad:
        raise ValueError(f"{name}: sizes are constants of the operation and get no gradient, got requires_grad=True")


def fits_plan(matching: Any, batch: int, tokens: int | None, rows: int | None, device: torch.device) -> bool:
    """True if :func:`matching_plan` accepts ``matching``; not of a plan that is a plain tuple."""
    if not isinstance(matching, Matching):
        return False
    indices, offsets, output_row = matching
    if not (isinstance(indices, Tensor) and isinstance(offsets, Tensor) and isinstance(output_row, Tensor)):
        return False
    shape, starts = indices.shape, offsets.shape
    return (
        len(shape) == len(starts) == 2
        and shape == output_row.shape
        and shape[0] == starts[0] == batch
        and 1 <= starts[1] <= shape[1] + 1
        and (tokens is None or shape[1] == tokens)
        and (rows is None or starts[1] == rows + 1)
        and indices.dtype == offsets.dtype == output_row.dtype == torch.int32
        and device == indices.device == offsets.device == output_row.device
    )


def fits_float(value: Any, shape: tuple[int, ...], device: torch.device) -> bool:
    """True if ``value`` is a float tensor of this shape on this device."""
    return isinstance(value, Tensor) and value.shape == shape and value.dtype in FLOAT_DTYPES and value.device == device


def fits_size(size: Any, batch: int, tokens: int, device: torch.device) -> bool:
    """True if :func:`token_size` accepts ``size``."""
    return size is None or (
        isinstance(size, Tensor)
        and size.dtype == torch.float32
        and size.shape == (batch, tokens)
        and size.device == device
        and not size.requires_grad
    )


def plan(name: str, value: Any) -> Matching:
    """Returns ``value`` as a ``Matching`` of int32 tensors with consistent shapes; the kernels check the values."""
    if not (isinstance(value, tuple) and len(value) == 3 and all(isinstance(t, Tensor) for t in value)):
        raise TypeError(f"{name}: expected a Matching from bipartite_soft_matching, got {type(value).__name__}")
    for field, part in zip(Matching._fields, value, strict=True):
        if part.dtype != torch.int32:
            raise TypeError(f"{name}.{field}: expected int32, got {_dtype(part)}")
        if part.dim() != 2:
            raise ValueError(f"{name}.{field}: expected 2 dimensions, got shape {_shape(part)}")
        same_device(f"{name}.{field}", part, f"{name}.indices", value[0])
    indices, offsets, output_row = value
    if (
        indices.shape != output_row.shape
        or offsets.shape[0] != indices.shape[0]
        or not 1 <= offsets.shape[1] <= indices.shape[1] + 1
    ):
        raise ValueError(
            f"{name}: indices {_shape(indices)}, offsets {_shape(offsets)} and output_row {_shape(output_row)}"
            " do not belong to one plan"
        )
    return Matching(*value)


def matching_plan(
    matching: Any, batch: int, tokens: int | None, rows: int | None, like_name: str, like: Tensor
) -> None:
    """Raises unless ``matching`` is a plan of ``batch`` images.

    It must have ``tokens`` input tokens and ``rows`` output rows, where these are not None.
    """
    indices, offsets, _ = plan("matching", matching)
    same_device("matching", indices, like_name, like)
    if indices.shape[0] != batch:
        raise ValueError(f"matching: expected a plan of {batch} images as in {like_name}, got {indices.shape[0]}")
    if tokens is not None and indices.shape[1] != tokens:
        raise ValueError(
            f"matching: expected a plan of {tokens} input tokens as in {like_name} {_shape(like)},"
            f" got a plan of {indices.shape[1]}"
        )
    if rows is not None and offsets.shape[1] - 1 != rows:
        raise ValueError(
            f"matching: expected a plan of {rows} output rows as in {like_name} {_shape(like)},"
            f" got a plan of {offsets.shape[1] - 1}"
        )


def _shape(value: Tensor) -> str:
    return _sizes(tuple(value.shape))


def _sizes(sizes: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(s) for s in sizes) + "]"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
