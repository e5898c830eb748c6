"""Contracts that execute a merging plan: merge, unmerge, source map, and merge + LayerNorm in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, library
from ..reference import weighted_merge as reference
from ..types import Impl, Matching, Merged, MergedNorm

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
    checks.matching_plan(matching, x.shape[0], x.shape[1], None, "x", x)
    checks.token_size("size", size, x.shape[0], x.shape[1], "x", x)
    run = reference.weighted_merge if library.use_reference(impl, x) else _OPS.weighted_merge
    return Merged(*run(x, size, *matching))


def unmerge(x: Tensor, matching: Matching, *, impl: Impl = "auto") -> Tensor:
    r"""Copies each output row back to its tokens: :math:`y_i = x_{j(i)}`.

    Args:
        x: ``[B, N', C]``, float32, float16, bfloat16 or float64.
        matching: the plan, of B images and N' output rows.
        impl: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``[B, N, C]`` in x's dtype. The gradient of a row is the sum over its tokens.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`weighted_merge`.
    """
    checks.tensor("x", x, "[B, N', C]")
    checks.matching_plan(matching, x.shape[0], None, x.shape[1], "x", x)
    run = reference.unmerge if library.use_reference(impl, x) else _OPS.unmerge
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
    left = 0  # rows that the plan before it leaves
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


def merge_layer_norm(
    x: Tensor,
    residual: Tensor,
    matching: Matching,
    size: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
    *,
    impl: Impl = "auto",
) -> MergedNorm:
    r"""Computes residual sum, weighted merge and LayerNorm in one pass over the tokens.

    .. math:: x' = \mathrm{merge}(x + y; s), \qquad
              n_j = \frac{x'_j - \mu_j}{\sqrt{\sigma_j^2 + \epsilon}} \odot w + b

    Sums are in float32 (float64 for float64). x' is rounded once; the norm is that of x' as stored. Under autocast
    ``x`` may be float32 while ``residual`` is bfloat16: the result has the promoted dtype of the two.

    Args:
        x: ``[B, N, C]``, the stream.
        residual: ``[B, N, C]``, the branch's output, which is added to it.
        matching: the plan, of B images and N input tokens.
        size: ``[B, N]`` float32 or None (ones), constant.
        weight: ``[C]`` or None, any float dtype.
        bias: as weight.
        eps: added to the variance, a finite number > 0.
        impl: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        MergedNorm: x' and n ``[B, N', C]``, s' ``[B, N']`` float32. Gradients go to x, residual, weight and bias.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`weighted_merge`.

    Source: the block of ALT, Eq. 2: :math:`(E'', s) = ToMe(E', s, r)` followed by LN.
    """
    checks.tensor("x", x, "[B, N, C]")
    checks.tensor("residual", residual, "[B, N, C]")
    checks.shape("residual", residual, tuple(x.shape), "as x")
    checks.same_device("residual", residual, "x", x)
    checks.matching_plan(matching, x.shape[0], x.shape[1], None, "x", x)
    checks.token_size("size", size, x.shape[0], x.shape[1], "x", x)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            checks.tensor(name, parameter, "[C]")
            checks.shape(name, parameter, (x.shape[2],), "one value for each channel of x")
            checks.same_device(name, parameter, "x", x)
    if x.shape[2] < 1:
        raise ValueError(f"x: expected at least one channel, got shape {list(x.shape)}")
    eps = checks.finite_float("eps", eps, positive=True)
    run: Any
    if library.use_cuda("merge_layer_norm", impl, x, residual, weight, bias):
        run = _OPS.merge_layer_norm_cuda
    else:
        from_reference = library.use_reference(impl, x, residual, weight, bias)
        run = reference.merge_layer_norm if from_reference else _OPS.merge_layer_norm
    merged, normed, merged_size, *_ = run(x, residual, size, *matching, weight, bias, eps)
    return MergedNorm(merged, normed, merged_size)


# Fakes: shapes and dtypes only. N' is the length of offsets minus one.


def _merge_fake(
    x: Tensor, size: Tensor | None, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> tuple[Tensor, Tensor]:
    rows = offsets.shape[1] - 1
    merged = x.new_empty((x.shape[0], rows, x.shape[2]))
    return merged, x.new_empty((x.shape[0], rows), dtype=torch.float32)


def _merge_backward_fake(
    grad: Tensor, size: Tensor | None, merged_size: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor
) -> Tensor:
    return grad.new_empty((grad.shape[0], output_row.shape[1], grad.shape[2]))


def _unmerge_fake(x: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], output_row.shape[1], x.shape[2]))


def _unmerge_backward_fake(grad: Tensor, indices: Tensor, offsets: Tensor, output_row: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[0], offsets.shape[1] - 1, grad.shape[2]))


def _norm_fake(
    x: Tensor,
    residual: Tensor,
    size: Tensor | None,
    indices: Tensor,
    offsets: Tensor,
    output_row: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(x.dtype, residual.dtype)
    rows = (x.shape[0], offsets.shape[1] - 1)
    statistic = torch.float64 if dtype == torch.float64 else torch.float32
    merged = x.new_empty((*rows, x.shape[2]), dtype=dtype)
    mean = x.new_empty(rows, dtype=statistic)
    return (
        merged,
        torch.empty_like(merged),
        x.new_empty(rows, dtype=torch.float32),
        mean,
        torch.empty_like(mean),
    )


def _norm_backward_fake(
    grad_merged: Tensor,
    grad_normed: Tensor,
    merged: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    has_bias: bool,
    size: Tensor | None,
    merged_size: Tensor,
    indices: Tensor,
    offsets: Tensor,
    output_row: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = merged.shape[2]
    grad_input = merged.new_empty((merged.shape[0], output_row.shape[1], channels))
    grad_weight = mean.new_empty((0 if weight is None else channels,))
    return grad_input, grad_weight, mean.new_empty((channels if has_bias else 0,))


def _no_matmul(*_: object, **__: object) -> int:
    """Returns 0: the op has additions and copies, and the FLOP formulas count matrix products only."""
    return 0


def _save_merge(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, size, indices, offsets, output_row = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(size, output[1], indices, offsets, output_row)


def _merge_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return _OPS.weighted_merge_backward(grad, *ctx.saved_tensors), None, None, None, None


def _save_merge_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, size, _, *plan = inputs
    ctx.save_for_backward(size, *plan)


def _merge_twice_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The second derivative: the merge is linear in x, and the adjoint of its adjoint is the merge itself."""
    return _OPS.weighted_merge(grad, *ctx.saved_tensors)[0], *(None,) * 5


