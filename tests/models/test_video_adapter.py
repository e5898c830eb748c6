"""The video adapter: Eq. 8, its parameters, and what it knows of the order of the frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt.models.video_adapter import AdapterBlock, VideoAdapter

from .tiny_models import draw, randomised

WIDTH, HEADS, FRAMES = 16, 4, 5


def adapter(random: bool = True, **options: Any) -> VideoAdapter:
    torch.manual_seed(0)
    module = VideoAdapter(WIDTH, 2, HEADS, frames=FRAMES, **options).double().eval()
    return randomised(module) if random else module


def inputs() -> tuple[Tensor, Tensor]:
    return draw(2, FRAMES, WIDTH, seed=1), draw(2, FRAMES, WIDTH, seed=2)


def norm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attend(layer: Any, q: Tensor, keys: Tensor) -> Tensor:
    """Multi-head attention, head by head."""
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((q, keys, keys), weights, biases, strict=True))
    depth = WIDTH // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * depth, (h + 1) * depth)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / depth**0.5
        heads.append(logits.softmax(-1) @ v[..., part])
    return F.linear(torch.cat(heads, -1), layer.out_proj.weight, layer.out_proj.bias)


def feed_forward(part: Any, x: Tensor) -> Tensor:
    return x + part.ffn.down(F.gelu(part.ffn.up(norm(part.ffn_norm, x))))


def convolve(part: Any, x: Tensor) -> Tensor:
    """Frame t sees t - 1, t and t + 1 of its own channel, zeros beyond the ends."""
    y = F.pad(norm(part.norm, x), (0, 0, 1, 1))
    weight = part.conv.weight[:, 0]
    return feed_forward(part, x + sum(weight[:, k] * y[:, k : k + FRAMES] for k in range(3)) + part.conv.bias)


def test_equation_8() -> None:
    module, (q, x) = adapter(), inputs()
    result = module(q, x)
    for block in module.blocks:
        keys = convolve(block.conv, x)  # of the original x in every block
        part = block.self_attention
        q = feed_forward(part, q + attend(part.attention, norm(part.norm, q), norm(part.norm, q)))
        part = block.cross_attention
        q = feed_forward(part, q + attend(part.attention, norm(part.norm, q), keys))
    torch.testing.assert_close(result, q, rtol=0, atol=1e-12)


def test_equation_8_when_training_is_the_same_function() -> None:
    module, (q, x) = adapter(), inputs()
    expected = module(q, x)
    with torch.no_grad():
        torch.testing.assert_close(module(q, x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.train()(q, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [16, 64])
def test_parameters_of_a_block(width: int) -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in AdapterBlock(width, 4, **options).parameters())

    d = width
    assert count() == 32 * d**2 + 39 * d
    assert count(convolution=False) == 32 * d**2 + 39 * d - (8 * d**2 + 5 * d + 4 * d + 4 * d)
    assert count(self_attention=False) == 32 * d**2 + 39 * d - (12 * d**2 + 9 * d + 4 * d)


@pytest.mark.parametrize("self_attention", [True, False])
def test_only_the_convolution_sees_the_order(self_attention: bool) -> None:
    q, x = inputs()
    order = torch.tensor([3, 0, 4, 2, 1])
    blind = adapter(self_attention=self_attention, convolution=False)
    torch.testing.assert_close(blind(q[:, order], x[:, order]), blind(q, x)[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(blind(q, x[:, order]), blind(q, x), rtol=0, atol=1e-12)  # keys are a set
    seeing = adapter(self_attention=self_attention)
    assert (seeing(q[:, order], x[:, order]) - seeing(q, x)[:, order]).abs().max() > 1e-3
    placed = adapter(convolution=False, temporal_pos=True)
    assert (placed(q[:, order], x[:, order]) - placed(q, x)[:, order]).abs().max() > 1e-3


def test_switched_off_parts_leave_the_others() -> None:
    q, x = inputs()
    alone = adapter(self_attention=False)
    result = alone(q, x)
    for frame in range(FRAMES):  # without self-attention a query sees no other query
        other = q.clone()
        other[:, frame, 0] += 1.0
        changed = (alone(other, x) - result).abs().amax((0, 2)) > 1e-9
        assert changed.tolist() == [t == frame for t in range(FRAMES)]
    both = adapter()
    other = q.clone()
    other[:, 0, 0] += 1.0
    assert bool(((both(other, x) - both(q, x)).abs().amax((0, 2)) > 1e-9).all())


def test_wider_kernel_sees_further() -> None:
    _, x = inputs()
    other = x.clone()
    other[:, 0, 0] += 1.0
    for kernel, reach in ((1, 1), (3, 2), (5, 3)):
        conv = adapter(conv_kernel=kernel).blocks[0].conv
        changed = (conv(other) - conv(x)).abs().amax((0, 2)) > 1e-9
        assert changed.tolist() == [t < reach for t in range(FRAMES)]


def test_one_frame() -> None:
    q, x = draw(2, 1, WIDTH, seed=1), draw(2, 1, WIDTH, seed=2)
    module = adapter()
    assert module(q, x).shape == q.shape
    assert (module(q, x) - module(q, -x)).abs().max() > 1e-3


def test_zero_output_starts_as_the_identity_and_learns() -> None:
    q, x = inputs()
    module = adapter(random=False)
    assert torch.equal(module(q, x), q)
    module(q, x).pow(2).sum().backward()
    assert module.blocks[1].cross_attention.attention.out_proj.weight.grad.abs().max() > 0
    literal = adapter(random=False, zero_output=False)
    difference = (literal(q, x) - q).abs().max()
    assert 1e-5 < difference < 0.5
