"""The patch embedding as one product, and the gradient of a packed projection written once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import alt
from alt.hosts import patch_embedding
from alt.hosts.packed import split_heads
from alt.hosts.patch_embedding import PatchConv2d, embed_patches
from tests.patch.compare import images, max_difference

from .families import FAMILIES, Family, build


class Counted(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(12, 18), (13, 20)], ids=["exact", "with a rest"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_one_product_is_the_convolution(size: tuple[int, int], layout: torch.memory_format, bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, (4, 6), stride=(4, 6), bias=bias, dtype=torch.float64)
    batch = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    inputs = [batch, *convolution.parameters()]
    expected = convolution(batch)
    found = embed_patches(batch, convolution.weight, convolution.bias)
    assert found.shape == expected.shape
    assert found.permute(0, 2, 3, 1).is_contiguous()
    assert max_difference(found, expected) < 1e-12
    grad = torch.randn_like(expected)
    for left, right in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert max_difference(left, right) < 1e-12


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_host_is_exact_with_it(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in half precision; here in float64, so that nothing but a mistake can differ."""
    monkeypatch.setattr(patch_embedding, "computes_in_half", lambda images: True)
    model = build(family)
    batch = images(2, size=family.sizes[0])
    monkeypatch.setattr(PatchConv2d, "_conv_forward", None, raising=False)  # cannot be called
    expected = family.run(model, batch)
    convolutions = [m for m in model.modules() if type(m) is nn.Conv2d]
    with alt.patch_model(model, 0) as handle:
        assert [m for m in handle.tower.modules() if isinstance(m, PatchConv2d)]
        found = family.run(model, batch)
    assert max_difference(found, expected) < 1e-12
    assert [m for m in model.modules() if type(m) is nn.Conv2d] == convolutions


def test_on_a_cpu_the_convolution_itself_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_embedding, "embed_patches", None)
    convolution = nn.Conv2d(3, 4, 2, 2)
    convolution.__class__ = PatchConv2d
    batch = images(1, torch.float32)
    assert torch.equal(convolution(batch), F.conv2d(batch, convolution.weight, convolution.bias, 2))


def test_other_convolutions_keep_their_class() -> None:
    family = next(iter(FAMILIES.values()))
    for options in ({"stride": 7}, {"padding": 1}, {"dilation": 2}):
        model = build(family)
        tower = family.tower(model)
        name, old = next((n, m) for n, m in tower.named_modules() if type(m) is nn.Conv2d)
        new = nn.Conv2d(3, old.out_channels, 8, **{"stride": 8, **options}, bias=old.bias is not None)
        tower.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = new
        with alt.patch_model(model, 0):
            assert type(new) is nn.Conv2d


def test_the_packed_gradient_is_written_once() -> None:
    """One concatenation, and no copy into another layout: with attention's kernels these were most of its backward."""
    x = torch.randn(2, 5, 3 * 2 * 4, requires_grad=True)
    q, k, v = split_heads(x, 2)
    want = x.detach().unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    for found, expected in zip((q, k, v), want, strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()

    def heads_last() -> Tensor:  # [B, H, N, D] as the kernels write it
        return torch.randn(2, 5, 2, 4).transpose(1, 2)

    grads = [heads_last() for _ in range(3)]
    with Counted() as counted:
        torch.autograd.backward((q, k, v), grads)
    assert counted.calls["stack"] + counted.calls["cat"] == 1
    assert counted.calls["clone"] + counted.calls["copy_"] + counted.calls["contiguous"] <= 1, counted.calls
    assert x.grad is not None
    assert torch.equal(x.grad.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4), torch.stack(grads))
