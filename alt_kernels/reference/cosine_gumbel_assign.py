"""Cosine-Gumbel assignment in plain torch: the definition ("Align before Adapt", Eq. 4 and 5) and its derivative.

Symbols: M rows of x, K entities, d channels; w cosines, g noise, A = softmax_k(w / tau + g), both ``[M, K]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import is_readable

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # Philox4x32 multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of the key
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words.

    A product of two 32-bit words may wrap around in int64, but its 64 bits are right, and masks extract the halves.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def gumbel_noise(seed: Tensor, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns Gumbel(0, 1) noise ``[rows, columns]``, a function of (seed, row, column) only.

    Word ``column % 4`` of Philox at the counter (column // 4, row low, row high, 0), key (seed low, seed high), gives
    u = min((word + 1/2) 2^-32, 1 - 2^-24) and g = -log(-log(1 - u)). The argument of the inner logarithm is 1 - u
    and not u because small u are dense: the upper tail reaches g = 22.9, where log(u) near 1 would stop at 16.6.
    """
    device = seed.device
    row = torch.arange(rows, device=device)[:, None]
    block = torch.arange((columns + 3) // 4, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.long, device=device)
    seed = seed.long()
    words = philox4x32((block, row & _MASK, row >> 32, zero), (seed & _MASK, (seed >> 32) & _MASK))
    shape = (rows, block.shape[1])
    word = torch.stack([w.expand(shape) for w in words], -1).flatten(1)[:, :columns]
    u = ((word.to(torch.float64) + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24)
    return (-(-torch.log1p(-u)).log()).to(dtype)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows of length one and the reciprocal lengths; a zero row stays zero, with reciprocal zero."""
    peak = x.detach().abs().amax(-1, keepdim=True)
    peak = torch.where((peak > 0) & torch.isfinite(peak), peak, 1.0)  # so that squares neither overflow nor underflow
    y = x / peak
    square = y.square().sum(-1, keepdim=True)
    inverse = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).rsqrt())
    return y * inverse, inverse / peak


def _logits(x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, seed: Tensor | None) -> tuple[Tensor, ...]:
    """Returns cosines, noisy logits, unit x, unit entities, 1 / |x|, 1 / |entities|, in the dtype of accumulation."""
    acc = torch.float64 if torch.float64 in (x.dtype, entities.dtype) else torch.float32
    unit_x, inverse_x = _unit(x.to(acc))
    unit_s, inverse_s = _unit(entities.to(acc))
    cosine = unit_x @ unit_s.T
    logits = cosine / tau.to(acc)
    if noise is not None:
        logits = logits + noise.to(acc)
    elif seed is not None:
        logits = logits + gumbel_noise(seed, x.shape[0], entities.shape[0], acc)
    return cosine, logits, unit_x, unit_s, inverse_x, inverse_s


def check_tau(tau: Tensor) -> None:
    """Raises if the value can be read and is not a finite number > 0."""
    if is_readable(tau) and not (torch.isfinite(tau).item() and tau.item() > 0):
        raise ValueError(f"tau: expected a finite number > 0, got {tau.item()}")


def gumbel_assignment(
    x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, seed: Tensor | None, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns output ``[M, d]``, index ``[M]`` and log_normalizer ``[M]``; hard output: (onehot + A - sg(A)) E."""
    acc = torch.float64 if torch.float64 in (x.dtype, entities.dtype) else torch.float32
    check_tau(tau.to(acc))
    # Widened once, so that the two paths of the entities' gradient are added before rounding.
    values = entities.to(acc)
    _, logits, *_ = _logits(x, values, tau, noise, seed)
    index = torch.nan_to_num(logits.detach(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(-1)
    assignment = logits.softmax(-1)
    out_dtype = torch.promote_types(x.dtype, entities.dtype)
    if hard:
        output = values[index]
        if logits.requires_grad:  # the second term is zero and carries the gradient
            output = output + (assignment - assignment.detach()) @ values.detach()
    else:
        output = assignment @ values
    return output.to(out_dtype), index, logits.detach().logsumexp(-1)


def gumbel_assignment_backward(
    grad: Tensor,
    x: Tensor,
    entities: Tensor,
    tau: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    index: Tensor,
    log_normalizer: Tensor,
    hard: bool,
    need_entities: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dA = dO E^T; dl = A (dA - sum_k A dA); dx = (I - u u^T) dl S / (|x| tau); dtau = -sum(dl w) / tau^2.

    For the entities: the same through their normalisation, plus the value path onehot^T dO (hard) or A^T dO (soft).
    dA is taken relative to that of the chosen entity, which changes no dl and cancels nothing where A is near one-hot.
    """
    cosine, logits, unit_x, unit_s, inverse_x, inverse_s = _logits(x, entities, tau, noise, seed)
    acc = logits.dtype
    t = tau.to(acc)
    a = logits.softmax(-1)  # from log_normalizer it would not sum to 1: an error of the logits' rounding over tau
    do = grad.to(acc)
    da = do @ entities.to(acc).T
    da = da - da.gather(1, index[:, None])
    dl = a * (da - (a * da).sum(-1, keepdim=True))
    dunit_x = dl @ unit_s / t
    grad_x = (dunit_x - unit_x * (dunit_x * unit_x).sum(-1, keepdim=True)) * inverse_x
    grad_tau = -(dl * cosine).sum() / t.square()
    if not need_entities:
        return grad_x.to(x.dtype), entities.new_zeros(0), grad_tau.to(tau.dtype)
    dunit_s = dl.T @ unit_x / t
    grad_s = (dunit_s - unit_s * (dunit_s * unit_s).sum(-1, keepdim=True)) * inverse_s
    if hard:
        grad_s = grad_s.index_add(0, index, do)
    else:
        grad_s = grad_s + a.T @ do
    return grad_x.to(x.dtype), grad_s.to(entities.dtype), grad_tau.to(tau.dtype)
