"""Corrections of Triton 3.6's interpreter, which computes with the bits of a bfloat16 instead of its value.

Without them a product of bfloat16 tiles is one of uint16 numbers, and float32 -> bfloat16 truncates where the GPU
rounds to nearest even. Here arithmetic goes through float32 (the GPU's own way on sm_80) and conversion through torch.
With NumPy >= 2.4 a loop with a run-time bound fails as well, for want of ``.item()``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle
WIDE = (tl.float16, tl.bfloat16, tl.float32, tl.float64)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values behind the bits of a bfloat16, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; its bits."""
    rounded = torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def value_of(handle: Handle) -> NDArray[Any]:
    return widen(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data


def handle_of(values: NDArray[Any], dtype: Any) -> Handle:
    """``values`` as a tensor of ``dtype``; those of a comparison stay truth values."""
    return Handle(narrow(values) if dtype == tl.bfloat16 and values.dtype != bool else values, dtype)


def install() -> None:
    """Replace the methods in question, once a process."""
    if getattr(Builder, "computes_bfloat16", False):
        return
    originals = {name: getattr(Builder, name) for name in ("cast_impl", "create_fp_to_fp", "binary_op", "unary_op")}

    def touches(*dtypes: Any) -> bool:
        return any(dtype.scalar == tl.bfloat16 for dtype in dtypes)

    def cast_impl(self: Any, src: Handle, dst_type: Any) -> Handle:
        if not touches(src.dtype, dst_type):
            return originals["cast_impl"](self, src, dst_type)
        values, dst = value_of(src), dst_type.scalar
        return handle_of(values if dst == tl.bfloat16 else values.astype(interpreter._get_np_dtype(dst)), dst)

    def create_fp_to_fp(self: Any, src: Handle, dst_type: Any, rounding_mode: Any) -> Handle:
        if touches(src.dtype, dst_type) and src.dtype.scalar in WIDE and dst_type.scalar in WIDE:
            return cast_impl(self, src, dst_type)
        return originals["create_fp_to_fp"](self, src, dst_type, rounding_mode)

    def binary_op(self: Any, lhs: Handle, rhs: Handle, op: Any) -> Handle:
        if not touches(lhs.dtype, rhs.dtype):
            return originals["binary_op"](self, lhs, rhs, op)
        return handle_of(op(value_of(lhs), value_of(rhs)), lhs.dtype.scalar)

    def unary_op(self: Any, arg: Handle, op: Any) -> Handle:
        if not touches(arg.dtype):
            return originals["unary_op"](self, arg, op)
        return handle_of(op(value_of(arg)), arg.dtype.scalar)

    def create_fma(self: Any, x: Handle, y: Handle, z: Handle) -> Handle:
        return handle_of(value_of(x) * value_of(y) + value_of(z), z.dtype.scalar)

    def create_clampf(self: Any, arg: Handle, low: Handle, high: Handle, propagate_nans: Any) -> Handle:
        return handle_of(np.clip(value_of(arg), value_of(low), value_of(high)), arg.dtype.scalar)

    def create_dot(
        self: Any, a: Handle, b: Handle, d: Handle, input_precision: Any, max_num_imprecise_acc: Any
    ) -> Handle:
        for operand in (a, b):
            if operand.dtype.scalar not in WIDE:
                raise NotImplementedError(f"the interpreter's dot of {operand.dtype.scalar} is not corrected here")
        acc = value_of(d)
        product = np.matmul(value_of(a).astype(acc.dtype), value_of(b).astype(acc.dtype))
        return handle_of(product + acc, d.dtype.scalar)

    def get_bf16(self: Any, value: float) -> Handle:
        return Handle(narrow(np.array([value])), tl.bfloat16)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    check_tensor = interpreter.ReduceScanOpInterface.check_tensor

    def check_reduced(self: Any, input: Any) -> None:
        if touches(*(tensor.dtype for tensor in input)):
            raise NotImplementedError("the interpreter reduces the bits of a bfloat16: convert to float32 first")
        check_tensor(self, input)

    for function in (cast_impl, create_fp_to_fp, binary_op, unary_op, create_fma, create_clampf, create_dot, get_bf16):
        setattr(Builder, function.__name__, function)
    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter.ReduceScanOpInterface.check_tensor = check_reduced
    Builder.computes_bfloat16 = True
