"""Contract of proportional attention: softmax attention in which a key of size s counts s times."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import autograd, checks, library
from ..reference import proportional_attention as reference
from ..types import Impl

_OPS = torch.ops.alt_kernels


def proportional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Returns attention in which a key of size s counts s times.

    .. math:: \mathrm{softmax}\left(q k^\top \cdot \mathrm{scale} + \log s\right) v

    For integer sizes this equals plain attention over keys and values that are repeated s times. A size of 0 masks a
    key. A row whose keys are all masked gives zeros. Scores and sums accumulate in float32 (float64 for float64).

    On CPU there is never an N x N tensor. A kernel of ours runs the shapes of vision transformers (D a multiple of 16
    up to 128, N up to 4096), else PyTorch's fused kernel with the sizes as a broadcast key bias. The backward is
    PyTorch's. The Triton kernels take D up to 256. The result is ``[B, M, H, D]`` in memory, so joining the heads of
    a token costs nothing.

    Args:
        q: ``[B, H, M, D]``, float32, float16, bfloat16 or float64; any strides (views of a packed QKV).
        k: ``[B, H, N, D]`` of the same dtype and device.
        v: as k.
        size: ``[B, N]`` float32, the sizes of the keys, >= 0; None: ones. Constant, gets no gradient.
        scale: a finite number; None: 1 / sqrt(D).
        impl: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``[B, H, M, D]`` in q's dtype. Gradients go to q, k and v.

    Raises:
        TypeError: an argument has the wrong type, or dtypes differ (under autocast, cast q, k and v first).
        ValueError: an argument has the wrong shape or device, or ``size`` requires grad.
        RuntimeError: ``impl`` names an implementation that cannot run here.

    Source: ToMe (arXiv 2210.09461), Eq. 1; ALT, Eq. 2.
    """
    if not _fit(q, k, v, size):
        _check(q, k, v, size)
    scale = 1.0 / math.sqrt(q.shape[3]) if scale is None else checks.finite_float("scale", scale)
    use_reference = library.use_reference(impl, q, needs_compiled=False)
    run = reference.proportional_attention if use_reference else _proportional_attention
    return run(q, k, v, size, scale)[0]


def _fit(q: Any, k: Any, v: Any, size: Any) -> bool:
    """True if the arguments pass :func:`_check`."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor) and q.dim() == k.dim() == 4):
        return False
    device, shape = q.device, k.shape
    batch, heads, _, depth = q.shape
    return (
        depth > 0
        and shape == v.shape
        and (shape[0], shape[1], shape[3]) == (batch, heads, depth)
        and q.dtype == k.dtype == v.dtype
        and q.dtype in checks.FLOAT_DTYPES
        and device == k.device == v.device
        and checks.fits_size(size, batch, shape[2], device)
    )


def _check(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None) -> None:
    """Raises unless the arguments fit together."""
    checks.tensor("q", q, "[B, H, M, D]")
    batch, heads, _, depth = q.shape
    if depth < 1:
        raise ValueError(f"q: expected a head dimension of at least 1, got shape {list(q.shape)}")
    for name, value in (("k", k), ("v", v)):
        checks.tensor(name, value, "[B, H, N, D]")
        checks.same_dtype(name, value, "q", q)
        checks.same_device(name, value, "q", q)
        checks.shape(name, value, (batch, heads, k.shape[2], depth), "B, H and D of q, N of k")
    checks.token_size("size", size, batch, k.shape[2], "k", k)


def _key_bias(q: Tensor, size: Tensor | None) -> Tensor | None:
    """Returns log s as ``[B, 1, 1, N]``, which the fused kernel reads with stride zero over heads and queries.

    It is float32 in half precision (log 3 in bfloat16 is off by 0.3 %) and float64 in float64.
    """
    if size is None:
        return None
    return size.to(torch.float64 if q.dtype == torch.float64 else torch.float32).log()[:, None, None, :]


def _rows_apart(*tensors: Tensor) -> list[Tensor]:
    """Returns the tensors, copied where PyTorch's fused kernel would misread them.

    It needs a stride of one along D and rows that do not overlap, and takes heads and images that are apart or
    expanded. With others its matrix products get a leading dimension that no BLAS takes, or its result the strides of
    an overlapping q: both end in arbitrary values without an error.
    """

    def is_apart(t: Tensor) -> bool:
        images, heads, rows, unit = t.stride()
        depth = t.shape[3]
        return unit == 1 and rows >= depth and all(stride == 0 or stride >= depth for stride in (images, heads))

    return [t if is_apart(t) else t.clone(memory_format=torch.contiguous_format) for t in tensors]


def _heads_last(x: Tensor) -> Tensor:
    """Returns an uninitialised tensor like x ``[B, H, N, D]`` that is ``[B, N, H, D]`` in memory."""
    batch, heads, tokens, depth = x.shape
    return x.new_empty(batch, tokens, heads, depth).transpose(1, 2)


def _cpu_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns uninitialised results with heads last in memory, as PyTorch's backward also takes the log-sum-exp."""
    batch, heads, queries, _ = q.shape
    statistic = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _heads_last(q), q.new_empty(batch, queries, heads, dtype=statistic).transpose(1, 2)


