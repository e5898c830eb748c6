"""Proportional attention in plain torch: the definition (ToMe, arXiv 2210.09461, Eq. 1) and its derivative."""

from __future__ import annotations

import torch
from torch import Tensor


def heads_last(x: Tensor) -> Tensor:
    """Returns x ``[B, H, N, D]`` as ``[B, N, H, D]`` in memory, where joining the heads of a token costs nothing."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _scores(q: Tensor, k: Tensor, size: Tensor | None, scale: float) -> Tensor:
    """Returns q k^T scale + log s ``[B, H, M, N]`` in float32 (float64 for float64)."""
    acc = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (q.to(acc) @ k.to(acc).transpose(-1, -2)) * scale
    return scores if size is None else scores + size.to(acc).log()[:, None, None, :]


def proportional_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """out = softmax(q k^T scale + log s) v and the log-sum-exp of each row; a row without keys gives zeros."""
    scores = _scores(q, k, size, scale)
    # amax needs at least one key; the rest works without keys and keeps the graph.
    peak = scores.detach().amax(-1, keepdim=True) if scores.shape[-1] else scores.new_zeros(*scores.shape[:-1], 1)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    weight = (scores - peak).exp()
    total = weight.sum(-1, keepdim=True)
    out = (weight @ v.to(weight.dtype)) / torch.where(total != 0, total, 1.0)
    return heads_last(out.to(q.dtype)), (peak + total.log()).squeeze(-1)


def proportional_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """P = exp(scores - lse); dV = P^T dO; dS = P (dO V^T - sum(dO out)); dQ = dS K scale; dK = dS^T Q scale."""
    scores = _scores(q, k, size, scale)
    acc = scores.dtype
    empty = (logsumexp == -torch.inf)[..., None]
    p = torch.where(empty, 0.0, (scores - torch.where(empty, 0.0, logsumexp[..., None])).exp())
    do = grad.to(acc)
    dv = p.transpose(-1, -2) @ do
    dp = do @ v.to(acc).transpose(-1, -2)
    delta = (p * dp).sum(-1, keepdim=True)
    ds = p * (dp - delta) * scale
    dq = ds @ k.to(acc)
    dk = ds.transpose(-1, -2) @ q.to(acc)
    return heads_last(dq.to(q.dtype)), heads_last(dk.to(k.dtype)), heads_last(dv.to(v.dtype))
