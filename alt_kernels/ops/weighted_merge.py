"""Contract of the weighted merge: a merging plan is executed by size-weighted means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import autograd, checks, library
from ..reference import weighted_merge as reference
from ..types import Impl, Matching, Merged

_OPS = torch.ops.alt_kernels


def weighted_merge(x: Tensor, matching: Matching, size: Tensor | None = None, *, impl: Impl = "auto") -> Merged:
    r"""Merges tokens by their size-weighted mean.

    .. math:: x'_j = \frac{\sum_{i \in G(j)} s_i x_i}{\sum_{i \in G(j)} s_i}, \qquad s'_j = \sum_{i \in G(j)} s_i

    where G(j) are the tokens of output row j in the plan. A row of one token is copied bit for bit. A group whose
    sizes sum to zero gives zeros. Sums are in float32 (float64 for float64), in the order of the plan, and are
    rounded once. Deterministic. The gradient goes to ``x``: :math:`dx_i = (s_i / s'_j)\, dx'_j`.

    Args:
        x: ``[B, N, C]``, float32, float16, bfloat16 or float64. Any strides.
        matching: the plan, of B images and N input tokens.
        size: ``[B, N]`` float32, the number of tokens that each token stands for; None: ones.
        impl: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        Merged: x' ``[B, N', C]`` in x's dtype, s' ``[B, N']`` float32.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or device, the plan is of another length, its values are out of
            range (checked on the CPU only), or ``size`` requires grad.
        RuntimeError: ``impl`` names an implementation that cannot run here.

    Source: ToMe (arXiv 2210.09461), section 3, "Tracking token size"; ALT, Eq. 2.
    """
    checks.tensor("x", x, "[B, N, C]")
    batch, tokens, _ = x.shape
    if not checks.fits_plan(matching, batch, tokens, None, x.device):
        checks.matching_plan(matching, batch, tokens, None, "x", x)
    if not checks.fits_size(size, batch, tokens, x.device):
        checks.token_size("size", size, batch, tokens, "x", x)
    run = reference.weighted_merge if library.use_reference(impl, x) else _weighted_merge
    return Merged(*run(x, size, *matching))


def _fake(
    x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> tuple[Tensor, Tensor]:
    rows = offsets.shape[1] - 1
    merged = x.new_empty((x.shape[0], rows, x.shape[2]))
    return merged, x.new_empty((x.shape[0], rows), dtype=torch.float32)


def _backward_fake(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> Tensor:
    return grad.new_empty((grad.shape[0], output_row.shape[1], grad.shape[2]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, size, indices, offsets, output_row = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(size, output[1], indices, offsets, output_row)


def _backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None, _: None) -> tuple[Any, ...]:
    return None if grad is None else _OPS.weighted_merge_backward(grad, *saved), None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, size, _, *plan = inputs
    ctx.save_for_backward(size, *plan)


def _twice_backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None) -> tuple[Any, ...]:
    """The second derivative: the merge is linear in x, and the adjoint of its adjoint is the merge itself."""
    return None if grad is None else _OPS.weighted_merge(grad, *saved)[0], *(None,) * 5


library.register(
    "weighted_merge(Tensor x, Tensor? size, Tensor indices, Tensor offsets, Tensor output_row)"
    " -> (Tensor merged, Tensor merged_size)",
    reference=reference.weighted_merge,
    fake=_fake,
    flops=library.no_products,
    triton="weighted_merge",
)
library.register(
    "weighted_merge_backward(Tensor grad, Tensor? size, Tensor merged_size, Tensor indices, Tensor offsets,"
    " Tensor output_row) -> Tensor",
    reference=reference.weighted_merge_backward,
    fake=_backward_fake,
    flops=library.no_products,
    triton="weighted_merge",
)
autograd.register_autograd("weighted_merge", _backward, _save, linear=True)
autograd.register_autograd("weighted_merge_backward", _twice_backward, _save_backward, linear=True)
_weighted_merge = autograd.entry("weighted_merge")
