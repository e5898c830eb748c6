"""Attention with a bias of log size per key, one ViT-B/16 layer; forward, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gates
import pytest
import rivals
import shapes
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import proportional_attention

Case = tuple[shapes.Tokens, tuple[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture
def case(device: torch.device, request: pytest.FixtureRequest) -> Case:
    """Returns the shape, (q, k, v) as in a ViT block (views of one projection), and sizes above 1."""
    shape = shapes.layer(device)
    shape = shape._replace(dtype=getattr(request, "param", shape.dtype))
    generator = torch.Generator(device).manual_seed(3)
    projected = torch.randn(
        shape.batch, shape.tokens, 3, shape.heads, shape.head_dim, generator=generator, device=device
    )
    q, k, v = projected.to(shape.dtype).permute(2, 0, 3, 1, 4)
    size = torch.randint(1, 6, (shape.batch, shape.tokens), generator=generator, device=device).float()
    return shape, (q, k, v), size


@pytest.mark.parametrize("case", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"], indirect=True)
def test_attention(contest: Any, compiled_rival: Any, case: Case) -> None:
    shape, (q, k, v), size = case
    column = size[..., None].to(shape.dtype)
    want = proportional_attention(q.double(), k.double(), v.double(), size, impl="reference")
    compiled = compiled_rival("plain torch, compiled", rivals.attention)
    contest(
        "proportional_attention",
        lambda: proportional_attention(q, k, v, size),
        rivals={"plain torch": lambda: rivals.attention(q, k, v, column)}
        | {name: (lambda f=f: f(q, k, v, column)) for name, f in compiled.items()}
        | {
            "SDPA, dense mask": lambda: rivals.attention_dense_mask(q, k, v, column),
            "SDPA, broadcast mask": lambda: rivals.attention_broadcast_mask(q, k, v, column),
        },
        floors={"SDPA without sizes": lambda: F.scaled_dot_product_attention(q, k, v)},
        gates=lambda result: gates.error(result, want),
        bound=gates.roundings(64 if shape.dtype == torch.float32 else 16, shape.dtype),
        why_bound="dot products of 64 and a mean over 197 keys (in bfloat16 accumulated in float32)",
        cost=shape.attention_cost(),
        shape=shape.label,
        targets={"plain torch": 1.35} if shape.dtype == torch.float32 else {},
    )


def test_attention_with_backward(contest: Any, case: Case) -> None:
    shape, heads, size = case
    column = size[..., None].to(shape.dtype)
    grad = heads[0].roll(1, dims=2).contiguous()  # any values of the right scale
    leaves = [t.detach().contiguous().requires_grad_() for t in heads]
    doubles = [t.detach().double().requires_grad_() for t in heads]

    def gradients(
        function: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], out_grad: Tensor
    ) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(inputs[0], inputs[1], inputs[2]), inputs, out_grad)

    want = gradients(lambda q, k, v: proportional_attention(q, k, v, size, impl="reference"), doubles, grad.double())()
    cost = shape.attention_cost()
    contest(
        "proportional_attention, forward and backward",
        gradients(lambda q, k, v: proportional_attention(q, k, v, size), leaves, grad),
        rivals={
            "plain torch": gradients(lambda q, k, v: rivals.attention(q, k, v, column), leaves, grad),
            "SDPA, dense mask": gradients(lambda q, k, v: rivals.attention_dense_mask(q, k, v, column), leaves, grad),
        },
        floors={"SDPA without sizes": gradients(F.scaled_dot_product_attention, leaves, grad)},
        gates=lambda result: max(gates.error(g, w) for g, w in zip(result, want, strict=True)),
        bound=gates.roundings(256, shape.dtype),
        why_bound="the forward's roundings through two more chains of products",
        cost=shapes.Cost(cost.flops * 7 // 2, cost.bytes * 3),
        shape=shape.label,
    )