def _cpu(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """CPU implementation without the compiled library; csrc/cpu/proportional_attention.cpp gives the same results."""
    if q.numel() == 0 or k.shape[2] == 0:
        out, logsumexp = _cpu_results(q)
        return out.zero_(), logsumexp.fill_(-math.inf)
    q, k, v = _rows_apart(q, k, v)
    found, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=_key_bias(q, size), scale=scale
    )
    out = _heads_last(q)  # PyTorch's kernel copies the strides of q where it can
    return found if found.stride() == out.stride() else out.copy_(found), logsumexp


def _cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.numel() == 0 or k.shape[2] == 0:
        return reference.proportional_attention_backward(grad, q, k, v, size, out, logsumexp, scale)
    grad, q, k, v, out = _rows_apart(grad, q, k, v, out)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, logsumexp, 0.0, False, attn_mask=_key_bias(q, size), scale=scale
    )


def _fake(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    out, logsumexp = _cpu_results(q)
    # Heads last everywhere; the log-sum-exp only on CPU, for PyTorch's backward.
    return out, logsumexp if q.device.type == "cpu" else logsumexp.contiguous()


def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        return _cpu_backward(grad, q, k, v, size, out, logsumexp, scale)
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _flops(q_shape: tuple[int, ...], k_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """4 B H M N D: two products of ``[M, N]`` with depth D each."""
    batch, heads, queries, depth = q_shape
    return 4 * batch * heads * queries * k_shape[2] * depth


def _backward_flops(
    grad_shape: tuple[int, ...], q_shape: tuple[int, ...], k_shape: tuple[int, ...], *_: object, **__: object
) -> int:
    """10 B H M N D: five products, the scores again, dO V^T, P^T dO, dS K and dS^T Q."""
    return 5 * _flops(q_shape, k_shape) // 2


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, size, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, size, *output)


def _backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    return *_OPS.proportional_attention_backward(grad, *saved, ctx.scale), None, None


library.register(
    "proportional_attention(Tensor q, Tensor k, Tensor v, Tensor? size, float scale) -> (Tensor out, Tensor logsumexp)",
    reference=reference.proportional_attention,
    fake=_fake,
    flops=_flops,
    cpu=_cpu,
    triton="proportional_attention",
)
library.register(
    "proportional_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? size, Tensor out,"
    " Tensor logsumexp, float scale) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    reference=reference.proportional_attention_backward,
    fake=_backward_fake,
    flops=_backward_flops,
    cpu=_cpu_backward,
    triton="proportional_attention_backward",
)
autograd.register_autograd("proportional_attention", _backward, _save)
autograd.register_no_second_derivative("proportional_attention_backward")
_proportional_attention = autograd.entry("proportional_attention")
