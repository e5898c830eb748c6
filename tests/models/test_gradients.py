"""The whole model against numerical differences in float64, with the merging plans and the noise held fixed.

Plans are integers: the loss is smooth only where they do not change, so every evaluation checks that they did not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alt.models.alt import AltModel

from .tiny_models import ENTITIES, FRAMES, clips, draw, tiny_alt

EPS = 1e-5


class Probe:
    """A smooth function of clips and parameters: a fixed combination of all outputs."""

    def __init__(self, model: AltModel, x: Tensor) -> None:
        self.model = model
        tokens = model.encode(x, trace=True)
        assert tokens.source is not None
        self.source = tokens.source
        self.noise = draw(x.shape[0], FRAMES, tokens.x.shape[2], ENTITIES, seed=8)

    def __call__(self, x: Tensor) -> Tensor:
        tokens = self.model.encode(x, trace=True)
        assert torch.equal(tokens.source, self.source), "a plan changed within the step of the difference"
        noise = None if self.model.alignment is None else self.noise
        output = self.model.forward_tokens(tokens, noise=noise)
        mixed = output.embedding * draw(*output.embedding.shape, seed=1)
        return mixed.sum() + (output.logits * draw(*output.logits.shape, seed=2)).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 0},
        {"keys": "mlp_tokens", "reduction": "attn", "temporal_pos": True},
        {"reduction": "mlp_then_mean", "init": "literal", "head": "literal"},
        {"queries": "random", "prop_attn": False, "r": (1, 4)},
    ],
    ids=str,
)
def test_every_parameter_and_the_pixels(options: dict[str, Any]) -> None:
    """For each tensor p and a random direction v: <dL/dp, v> = (L(p + e v) - L(p - e v)) / 2e."""
    model, x = tiny_alt(hard=False, **options), clips(batch=1)
    probe = Probe(model, x)
    x.requires_grad_()
    leaves = {"clips": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(probe(x), list(leaves.values()))
    for seed, ((name, leaf), gradient) in enumerate(zip(leaves.items(), gradients, strict=True)):
        direction = draw(*leaf.shape, seed=100 + seed)
        direction = direction / direction.norm()
        with torch.no_grad():
            leaf.add_(direction, alpha=EPS)
            above = probe(x)
            leaf.sub_(direction, alpha=2 * EPS)
            below = probe(x)
            leaf.add_(direction, alpha=EPS)
            slope = float(above - below) / (2 * EPS)
        exact = float((gradient * direction).sum())
        assert slope == pytest.approx(exact, rel=1e-5, abs=1e-7), name
        assert gradient.abs().max() > 0, name


def test_gradcheck_of_the_pixels() -> None:
    """Every single pixel of one frame."""
    model = tiny_alt(hard=False)
    x = clips(batch=1)
    probe = Probe(model, x)

    def of_frame(frame: Tensor) -> Tensor:
        return probe(torch.cat([x[:, :1], frame, x[:, 2:]], 1))

    frame = x[:, 1:2, :, :8, :8].clone().requires_grad_()

    def of_corner(corner: Tensor) -> Tensor:
        whole = x[:, 1:2].clone()
        whole[..., :8, :8] = corner
        return of_frame(whole)

    assert torch.autograd.gradcheck(of_corner, (frame,), eps=EPS, atol=1e-7, rtol=1e-5)
