"""Weights of merged tokens in means and attention: each token counts as the patches behind it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeySizes", "key_bias", "size_weighted_mean"]


class KeySizes:
    """Carries sizes into a pooler's call. It is an object because wrappers such as FSDP2 cast bare tensors."""

    def __init__(self, size: Tensor) -> None:
        self.size = size


def key_bias(size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns ``log s`` ``[B, N]`` in the dtype of the queries, to be added to the logits of the keys.

    Without sizes the result is None. The logarithm is taken in float32 or better.
    """
    return None if size is None else size.to(torch.promote_types(size.dtype, dtype)).log().to(dtype)


def size_weighted_mean(tokens: Tensor, size: Tensor | None) -> Tensor:
    """Returns ``sum_i s_i x_i / sum_i s_i`` of ``tokens`` ``[B, n, C]`` with sizes ``[B, n]``: ``[B, C]``.

    This is the mean over patches if each has the value of its token. Sums are in float32 or better. Without sizes it
    is the plain mean.
    """
    if size is None:
        return tokens.mean(dim=1)
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    weight = size.to(dtype) / size.sum(1, keepdim=True).to(dtype)
    return (tokens.to(dtype) * weight[..., None]).sum(1).to(tokens.dtype)
