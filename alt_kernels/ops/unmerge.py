"""Contracts of unmerge and source map, which lead from output rows back to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import autograd, checks, library
from ..reference import unmerge as reference
from ..types import Impl, Matching

_OPS = torch.ops.alt_kernels


def unmerge(x: Tensor, matching: Matching, *, impl: Impl = "auto") -> Tensor:
    r"""Copies each output row back to its tokens: :math:`y_i = x_{j(i)}`.

    Args:
        x: ``[B, N', C]``, float32, float16, bfloat16 or float64.
        matching: the plan, of B images and N' output rows.
        impl: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``[B, N, C]`` in x's dtype. The gradient of a row is the sum over its tokens.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`~alt_kernels.weighted_merge`.
    """
    checks.tensor("x", x, "[B, N', C]")
    batch, rows, _ = x.shape
    if not checks.fits_plan(matching, batch, None, rows, x.device):
        checks.matching_plan(matching, batch, None, rows, "x", x)
    run = reference.unmerge if library.use_reference(impl, x) else _unmerge
    return run(x, *matching)


def source_map(matchings: Sequence[Matching]) -> Tensor:
    """Returns the final output row of every input token, through a chain of plans.

    Args:
        matchings: the plans in the order in which they were applied, at least one. Each takes as many tokens as
            the plan before it leaves.

    Returns:
        ``[B, N]`` int64, where N counts the input tokens of the first plan.

    Raises:
        TypeError: ``matchings`` is not a sequence of plans.
        ValueError: there is no plan, or one does not take what the plan before it leaves.
    """
    if isinstance(matchings, Matching) or not isinstance(matchings, Sequence):
        raise TypeError(f"matchings: expected a sequence of plans, got {type(matchings).__name__}")
    if len(matchings) == 0:
        raise ValueError("matchings: expected at least one plan, got none")
    rows: Tensor | None = None
    left = 0  # rows that the previous plan leaves
    for depth, value in enumerate(matchings):
        name = f"matchings[{depth}]"
        plan = checks.plan(name, value)
        output_row = plan.output_row.long()
        if rows is None:
            rows = output_row
        else:
            checks.same_device(name, output_row, "matchings[0]", rows)
            if output_row.shape != (rows.shape[0], left):
                raise ValueError(
                    f"{name}: expected a plan of the {left} tokens of {rows.shape[0]} images that the one before"
                    f" it leaves, got a plan of {output_row.shape[1]} tokens of {output_row.shape[0]} images"
                )
            rows = output_row.gather(1, rows)
        left = plan.offsets.shape[1] - 1
    assert rows is not None
    return rows


def _fake(x: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], output_row.shape[1], x.shape[2]))


def _backward_fake(grad: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[0], offsets.shape[1] - 1, grad.shape[2]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None) -> tuple[Any, ...]:
    return None if grad is None else _OPS.unmerge_backward(grad, *saved), None, None, None


def _twice_backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None) -> tuple[Any, ...]:
    return None if grad is None else _OPS.unmerge(grad, *saved), None, None, None


library.register(
    "unmerge(Tensor x, Tensor indices, Tensor offsets, Tensor output_row) -> Tensor",
    reference=reference.unmerge,
    fake=_fake,
    flops=library.no_products,
    triton="weighted_merge",
)
library.register(
    "unmerge_backward(Tensor grad, Tensor indices, Tensor offsets, Tensor output_row) -> Tensor",
    reference=reference.unmerge_backward,
    fake=_backward_fake,
    flops=library.no_products,
    triton="weighted_merge",
)
autograd.register_autograd("unmerge", _backward, _save, linear=True)
autograd.register_autograd("unmerge_backward", _twice_backward, _save, linear=True)
_unmerge = autograd.entry("unmerge")
