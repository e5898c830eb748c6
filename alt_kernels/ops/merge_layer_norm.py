"""Contract of residual sum + weighted merge + LayerNorm in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import autograd, batching, checks, library
from ..reference import merge_layer_norm as reference
from ..types import Impl, Matching, MergedNorm

_OPS = torch.ops.alt_kernels


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
        TypeError, ValueError, RuntimeError: as :func:`~alt_kernels.weighted_merge`.

    Source: the block of ALT, Eq. 2: :math:`(E'', s) = ToMe(E', s, r)` followed by LN.
    """
    if not _fit(x, residual, matching, size, weight, bias):
        _check(x, residual, matching, size, weight, bias)
    eps = checks.finite_float("eps", eps, positive=True)
    run: Any
    if library.use_cuda("merge_layer_norm", impl, x, residual, weight, bias):
        run = _merge_layer_norm_cuda
    else:
        from_reference = library.use_reference(impl, x, residual, weight, bias)
        run = reference.merge_layer_norm if from_reference else _merge_layer_norm
    merged, normed, merged_size, *_ = run(x, residual, size, *matching, weight, bias, eps)
    return MergedNorm(merged, normed, merged_size)


def _fit(x: Any, residual: Any, matching: Any, size: Any, weight: Any, bias: Any) -> bool:
    """True if the arguments pass :func:`_check`."""
    if not isinstance(x, Tensor) or x.dim() != 3:
        return False
    shape, device = x.shape, x.device
    batch, tokens, channels = shape
    return (
        channels > 0
        and x.dtype in checks.FLOAT_DTYPES
        and checks.fits_float(residual, shape, device)
        and checks.fits_plan(matching, batch, tokens, None, device)
        and checks.fits_size(size, batch, tokens, device)
        and (weight is None or checks.fits_float(weight, (channels,), device))
        and (bias is None or checks.fits_float(bias, (channels,), device))
    )


