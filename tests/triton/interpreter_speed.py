"""Makes Triton 3.6's interpreter faster, without a change of what it computes or checks.

Half of its time goes into work that it has done before. Every call of a device function searches all of
``triton.language`` for what to replace, though the launch has replaced it already; every type of a block is built and
validated anew, though a kernel has a dozen. Whether a sum of integers fits is computed,
and then only asked for in debugging.
"""

from __future__ import annotations

import math
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic as semantic
from triton.runtime import interpreter

core = tl.core


def install() -> None:
    """Replace the functions in question, once per process."""
    if hasattr(interpreter, "is_faster"):
        return
    interpreter._patch_lang = patch_language_once(interpreter._patch_lang)
    interpreter._get_np_dtype = remember_numpy_types(interpreter._get_np_dtype)
    core.block_type.__init__ = remember_block_types(core.block_type.__init__)
    core.tensor.__init__ = remember_shapes()
    semantic.binary_op_sanitize_overflow_impl = check_overflow_in_debugging(semantic.binary_op_sanitize_overflow_impl)
    interpreter.is_faster = True


def patch_language_once(patch: Any) -> Any:
    """Returns ``patch`` for launches; in the device functions that they call nothing is left to replace."""

    def patch_language(function: Any) -> Any:
        found = [module for module in (tl, core) if module in map_of_modules(function)]
        replaced = all(not core.is_builtin(module.load) for module in found)
        if found and replaced and not core.is_builtin(core.tensor.__add__):
            return interpreter._LangPatchScope()
        return patch(function)

    modules: dict[Any, list[Any]] = {}

    def map_of_modules(function: Any) -> list[Any]:
        if function not in modules:
            modules[function] = [value for value in function.__globals__.values() if value is tl or value is core]
        return modules[function]

    return patch_language


def remember_numpy_types(find: Any) -> Any:
    """``find`` builds a table of twenty types per call; types of one name have one NumPy type."""
    found: dict[str, Any] = {}

    def numpy_type(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = find(dtype)
        return found[name]

    return numpy_type


def remember_block_types(init: Any) -> Any:
    """A block type of the same element type (the object, which the entry keeps alive) and shape is a copy."""
    found: dict[Any, dict[str, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (id(element_ty), *(length.value if isinstance(length, tl.constexpr) else length for length in shape))
        if key not in found:
            init(self, element_ty, shape)
            found[key] = dict(vars(self)) | {"as_constants": constants(self.shape)}
        vars(self).update(found[key])

    return block_type


def constants(shape: Any) -> tuple[Any, Any]:
    """The number of elements and the shape as a tensor has them."""
    return tl.constexpr(math.prod(shape)), core.tuple([tl.constexpr(length) for length in shape])


def remember_shapes() -> Any:
    """Returns a constructor of ``tl.tensor`` that takes both from its type."""
    scalar = constants(())

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = type.as_constants if type.is_block() else scalar

    return tensor


def check_overflow_in_debugging(check: Any) -> Any:
    """Without ``debug`` the answer of ``check``, seven operations for a sum of integers, is dropped."""

    def check_overflow(self: Any, *operands: Any) -> None:
        if self.builder.options.debug:
            check(self, *operands)

    return check_overflow
