"""The multi-frame integration transformer: its equation, and that only its positions see the order of frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import alt
from alt.models.config import FrameIntegrationConfig
from alt.models.frame_integration import FrameIntegration, FrameIntegrationModel

from .tiny_models import FRAMES, WIDTH, clips, draw, randomised, tiny_visual


def integration(layers: int = 2, frames: int = 4) -> Any:
    return randomised(FrameIntegration(WIDTH, layers, 2, frames).double())


def by_hand(module: Any, frames: Tensor) -> Tensor:
    """mean_t(MIT(H + e) + H), attention head by head."""
    x = frames + module.positions
    for block in module.blocks:
        normed = F.layer_norm(x, (WIDTH,), block.norm.weight, block.norm.bias)
        q, k, v = F.linear(normed, block.attention.in_proj_weight, block.attention.in_proj_bias).chunk(3, -1)
        heads = []
        for h in range(2):
            part = slice(h * WIDTH // 2, (h + 1) * WIDTH // 2)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / (WIDTH // 2) ** 0.5).softmax(-1)
            heads.append(weights @ v[..., part])
        x = x + block.attention.out_proj(torch.cat(heads, -1))
        hidden = block.up(F.layer_norm(x, (WIDTH,), block.ffn_norm.weight, block.ffn_norm.bias))
        x = x + block.down(hidden / (1 + torch.exp(-1.702 * hidden)))
    return (x + frames).mean(1)


def test_equation() -> None:
    module, frames = integration(), draw(3, 4, WIDTH)
    assert module(frames).shape == (3, WIDTH)
    torch.testing.assert_close(module(frames), by_hand(module, frames), rtol=0, atol=1e-12)


def test_order_matters_exactly_where_positions_differ() -> None:
    module, frames = integration(), draw(3, 4, WIDTH)
    permuted = frames[:, [2, 0, 3, 1]]
    assert (module(frames) - module(permuted)).abs().max() > 1e-3
    for same in (torch.zeros(WIDTH), torch.ones(WIDTH)):
        with torch.no_grad():
            module.positions.copy_(same)
        torch.testing.assert_close(module(frames), module(permuted), rtol=0, atol=1e-12)


def test_the_outer_residual() -> None:
    """With blocks that give back what they get, v is twice the mean of the frames and the mean position."""
    module, frames = integration(), draw(3, 4, WIDTH)
    for block in module.blocks:
        for layer in (block.attention.out_proj, block.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    expected = 2 * frames.mean(1) + module.positions.mean(0)
    torch.testing.assert_close(module(frames), expected, rtol=0, atol=1e-12)


def test_initialisation() -> None:
    module = FrameIntegration(256, 1, 4, 64)
    assert module.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.blocks[0].up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert sum(p.numel() for p in module.parameters()) == 12 * 256**2 + 13 * 256 + 64 * 256


def model(**options: Any) -> Any:
    config = FrameIntegrationConfig(backbone="tiny", frames=FRAMES, **options)
    return randomised(FrameIntegrationModel(config, tiny_visual(), 10.0).double()).eval()


def test_in_the_model() -> None:
    one = model()
    x = clips()
    frames = one.backbone(x).x[:, :, 0]
    torch.testing.assert_close(one(x).embedding, one.integration(frames), rtol=0, atol=1e-12)
    assert (one(x).embedding - one(x.flip(1)).embedding).abs().max() > 1e-3
    cached = one.forward_tokens(one.encode(x))
    torch.testing.assert_close(cached.embedding, one(x).embedding, rtol=0, atol=0)


def test_gradients_reach_tower_and_positions() -> None:
    one = model(r=3).train()
    one(clips()).embedding.square().sum().backward()
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_options() -> None:
    assert len(model(layers=3).integration.blocks) == 3
    assert model(heads=8).integration.blocks[0].attention.num_heads == 8
    with pytest.raises(ValueError, match="heads: expected a divisor of the joint width 16, got 3"):
        model(heads=3)
    with pytest.raises(ValueError, match="layers must be 1 or more, got 0"):
        FrameIntegrationConfig(layers=0)
    with torch.device("meta"):
        assert alt.create_model("mit-l14").integration.blocks[0].attention.num_heads == 12
