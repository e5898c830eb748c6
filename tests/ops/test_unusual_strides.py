"""Arguments whose elements overlap, repeat, or lie apart: every op gives the result of a contiguous copy.

Kind: "any strides" was handed on to PyTorch's fused attention, which reads rows that overlap wrongly and says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import alt_kernels as ak
from alt_kernels.ops import proportional_attention as contract


def laid_out(shape: tuple[int, ...], dtype: torch.dtype, rng: random.Random) -> Tensor:
    """Values in one of six layouts: expanded, overlapping, repeated, permuted, spread, or unused strides."""
    kind = rng.randrange(6)
    if kind == 0:
        return torch.randn([side if rng.random() < 0.5 else 1 for side in shape]).to(dtype).expand(shape)
    if kind == 1:
        strides = [rng.choice([0, 1, 2, 3, 8, 16]) for _ in shape]
        count = 1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        return torch.randn(count + 3).to(dtype).as_strided(shape, strides, rng.randrange(4))
    if kind == 2:
        return torch.randn(shape[-1]).to(dtype).expand(shape)
    if kind == 3:
        order = list(range(len(shape)))
        rng.shuffle(order)
        return torch.randn([shape[i] for i in order]).to(dtype).permute([order.index(i) for i in range(len(shape))])
    if kind == 4:
        return torch.randn([2 * side for side in shape]).to(dtype)[tuple(slice(None, None, 2) for _ in shape)]
    plain = torch.randn(shape).to(dtype)
    strides = [
        rng.choice([0, 7, 1000]) if side == 1 else step for side, step in zip(shape, plain.stride(), strict=True)
    ]
    return plain.as_strided(shape, strides)


def agree(run: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], rng: random.Random) -> None:
    """Compares values and gradients with those of contiguous copies; the incoming gradient is laid out oddly too."""
    grads: list[Tensor] = []
    results = []
    for copy in (False, True):
        change = (lambda t: t.clone(memory_format=torch.contiguous_format)) if copy else (lambda t: t)
        leaves = [change(t).detach().requires_grad_() for t in inputs]
        found = run(*leaves)
        outs = [t for t in (found if isinstance(found, tuple) else (found,)) if t.requires_grad]
        grads = grads or [laid_out(tuple(t.shape), t.dtype, rng) for t in outs]
        results.append([*outs, *torch.autograd.grad(outs, leaves, [change(g) for g in grads])])
    for odd, plain in zip(*results, strict=True):
        rounding = 64 * torch.finfo(plain.dtype).eps * (1 + float(plain.detach().abs().max()))
        torch.testing.assert_close(odd, plain, rtol=0, atol=rounding)


DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(dtype: torch.dtype) -> None:
    rng = random.Random(1)
    torch.manual_seed(1)
    for _ in range(60):
        batch, heads, queries, keys = (rng.choice(sides) for sides in ([1, 2], [1, 2, 3], [1, 2, 7, 33], [1, 2, 9, 40]))
        depth = rng.choice([1, 2, 8, 16, 24])
        shapes = [(batch, heads, count, depth) for count in (queries, keys, keys)]
        inputs = [laid_out(shape, dtype, rng) for shape in shapes]
        size = None if rng.random() < 0.5 else torch.rand(keys).add(0.5).expand(batch, keys)
        agree(lambda q, k, v, size=size: ak.proportional_attention(q, k, v, size), inputs, rng)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_overlap(dtype: torch.dtype, compiled: bool) -> None:
    """With and without the compiled library, in shapes that PyTorch's kernel runs."""
    torch.manual_seed(2)
    ops = torch.ops.alt_kernels
    forward = ops.proportional_attention if compiled else contract._cpu
    backward = ops.proportional_attention_backward if compiled else contract._cpu_backward
    for row in (0, 1, 4, 7):
        for which in range(3):
            plain = [torch.randn(1, 2, count, 8).to(dtype) for count in (3, 7, 7)]
            shape = plain[which].shape
            odd = torch.randn(200).to(dtype).as_strided(shape, (1, 64, row, 1))
            given = [odd if i == which else t for i, t in enumerate(plain)]
            copied = [t.clone(memory_format=torch.contiguous_format) for t in given]
            found, expected = forward(*given, None, 0.3), forward(*copied, None, 0.3)
            grad = torch.randn_like(copied[0])
            grads = zip(
                backward(grad, *given, None, *expected, 0.3), backward(grad, *copied, None, *expected, 0.3), strict=True
            )
            for a, b in [*zip(found, expected, strict=True), *grads]:
                torch.testing.assert_close(a, b, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merging_and_assignment(dtype: torch.dtype) -> None:
    rng = random.Random(3)
    torch.manual_seed(3)
    for _ in range(25):
        batch, tokens, channels = rng.choice([1, 2, 3]), rng.choice([5, 9, 20]), rng.choice([1, 2, 8, 31, 64])
        metric, x, residual = (laid_out((batch, tokens, channels), dtype, rng) for _ in range(3))
        plan = ak.bipartite_soft_matching(metric, 2)
        for found, expected in zip(plan, ak.bipartite_soft_matching(metric.clone(), 2), strict=True):
            assert torch.equal(found, expected)
        keys = laid_out((batch, 2, tokens, channels), dtype, rng)
        for found, expected in zip(
            ak.bipartite_soft_matching_from_keys(keys, 2),
            ak.bipartite_soft_matching_from_keys(keys.clone(memory_format=torch.contiguous_format), 2),
            strict=True,
        ):
            assert torch.equal(found, expected)
        size = laid_out((batch, tokens), torch.float32, rng).abs().add(0.5).detach()
        weight, bias = (laid_out((channels,), dtype, rng) for _ in range(2))
        agree(lambda x, size=size, plan=plan: ak.weighted_merge(x, plan, size), [x], rng)
        agree(lambda y, plan=plan: ak.unmerge(y, plan), [laid_out((batch, tokens - 2, channels), dtype, rng)], rng)
        agree(
            lambda x, y, w, b, size=size, plan=plan: ak.merge_layer_norm(x, y, plan, size, w, b, 1e-5),
            [x, residual, weight, bias],
            rng,
        )
        entities = laid_out((rng.choice([1, 7, 33]), channels), dtype, rng)
        for hard in (True, False):
            agree(lambda x, s, hard=hard: ak.cosine_gumbel_assign(x, s, hard=hard, noise=None), [x, entities], rng)
