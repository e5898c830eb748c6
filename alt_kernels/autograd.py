"""Derivatives of the ops: reverse mode, forward mode where an op is linear, and one sentence where there is none.

``torch.library.register_autograd`` would register the same reverse mode. It is not used for three reasons. Its function
refuses ``torch.func``; it drops the tangents of forward mode, so they come out as zeros; and its Python layer costs
more than the launch of a small kernel. The kernel below does what that layer does, for ops without keyword arguments,
defaults and lists of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _after_autograd_keyset,
    _any_requires_grad,
    _are_functorch_transforms_active,
    _AutoDispatchBelowAutograd,
)
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from .library import NAMESPACE, implement

Formula = Callable[..., tuple[Any, ...]]
"""``(ctx, saved tensors, *gradients of the results) -> gradients of the arguments``; a gradient may be None."""
Save = Callable[[Any, tuple[Any, ...], Any], None]
"""``(ctx, arguments, results)``: keeps what the formula reads."""


def register_autograd(name: str, backward: Formula, save: Save, *, linear: bool = False) -> None:
    """Registers the derivative of ``alt_kernels::<name>``.

    Args:
        name: an op whose derivative with respect to its constants (sizes, plans, noise) is never asked for.
        backward: the reverse mode. If grad mode is on while it runs (``create_graph=True``), its ops are recorded.
        save: runs in the forward, below autograd.
        linear: the op is linear in its first argument and all other arguments are constants. So its forward mode is
            the op itself, applied to the tangent. Forward mode of any other op raises.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    redispatch = op._handle.redispatch_boxed

    def forward(ctx: Any, *args: Any) -> Any:
        inputs, keyset = args[:-1], args[-1] & _after_autograd_keyset
        with _AutoDispatchBelowAutograd():
            if _are_functorch_transforms_active():
                # The next transform may record as well; torch switched that off for this function.
                with forward_ad._set_fwd_grad_enabled(True), torch.enable_grad():
                    results = redispatch(keyset, *inputs)
            else:
                results = redispatch(keyset, *inputs)
        ctx.set_materialize_grads(False)
        save(ctx, inputs, results)
        if forward_ad._current_level >= 0:
            ctx.inputs = inputs
        return results

    def derive(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # Unpacked first: with checkpointing this runs the forward again, which needs autograd.
        saved = ctx.saved_tensors
        if (
            torch.compiler.is_dynamo_compiling()  # compiled autograd
            or torch.is_grad_enabled()
            or forward_ad._current_level >= 0
            or _are_functorch_transforms_active()
        ):
            return *backward(ctx, saved, *grads), None
        with _AutoDispatchBelowAutograd():
            return *backward(ctx, saved, *grads), None

    def push_forward(ctx: Any, *tangents: Tensor | None) -> Any:
        inputs = ctx.inputs
        del ctx.inputs  # it holds the results of other ops
        if not linear:
            raise NotImplementedError(_advice(name, "forward-mode derivative"))
        tangent, *constants = tangents
        if tangent is None or any(t is not None for t in constants):
            raise ValueError(f"alt_kernels: {name}: only its first argument has a derivative, another has a tangent")
        results = op(tangent, *inputs[1:])
        return (results[0], *(None,) * (len(results) - 1)) if isinstance(results, tuple) else results

    functions = {"forward": forward, "backward": derive, "jvp": push_forward}
    derivative = type(name, (torch.autograd.Function,), {key: staticmethod(f) for key, f in functions.items()})
    # Function.apply refuses to run inside torch.func. But the dispatcher calls this kernel once per level of nested
    # transforms, each time with tensors of that level, so the apply below it is right, and says so to torch.
    apply = super(torch.autograd.Function, derivative).apply  # type: ignore[misc]

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if (torch.is_grad_enabled() and _any_requires_grad(*args)) or forward_ad._current_level >= 0:
            if _are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return apply(*args, keyset)
            return apply(*args, keyset)
        with _AutoDispatchBelowAutograd():
            return redispatch(keyset & _after_autograd_keyset, *args)

    implement(name, kernel, "Autograd", with_keyset=True)


def register_no_second_derivative(name: str) -> None:
    """Makes a second derivative of the op raise, where torch would silently return none."""

    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Any, ...]:
        raise NotImplementedError(_advice(name, "derivative"))

    register_autograd(name, backward, lambda ctx, inputs, results: None)


def entry(name: str) -> Callable[..., Any]:
    """Returns a function that calls the op, and skips autograd's key if nothing is differentiated.

    The kernel of that key is written in Python and costs more than the rest of a call.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    run = op._op  # what calling the op calls

    def call(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return op(*args)
        if (
            (torch.is_grad_enabled() and _any_requires_grad(*args))
            or forward_ad._current_level >= 0
            # Each transform has a grad mode of its own, of which only the innermost can be read.
            or _are_functorch_transforms_active()
        ):
            return run(*args)
        with _AutoDispatchBelowAutograd():
            return run(*args)

    return call


def _advice(name: str, what: str) -> str:
    order = "second " if name.endswith("_backward") else ""
    return (
        f"alt_kernels: {name.removesuffix('_backward')} has no {order}{what} except in plain torch:"
        ' pass impl="reference" to the function, or to alt.patch_clip'
    )
