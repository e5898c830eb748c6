"""Result types of the public functions: NamedTuples of fixed arity, whatever the options.

Symbols used everywhere: B images, N tokens before merging, N' = N - r tokens after it, C channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Impl = Literal["auto", "reference", "cpp", "triton", "cuda"]
"""Implementation of an operation: the fastest for the device, plain torch, or a kernel by its language, which runs or
raises."""


class Matching(NamedTuple):
    """Merging plan: the input tokens of every output row, as gathers.

    Output row ``j`` of image ``b`` is made of the tokens ``indices[b, offsets[b, j]:offsets[b, j + 1]]``:
    its own token first, then the tokens merged into it, in ascending order. Rows come in the order protected
    tokens, kept tokens of A ascending, tokens of B ascending (A: even positions, B: odd positions).

    Attributes:
        indices: ``[B, N]`` int32, a permutation of ``0..N-1`` per image.
        offsets: ``[B, N' + 1]`` int32, ascending from 0 to N.
        output_row: ``[B, N]`` int32, the output row of every input token (the inverse of the plan).
    """

    indices: Tensor
    offsets: Tensor
    output_row: Tensor


class Merged(NamedTuple):
    """Merged tokens ``x`` ``[B, N', C]`` and their sizes ``[B, N']`` float32 (how many tokens each stands for)."""

    x: Tensor
    size: Tensor


class MergedNorm(NamedTuple):
    """Merged tokens ``x`` ``[B, N', C]``, ``normed`` = LayerNorm(x) of the same shape, sizes ``[B, N']`` float32."""

    x: Tensor
    normed: Tensor
    size: Tensor


class Assignment(NamedTuple):
    """Entity of every row.

    Attributes:
        output: ``[..., M, d]``, the entity of each row (``hard``) or the mean of the entities under A (soft).
        index: ``[..., M]`` int64, the entity with the highest noisy logit (not differentiable).
        log_normalizer: ``[..., M]`` float32 (float64 for double input), the log-sum-exp of the noisy logits
            in nats (not differentiable).
    """

    output: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index
    log_normalizer: Tensor
