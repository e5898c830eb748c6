"""Gates that an entrant must pass before it is timed: its largest error against the float64 definition.

Errors are relative to the largest value of the right answer. Bounds count roundings of the working dtype, so the same
gate serves float32 on a CPU and bfloat16 on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import rivals
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import Matching


def roundings(count: int, dtype: torch.dtype) -> float:
    """Returns ``count`` times the largest relative error of rounding once to ``dtype``."""
    return count * torch.finfo(dtype).eps / 2


def error(got: Tensor, want: Tensor) -> float:
    """Returns the largest difference over the largest value; infinity if shapes differ or a value is not finite."""
    if got.shape != want.shape or not torch.isfinite(got).all():
        return float("inf")
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def rows_of_pairs(pairs: rivals.Pairs, tokens: int) -> Tensor:
    """Returns the output row of every input token for a rival's plan: kept even tokens, then odd ones."""
    kept = pairs.kept.shape[1]
    rows = pairs.kept.new_full((len(pairs.kept), tokens), -1)
    order = torch.arange(kept, device=rows.device).expand_as(pairs.kept)
    rows.scatter_(1, 2 * pairs.kept, order)
    rows[:, 1::2] = kept + torch.arange(tokens // 2, device=rows.device)
    rows.scatter_(1, 2 * pairs.source, kept + pairs.target)
    return rows


def matching_gate(metric: Tensor, r: int) -> Callable[[Matching | rivals.Pairs], float]:
    """Returns a gate: the shortfall of the merged pairs' mean cosine from the best possible one, in float64.

    It is 0 for the optimal set. Rounding may swap two sets with nearly equal scores, which costs nearly nothing. An
    invalid plan (wrong count, class token merged, an odd source) has infinite error.
    """
    tokens = metric.shape[1]
    unit = F.normalize(metric.double(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    best = cosine[:, 2::2, 1::2].amax(-1).topk(r, dim=-1).values.mean(-1)

    def gate(plan: Matching | rivals.Pairs) -> float:
        rows = plan.output_row.long() if isinstance(plan, Matching) else rows_of_pairs(plan, tokens)
        even, odd = rows[:, 0::2], rows[:, 1::2]
        first = (tokens + 1) // 2 - r
        slots = torch.arange(tokens - r, device=rows.device)
        merged = even >= first
        if (
            not torch.equal(odd, slots[first:].expand_as(odd))
            or merged[:, 0].any()
            or not (merged.sum(-1) == r).all()
            or not torch.equal(even[~merged].view(len(rows), -1), slots[:first].expand(len(rows), -1))
        ):
            return float("inf")
        partner = (even - first).clamp(min=0)
        score = cosine[:, 0::2, 1::2].gather(2, partner[..., None])[..., 0]
        return float((best - (score * merged).sum(-1) / r).abs().max())

    return gate


def law_gate(x: Tensor, entities: Tensor, tau: float) -> Callable[[Tensor], float]:
    """Returns a gate for unknown noise: every row is an entity, and the choices follow the Gumbel law.

    By this law row i takes entity k with probability p_ik = softmax_k(cos / tau). The gate compares the mean of log p
    at the choices with its known expectation and variance. Beyond five standard errors the error is infinite.
    """
    log_p = (F.normalize(x.double(), dim=-1) @ F.normalize(entities.double(), dim=-1).T / tau).log_softmax(-1)
    p = log_p.exp()
    expected = (p * log_p).sum(-1)
    variance = ((p * log_p.square()).sum(-1) - expected.square()).sum()
    values = entities.double()

    def gate(output: Tensor) -> float:
        index = (output.double() @ values.T - values.square().sum(-1) / 2).argmax(-1)
        chosen = log_p.gather(1, index[:, None])[:, 0]
        deviation = float((chosen - expected).sum().abs() / variance.sqrt())
        return error(output, values[index]) if deviation < 5 else float("inf")

    return gate