def _check(
    x: Tensor, residual: Tensor, matching: Matching, size: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> None:
    """Raises unless the arguments fit together."""
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


def _fake(
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


def _backward_fake(
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
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


def _backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Any, ...]:
    return _backward_by(_OPS.merge_layer_norm_backward, ctx, saved, *grads[:2])


def _backward_cuda(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Any, ...]:
    return _backward_by(_OPS.merge_layer_norm_cuda_backward, ctx, saved, *grads[:2])


def _backward_by(
    op: Any, ctx: Any, saved: tuple[Tensor, ...], grad_merged: Tensor | None, grad_normed: Tensor | None
) -> tuple[Any, ...]:
    if grad_merged is None and grad_normed is None:
        return (None,) * 9
    merged, mean, rstd, weight, size, merged_size, *plan = saved
    x_dtype, residual_dtype, weight_dtype, bias_dtype = ctx.dtypes
    has_bias = bias_dtype is not None
    grad, grad_weight, grad_bias = op(
        torch.zeros_like(merged) if grad_merged is None else grad_merged,
        torch.zeros_like(merged) if grad_normed is None else grad_normed,
        *(merged, mean, rstd, weight, has_bias, size, merged_size),
        *plan,
    )
    return (
        grad.to(x_dtype),
        grad.to(residual_dtype),
        *(None,) * 4,
        None if weight_dtype is None else grad_weight.to(weight_dtype),
        None if bias_dtype is None else grad_bias.to(bias_dtype),
        None,
    )


def _batch(op: Any, info: Any, dims: batching.Dims, *args: Any) -> tuple[Any, Any]:
    """Folds the images. A weight or bias per sample is applied here, because the op takes one for all images."""
    count, weight, bias, eps = info.batch_size, args[6], args[7], args[8]
    folded = [batching.join(a, d, count) for a, d in zip(args[:6], dims[:6], strict=True)]
    if dims[6] is None and dims[7] is None:
        return batching.split_results(op(*folded, weight, bias, eps), count)
    results, out_dims = batching.split_results(op(*folded, None, None, eps), count)
    merged, _, merged_size, mean, rstd = results
    # Of x' again: the op's own result is rounded already, and its statistics have no derivative.
    normed = F.layer_norm(merged.to(mean.dtype), merged.shape[-1:], eps=eps)
    if weight is not None:
        normed = normed * batching.lead(weight, dims[6], count)[:, None, None].to(mean.dtype)
    if bias is not None:
        normed = normed + batching.lead(bias, dims[7], count)[:, None, None].to(mean.dtype)
    return (merged, normed.to(merged.dtype), merged_size, mean, rstd), out_dims


def _backward_batch(op: Any, info: Any, dims: batching.Dims, *args: Any) -> tuple[Any, Any]:
    """Folds the images. The op sums dw and db over all of them, so those of each sample are summed here."""
    count, weight, has_bias, one_weight = info.batch_size, args[5], args[6], dims[5] is None
    grad_merged, grad_normed, merged, mean, rstd = (
        batching.lead(a, d, count) for a, d in zip(args[:5], dims[:5], strict=True)
    )
    dn = grad_normed.to(mean.dtype)
    if not one_weight:
        each = batching.lead(weight, dims[5], count)[:, None, None].to(mean.dtype)
        grad_normed = (dn * each).to(grad_normed.dtype)
    grad_input, *nothing = op(
        *(t.flatten(0, 1) for t in (grad_merged, grad_normed, merged, mean, rstd)),
        weight if one_weight else None,
        False,
        *(batching.join(a, d, count) for a, d in zip(args[7:], dims[7:], strict=True)),
    )
    grad_weight = grad_bias = nothing[1].expand(count, 0)
    if weight is not None:
        # h as a function of x' alone, whose second derivative is right; the statistics are constants for autograd.
        centred = merged.to(mean.dtype) - merged.mean(-1, keepdim=True, dtype=mean.dtype)
        variance = centred.square().mean(-1, keepdim=True)
        eps = (rstd[..., None].pow(-2) - variance).detach()
        grad_weight = (dn * centred * (variance + eps).rsqrt()).sum((1, 2))
    if has_bias:
        grad_bias = dn.sum((1, 2))
    return (batching.split(grad_input, count), grad_weight, grad_bias), (0, 0, 0)


library.register(
    "merge_layer_norm(Tensor x, Tensor residual, Tensor? size, Tensor indices, Tensor offsets, Tensor output_row,"
    " Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor merged, Tensor normed, Tensor merged_size, Tensor mean, Tensor rstd)",
    reference=reference.merge_layer_norm,
    fake=_fake,
    flops=library.no_products,
    batching=_batch,
    triton="merge_layer_norm",
)
library.register(
    "merge_layer_norm_backward(Tensor grad_merged, Tensor grad_normed, Tensor merged, Tensor mean, Tensor rstd,"
    " Tensor? weight, bool has_bias, Tensor? size, Tensor merged_size, Tensor indices, Tensor offsets,"
    " Tensor output_row)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    reference=reference.merge_layer_norm_backward,
    fake=_backward_fake,
    flops=library.no_products,
    batching=_backward_batch,
    triton="merge_layer_norm",
)
autograd.register_autograd("merge_layer_norm", _backward, _save)
autograd.register_no_second_derivative("merge_layer_norm_backward")
_merge_layer_norm = autograd.entry("merge_layer_norm")

library.register_cuda("merge_layer_norm_cuda", library.OPS["merge_layer_norm"])
library.register_cuda("merge_layer_norm_cuda_backward", library.OPS["merge_layer_norm_backward"])
autograd.register_autograd("merge_layer_norm_cuda", _backward_cuda, _save)
autograd.register_no_second_derivative("merge_layer_norm_cuda_backward")
_merge_layer_norm_cuda = autograd.entry("merge_layer_norm_cuda")
