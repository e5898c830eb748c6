"""Tools to compare two models, for any host: random parameters and images, outputs and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import alt
from alt.data.pixels import CLIP_MEAN, CLIP_STD


def randomised(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """Adds noise to every parameter: LayerScale, LayerNorm and biases must not be what a bug would assume."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def images(batch: int = 3, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (32, 32)) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def as_clip_images(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Changes pictures of a mean and standard deviation per channel to CLIP's, which video models take."""
    old, new = images.new_tensor((mean, std)), images.new_tensor((CLIP_MEAN, CLIP_STD))
    old_mean, old_std, new_mean, new_std = (values.view(3, 1, 1) for values in (*old, *new))
    return (images * old_std + old_mean - new_mean) / new_std


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def max_difference(a: Any, b: Any) -> float:
    pairs = list(zip(flat(a), flat(b), strict=True))
    assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
    return max((x - y).abs().max().item() for x, y in pairs)


def bit_equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def parameter_gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by name; zeros where there is none."""
    names, parameters = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(names, parameters, gradients, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in pairs}


def assert_same_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, looser: dict[str, float] | None = None
) -> None:
    """Asserts that gradients by name are equal to ``tolerance * (1 + m)``, m the largest of the parameter's module.

    A gradient is a sum, so its rounding is relative to the terms, not to the sum. That of a bias of keys is exactly
    zero, because the softmax cancels a constant in all logits of a query; what two models compute there is the
    rounding of terms as large as those of the weight beside it. looser: tolerances by the ends of names.
    """
    assert found.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, gradient in expected.items():
        module = name.rpartition(".")[0]
        largest[module] = max(largest.get(module, 0.0), gradient.abs().max().item())
    for name, gradient in expected.items():
        allowed = max([tolerance, *(value for end, value in (looser or {}).items() if name.endswith(end))])
        assert max_difference(found[name], gradient) < allowed * (1 + largest[name.rpartition(".")[0]]), name


def assert_logits_keep_their_shape(model: nn.Module, part: nn.Module, inputs: dict[str, Any]) -> None:
    """Asserts that a model whose part is patched computes what it did at r = 0, and at r = 3 something of its shape."""
    expected = model(**inputs).logits
    with alt.patch_model(part, 0) as handle:
        assert max_difference(model(**inputs).logits, expected) < 1e-12
        handle.r = 3
        merged = model(**inputs).logits
        assert merged.shape == expected.shape
        assert max_difference(merged, expected) > 1e-6
    assert bit_equal(model(**inputs).logits, expected)


def loss_of(output: Any) -> Tensor:
    """A fixed random functional of all outputs."""
    generator = torch.Generator().manual_seed(5)
    return sum(
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)).sum() for t in flat(output)
    )
