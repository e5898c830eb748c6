"""The MLP and the attention block that every trained layer is made of, and the names of weights in saved files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt.models.adapters import BlockAdapter
from alt.models.blocks import AttentionBlock, Mlp
from alt.models.frame_integration import FrameIntegration
from alt.models.video_adapter import VideoAdapter

from .tiny_models import WIDTH, draw, randomised

MLP = ["up.weight", "up.bias", "down.weight", "down.bias"]
BOTTLENECK = ["down.weight", "down.bias", "up.weight", "up.bias"]
ATTENTION = ["norm.weight", "norm.bias", "attention.in_proj_weight", "attention.in_proj_bias"]
ATTENTION += ["attention.out_proj.weight", "attention.out_proj.bias", "ffn_norm.weight", "ffn_norm.bias"]
CONVOLUTION = ["norm.weight", "norm.bias", "conv.weight", "conv.bias", "ffn_norm.weight", "ffn_norm.bias"]


def under(prefix: str, names: list[str]) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Mlp(WIDTH), MLP),
        (
            BlockAdapter(WIDTH, "stm", 2),
            [*under("spatial", BOTTLENECK), *under("beside", BOTTLENECK), *under("temporal", BOTTLENECK)],
        ),
        (FrameIntegration(WIDTH, 1, 2, 4), ["positions", *under("blocks.0", [*ATTENTION, *MLP])]),
        (
            VideoAdapter(WIDTH, 1, 2),
            [
                *under("blocks.0.conv", [*CONVOLUTION, *under("ffn", MLP)]),
                *under("blocks.0.self_attention", [*ATTENTION, *under("ffn", MLP)]),
                *under("blocks.0.cross_attention", [*ATTENTION, *under("ffn", MLP)]),
            ],
        ),
    ],
    ids=["mlp", "bottlenecks", "integration", "adapter"],
)
def test_names_and_their_order_are_those_of_saved_files(module: Any, names: list[str]) -> None:
    """The lists of commit 79387c1. The order counts too: an optimizer's state is saved by the parameter's number."""
    assert list(module.state_dict()) == names
    assert [name for name, _ in module.named_parameters()] == names


def test_bottleneck_goes_down_first() -> None:
    mlp, x = randomised(Mlp(WIDTH, 4).double()), draw(3, WIDTH)
    assert mlp.down.weight.shape == (4, WIDTH)
    expected = F.gelu(x @ mlp.down.weight.T + mlp.down.bias) @ mlp.up.weight.T + mlp.up.bias
    torch.testing.assert_close(mlp(x), expected)
    assert sum(p.numel() for p in mlp.parameters()) == 2 * WIDTH * 4 + WIDTH + 4
    assert not Mlp(WIDTH, 4, zero_output=True)(x.float()).any()


def attention_by_hand(block: Any, q: Tensor, keys: Tensor) -> Tensor:
    width = q.shape[-1]
    weight, bias = block.attention.in_proj_weight, block.attention.in_proj_bias
    parts = [F.linear(x, weight[i * width : (i + 1) * width], bias[i * width : (i + 1) * width])
             for i, x in enumerate((q, keys, keys))]  # fmt: skip
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
    mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return block.attention.out_proj(mixed.transpose(1, 2).flatten(2))


def test_attention_block_is_its_equation() -> None:
    block = randomised(AttentionBlock(WIDTH, 2).double())
    q, keys = draw(3, 4, WIDTH), draw(3, 5, WIDTH, seed=4)
    normed = F.layer_norm(q, (WIDTH,), block.norm.weight, block.norm.bias)
    for given, used in ((keys, keys), (None, normed)):
        x = q + attention_by_hand(block, normed, used)
        x = x + block.ffn(F.layer_norm(x, (WIDTH,), block.ffn_norm.weight, block.ffn_norm.bias))
        torch.testing.assert_close(block(q, given), x)
    assert sum(p.numel() for p in block.parameters()) == 12 * WIDTH**2 + 13 * WIDTH
    assert torch.equal(AttentionBlock(WIDTH, 2, zero_output=True)(q.float()), q.float())