def _save_unmerge(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _unmerge_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _OPS.unmerge_backward(grad, *ctx.saved_tensors), None, None, None


def _unmerge_twice_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _OPS.unmerge(grad, *ctx.saved_tensors), None, None, None


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, size, indices, offsets, output_row, weight, bias, _eps = inputs
    merged, _normed, merged_size, mean, rstd = output
    ctx.mark_non_differentiable(merged_size, mean, rstd)
    ctx.dtypes = (
        x.dtype,
        residual.dtype,
        None if weight is None else weight.dtype,
        None if bias is None else bias.dtype,
    )
    ctx.save_for_backward(merged, mean, rstd, weight, size, merged_size, indices, offsets, output_row)


def _norm_backward(ctx: Any, grad_merged: Tensor, grad_normed: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return _norm_backward_by(_OPS.merge_layer_norm_backward, ctx, grad_merged, grad_normed)


def _norm_backward_cuda(ctx: Any, grad_merged: Tensor, grad_normed: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return _norm_backward_by(_OPS.merge_layer_norm_cuda_backward, ctx, grad_merged, grad_normed)


def _norm_backward_by(op: Any, ctx: Any, grad_merged: Tensor, grad_normed: Tensor) -> tuple[Any, ...]:
    merged, mean, rstd, weight, size, merged_size, *plan = ctx.saved_tensors
    x_dtype, residual_dtype, weight_dtype, bias_dtype = ctx.dtypes
    has_bias = bias_dtype is not None
    grad, grad_weight, grad_bias = op(
        grad_merged, grad_normed, merged, mean, rstd, weight, has_bias, size, merged_size, *plan
    )
    return (
        grad.to(x_dtype),
        grad.to(residual_dtype),
        *(None,) * 4,
        None if weight_dtype is None else grad_weight.to(weight_dtype),
        None if bias_dtype is None else grad_bias.to(bias_dtype),
        None,
    )


library.register(
    "weighted_merge(Tensor x, Tensor? size, Tensor indices, Tensor offsets, Tensor output_row)"
    " -> (Tensor merged, Tensor merged_size)",
    reference=reference.weighted_merge,
    fake=_merge_fake,
    flops=_no_matmul,
    triton="weighted_merge",
)
library.register(
    "weighted_merge_backward(Tensor grad, Tensor? size, Tensor merged_size, Tensor indices, Tensor offsets,"
    " Tensor output_row) -> Tensor",
    reference=reference.weighted_merge_backward,
    fake=_merge_backward_fake,
    flops=_no_matmul,
    triton="weighted_merge",
)
library.register(
    "unmerge(Tensor x, Tensor indices, Tensor offsets, Tensor output_row) -> Tensor",
    reference=reference.unmerge,
    fake=_unmerge_fake,
    flops=_no_matmul,
    triton="weighted_merge",
)
library.register(
    "unmerge_backward(Tensor grad, Tensor indices, Tensor offsets, Tensor output_row) -> Tensor",
    reference=reference.unmerge_backward,
    fake=_unmerge_backward_fake,
    flops=_no_matmul,
    triton="weighted_merge",
)
library.register(
    "merge_layer_norm(Tensor x, Tensor residual, Tensor? size, Tensor indices, Tensor offsets, Tensor output_row,"
    " Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor merged, Tensor normed, Tensor merged_size, Tensor mean, Tensor rstd)",
    reference=reference.merge_layer_norm,
    fake=_norm_fake,
    flops=_no_matmul,
    triton="merge_layer_norm",
)
library.register(
    "merge_layer_norm_backward(Tensor grad_merged, Tensor grad_normed, Tensor merged, Tensor mean, Tensor rstd,"
    " Tensor? weight, bool has_bias, Tensor? size, Tensor merged_size, Tensor indices, Tensor offsets,"
    " Tensor output_row)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    reference=reference.merge_layer_norm_backward,
    fake=_norm_backward_fake,
    flops=_no_matmul,
    triton="merge_layer_norm",
)
library.register_autograd("weighted_merge", _merge_backward, _save_merge)
library.register_autograd("unmerge", _unmerge_backward, _save_unmerge)
library.register_autograd("unmerge_backward", _unmerge_twice_backward, _save_unmerge)
library.register_autograd("merge_layer_norm", _norm_backward, _save_norm)
library.register_autograd("weighted_merge_backward", _merge_twice_backward, _save_merge_backward)
library.register_no_second_derivative("merge_layer_norm_backward")

library.register_cuda("merge_layer_norm_cuda", library.OPS["merge_layer_norm"])
library.register_cuda("merge_layer_norm_cuda_backward", library.OPS["merge_layer_norm_backward"])
library.register_autograd("merge_layer_norm_cuda", _norm_backward_cuda, _save_norm)
library.register_no_second_derivative("merge_layer_norm_cuda_backward")
