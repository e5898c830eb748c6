"""What has gone wrong in other people's kernels on such hardware: shapes, layouts, dtypes and streams of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import alt_kernels as ak
from alt_kernels import Matching, testing
from alt_kernels.reference.cosine_gumbel_assign import philox4x32

from .problems import DTYPES, assert_close, named, normal, packed, sizes_of
from .test_ops_on_device import compare, gradients

HALF = DTYPES[1:]


def plan_on(device: torch.device, *of: int) -> Matching:
    return Matching(*(t.to(device) for t in testing.random_plan(*of)))


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("tokens", [192, 320, 128, 129, 64, 1, 2])
def test_attention_where_others_return_nan(device: torch.device, impl: Any, dtype: torch.dtype, tokens: int) -> None:
    """N % 128 = 64 with a bias, and tiles that are just full or hold one key more; sizes far apart."""
    qkv = packed(device, 1, 2, tokens, 2, 64, dtype)
    size = sizes_of(device, 2, 2, tokens)
    if tokens > 2:  # or all weight is on one key, and the gradient is a difference of equal numbers
        size[:, ::3] = 4000.0  # a sum of sizes that bfloat16 cannot count
    compare(lambda q, k, v, impl: ak.proportional_attention(q, k, v, size, impl=impl), qkv, "attention", impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_that_are_masked(device: torch.device, impl: Any, dtype: torch.dtype) -> None:
    """Size 0 masks: equal to attention over the others alone; without any key zeros, and no gradient."""
    q, k, v = packed(device, 1, 2, 70, 2, 32, dtype)
    size = sizes_of(device, 2, 2, 70)
    size[0, 40:] = 0
    size[1] = 0
    out, *grads = named(lambda: gradients(lambda q, k, v: ak.proportional_attention(q, k, v, size, impl=impl), q, k, v))
    some = ak.proportional_attention(q[:1], k[:1, :, :40], v[:1, :, :40], size[:1, :40], impl=impl)
    want = ak.proportional_attention(*(t[:1].double() for t in (q, k, v)), size[:1], impl="reference")
    assert_close(out[:1], want, some, what="masked")
    assert not out[1].any()
    assert all(torch.isfinite(g).all() and not g[1].any() for g in grads)
    assert not any(g[0, :, 40:].any() for g in grads[1:])


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("sized", [True, False], ids=["sizes", "no sizes"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_float32_stream_with_a_half_precision_branch(
    device: torch.device, impl: Any, dtype: torch.dtype, sized: bool
) -> None:
    """As under autocast: the result is float32, and each input gets its gradient in its own dtype."""
    x, branch = normal(device, 1, 2, 41, 768), normal(device, 2, 2, 41, 768, dtype=dtype)
    weight, bias = normal(device, 3, 768), normal(device, 4, 768)
    size = sizes_of(device, 5, 2, 41) if sized else None
    plan = plan_on(device, 2, 41, 9, 6)

    def call(x: Tensor, y: Tensor, w: Tensor, b: Tensor, impl: Any) -> Tensor:
        found = ak.merge_layer_norm(x, y, plan, size, w, b, impl=impl)
        assert found.x.dtype == found.normed.dtype == torch.promote_types(x.dtype, y.dtype)
        return found.normed + found.x

    compare(call, (x, branch, weight, bias), "merge_layer_norm", impl)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_chain_of_layers_and_its_gradient(device: torch.device, impl: Any, dtype: torch.dtype) -> None:
    """Three layers, sizes above 1 from the second on: the gradient to the first tokens, through every op.

    The plans are those of the first run: which pairs merge is not what is compared here.
    """
    plans: list[Matching] = []

    def run(x: Tensor, impl: Any) -> Tensor:
        size: Tensor | None = None
        for layer in range(3):
            heads = x.unflatten(-1, (2, 32)).transpose(1, 2)
            y = ak.proportional_attention(heads, heads, heads, size, impl=one(impl))
            if len(plans) == layer:
                plans.append(ak.bipartite_soft_matching_from_keys(heads.detach(), 7, impl=impl))
            branch = y.transpose(1, 2).flatten(2)
            _, x, size = ak.merge_layer_norm(x, branch, plans[layer], size, None, None, impl=impl)
        return x

    def one(impl: Any) -> Any:  # attention has no CUDA C++ kernel
        return "auto" if impl == "cuda" else impl

    x = normal(device, 1, 2, 53, 64, dtype=dtype)
    named(lambda: run(x, impl))
    compare(run, (x,), "three layers", impl)


def moved_by_one(x: Tensor) -> Tensor:
    """The same values, beginning one element after the beginning of an allocation: no access of 16 bytes is aligned."""
    buffer = x.new_zeros(x.numel() + 1)
    return buffer[1:].view(x.shape).copy_(x)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("layout", ["misaligned", "every second channel", "channels first", "one image for all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_layout(device: torch.device, impl: Any, dtype: torch.dtype, layout: str) -> None:
    """A kernel that was compiled for aligned rows must not be launched on others; each op, forward and backward."""

    def laid(x: Tensor) -> Tensor:
        if layout == "misaligned":
            return moved_by_one(x)
        if layout == "every second channel":
            return x.repeat_interleave(2, -1)[..., ::2]
        if layout == "channels first":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        return x[:1].expand(x.shape)

    x, y = (laid(normal(device, seed, 3, 41, 64, dtype=dtype)) for seed in (1, 2))
    size = laid(sizes_of(device, 5, 3, 41)[..., None])[..., 0]
    plan = plan_on(device, 3, 41, 9, 6)
    q, k, v = (laid(normal(device, seed, 3, 2, 41, 32, dtype=dtype)) for seed in (3, 4, 5))
    e = laid(normal(device, 6, 1, 70, 64, dtype=dtype))[0]

    def straight(function: Callable[..., Tensor], leaves: tuple[Tensor, ...], what: str) -> None:
        """The bits of another layout are not promised; the values are."""
        if impl == "cuda" and what != "norm":
            return  # the others have no CUDA C++ kernel
        got = named(lambda: gradients(lambda *a: function(*a, impl=impl), *leaves))
        want = gradients(lambda *a: function(*a, impl="reference"), *(t.double() for t in leaves))
        rounded = gradients(lambda *a: function(*a, impl="reference"), *leaves)
        for g, w, r in zip(got, want, rounded, strict=True):
            assert_close(g, w, r, what=f"{what}, {layout}")

    straight(lambda x, impl: ak.weighted_merge(x, plan, size, impl=impl).x, (x,), "merge")
    straight(lambda x, impl: ak.unmerge(x, plan, impl=impl), (x[:, 9:],), "unmerge")
    straight(lambda x, y, impl: ak.merge_layer_norm(x, y, plan, size, None, None, impl=impl).normed, (x, y), "norm")
    straight(lambda q, k, v, impl: ak.proportional_attention(q, k, v, size, impl=impl), (q, k, v), "attention")
    seed = torch.tensor(3, device=device)
    straight(
        lambda x, e, impl: ak.cosine_gumbel_assign(x, e, tau=0.5, seed=seed, impl=impl).output, (x, e), "assignment"
    )
    for keys in (q, k):
        found = named(lambda k=keys: ak.bipartite_soft_matching_from_keys(k, 9, impl=impl))
        testing.assert_valid_plan(Matching(*(t.cpu() for t in found)), 3, 41, 9, 1)
    for metric in (x, laid(testing.exact_metric(3, 41, 3, channels=64).to(device, dtype))):
        found = named(lambda m=metric: ak.bipartite_soft_matching(m, 9, impl=impl))
        testing.assert_valid_plan(Matching(*(t.cpu() for t in found)), 3, 41, 9, 1)
    want = ak.bipartite_soft_matching(metric.cpu(), 9, impl="reference")
    testing.assert_same_plan(Matching(*(t.cpu() for t in found)), want)


def test_more_logits_than_32_bits_count(device: torch.device, impl: Any) -> None:
    """M K beyond 2^31 on a GPU: the first, some and the last rows are what they are alone, with their own noise."""
    rows, count = (22_000, 100_000) if device.type == "cuda" else (300, 1000)
    assert rows * count > 2**31 or device.type == "cpu"
    x, e = normal(device, 1, rows, 16), normal(device, 2, count, 16)
    seed = torch.tensor(11, device=device)
    grad = normal(device, 3, rows, 16)

    def assign(x: Tensor, entities: Tensor, **drawn: Any) -> Tensor:
        return ak.cosine_gumbel_assign(x, entities, tau=0.5, **drawn)

    leaf = x.clone().requires_grad_()
    found = named(lambda: assign(leaf, e, seed=seed, impl=impl))
    (dx,) = torch.autograd.grad(found.output, leaf, grad)
    some = torch.tensor([0, 1, rows // 3, rows - 2, rows - 1], device=device)
    few = x[some].double().requires_grad_()
    want = assign(few, e.double(), noise=noise_of(some, count, 11), impl="reference")
    assert found.index[some].tolist() == want.index.tolist()
    (exact,) = torch.autograd.grad(want.output, few, grad[some].double())
    torch.testing.assert_close(dx[some].double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    assert torch.isfinite(dx).all()
    assert int(found.index.min()) >= 0
    assert int(found.index.max()) < count


def noise_of(row: Tensor, columns: int, seed: int) -> Tensor:
    """The noise of single rows, from the law: a function of (seed, row, column)."""
    column = torch.arange(columns, device=row.device)
    zero = torch.zeros((), dtype=torch.long, device=row.device)
    words = torch.stack(
        philox4x32((column[None] // 4, row[:, None], zero, zero), (zero + (seed & 0xFFFFFFFF), zero + (seed >> 32)))
    )
    word = words.gather(0, (column % 4).expand(1, len(row), -1))[0]
    u = ((word.double() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24)
    return -(-torch.log1p(-u)).log()


def test_no_op_reads_a_value_on_the_host(device: torch.device, impl: Any) -> None:
    """Forward and backward of each, the noise drawn from torch's generator as well."""
    x, y = normal(device, 1, 2, 41, 64), normal(device, 2, 2, 41, 64)
    size = sizes_of(device, 3, 2, 41)
    e = normal(device, 4, 30, 64)

    def everything() -> None:
        a, b = (t.clone().requires_grad_() for t in (x, y))
        heads = a.unflatten(-1, (2, 32)).transpose(1, 2)
        plan = ak.bipartite_soft_matching_from_keys(heads.detach(), 9, impl=impl)
        merged = ak.merge_layer_norm(a, b, plan, size, None, None, impl=impl)
        other = "auto" if impl == "cuda" else impl  # these have no CUDA C++ kernel
        out = ak.proportional_attention(heads, heads, heads, size, impl=other).sum()
        out = out + ak.weighted_merge(a, plan, size, impl=other).x.sum() + ak.unmerge(merged.x, plan, impl=other).sum()
        out = out + merged.normed.square().sum() + ak.cosine_gumbel_assign(a, e, tau=0.5, impl=other).output.sum()
        out.backward()

    named(everything)  # compiled and warmed up
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_nothing_recompiles_as_tokens_merge_away(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other N, r, batch and seed of the same buckets launch what was compiled before: in a run, not in a count."""
    from triton.runtime.jit import JITFunction

    compiled: list[str] = []
    compile_ = JITFunction._do_compile

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(self.fn.__name__)
        return compile_(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "_do_compile", counted)

    def block(batch: int, tokens: int, r: int, seed: int) -> None:
        x = normal(device, seed, batch, tokens, 128, dtype=torch.bfloat16).requires_grad_()
        heads = x.unflatten(-1, (2, 64)).transpose(1, 2)
        size = sizes_of(device, seed, batch, tokens)
        plan = ak.bipartite_soft_matching_from_keys(heads.detach(), r)
        y = ak.proportional_attention(heads, heads, heads, size).transpose(1, 2).flatten(2)
        merged = ak.merge_layer_norm(x, y, plan, size, None, None)
        drawn = torch.tensor(seed, device=device)
        chosen = ak.cosine_gumbel_assign(merged.normed, x.detach()[0, :40], tau=0.5, seed=drawn)
        (merged.x + chosen.output).float().square().sum().backward()

    for tokens in (197, 189, 160):
        block(4, tokens, 8, 1)
    before = len(compiled)
    for batch, tokens, r, seed in (
        (4, 181, 8, 2),
        (3, 196, 13, 16),
        (5, 176, 5, 2**40),
        (4, 144, 7, 3),
        (16, 192, 1, 9),
    ):
        block(batch, tokens, r, seed)
    assert compiled[before:] == []


@pytest.mark.gpu
@pytest.mark.parametrize("op", ["attention", "merge", "assignment"])
def test_a_stream_that_is_not_the_default(device: torch.device, op: str) -> None:
    """Forward and backward are ordered after what their stream was given, and only after that."""
    x, y = normal(device, 1, 2, 41, 64), normal(device, 2, 2, 41, 64)
    plan, size = plan_on(device, 2, 41, 9, 6), sizes_of(device, 3, 2, 41)
    seed = torch.tensor(3, device=device)

    def call(x: Tensor) -> Tensor:
        if op == "attention":
            heads = x.unflatten(-1, (2, 32)).transpose(1, 2)
            return ak.proportional_attention(heads, heads, heads, size)
        if op == "merge":
            return ak.merge_layer_norm(x, y, plan, size, None, None).normed
        return ak.cosine_gumbel_assign(x, y[0], tau=0.5, seed=seed).output

    weight = normal(device, 4, *call(x).shape)  # now: a copy from the host would wait for the stream

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        result = call(leaf)
        return result.detach(), *torch.autograd.grad(result, leaf, weight)

    want = run(x)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        got = run(late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_half_precision_noise_does_not_saturate(device: torch.device, impl: Any) -> None:
    """Rows and entities in bfloat16, noise in float32: hard choices follow the softmax of the cosines."""
    x = normal(device, 1, 1, 64, dtype=torch.bfloat16).expand(4000, -1)
    e = normal(device, 2, 12, 64, dtype=torch.bfloat16)
    found = named(lambda: ak.cosine_gumbel_assign(x, e, tau=0.1, seed=torch.tensor(5, device=device), impl=impl))
    law = (F.normalize(x[:1].double(), dim=-1) @ F.normalize(e.double(), dim=-1).T / 0.1).softmax(-1)[0].cpu()
    counts = torch.bincount(found.index.cpu(), minlength=12)
    likely = law * 4000 > 5
    rest = torch.stack([counts[~likely].sum(), *counts[likely]])
    assert testing.chi_square(rest, torch.stack([law[~likely].sum(), *law[likely]]).clamp(min=1e-9)) > 1e-3
