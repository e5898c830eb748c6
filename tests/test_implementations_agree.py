"""Every implementation of every op on the same inputs: reference, C++, Triton and CUDA C++, side by side.

Each is held value by value against the reference in float64, within what rounding explains of the result plus the
largest error that the reference itself makes in the same dtype; indices are equal where scores are exact. So any two
agree within twice that. Where there is no GPU, Triton runs in its interpreter and CUDA C++ as fibers on the host; with
ALT_KERNELS_TEST_DEVICE=cuda both run on the GPU. The tests of the rooms go through branches and edges; this one goes
through implementations. Every call is made twice, for the same bits.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import Matching, testing
from alt_kernels.library import CUDA_OPS, OPS
from alt_kernels.reference import bipartite_soft_matching, cosine_gumbel_assign

from .cuda import emulation
from .ops.test_proportional_attention import truth_of
from .triton.conftest import DEVICE  # installs the corrected interpreter where there is no GPU
from .triton.test_bipartite_soft_matching import assert_as_good

pytestmark = pytest.mark.usefixtures("poisoned_empty")

f32, f16, b16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (f32, f16, b16)
IMPLEMENTATIONS = ("reference", "cpp", "triton", "cuda")
EPS = 1e-3
SEED = -(2**62) - 98765
with_cuda = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
without_cuda = pytest.mark.parametrize("impl", IMPLEMENTATIONS[:3])
in_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def implementation(impl: str, op: str) -> Any:
    """The function of ``op``'s schema, and the device of its tensors."""
    if impl == "reference":
        return OPS[op].reference, "cpu"
    if impl == "cpp":
        if (reason := testing.unavailable("cpp")) is not None:
            pytest.skip(reason)
        return getattr(torch.ops.alt_kernels, op), "cpu"
    if impl == "triton":
        module = importlib.import_module(f"alt_kernels.triton.{OPS[op].triton}")
        return getattr(module, op), DEVICE
    (name,) = (name for name in CUDA_OPS if name.replace("_cuda", "") == op)
    if DEVICE == "cuda":
        assert testing.unavailable("cuda") is None, testing.unavailable("cuda")
        return getattr(torch.ops.alt_kernels, name), DEVICE
    emulation.library()
    return getattr(getattr(torch.ops, emulation.NAMESPACE), name), "cpu"


def run(impl: str, op: str, *args: Any) -> tuple[Tensor, ...]:
    """The results on the CPU, after a second call has given the same bits."""
    function, device = implementation(impl, op)
    there = [a.to(device) if isinstance(a, Tensor) else a for a in args]
    with numpy.errstate(all="ignore"):
        first, second = function(*there), function(*there)
    first, second = ((t,) if isinstance(t, Tensor) else tuple(t) for t in (first, second))
    for left, right in zip(first, second, strict=True):
        testing.assert_same_bits(left, right, name=f"{op} by {impl}, a second time")
    return tuple(t.cpu() for t in first)


def double(*args: Any) -> list[Any]:
    """The same values in float64."""
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


class Bounded(NamedTuple):
    """A result in float64, what rounding explains of another, and the reference's own in the dtype."""

    truth: Tensor
    band: Tensor | float
    reference: Tensor

    def hold(self, actual: Tensor, name: str) -> None:
        assert actual.dtype == self.reference.dtype, name
        testing.assert_error_band(actual, self.truth, self.band, reference=self.reference, name=name)


# Matching


def exact_keys(dtype: torch.dtype) -> Tensor:
    """Keys of two heads, metric + e and metric - e, in a packed projection: their mean is exact, and so are scores."""
    metric = testing.exact_metric(2, 45, 5, zeros=0.1, exponent=3, dtype=dtype)
    e = torch.randint(-1, 2, metric.shape, generator=testing.generator(6)).to(dtype)
    e = e * metric.abs().amax(-1, keepdim=True)
    packed = torch.full((2, 45, 3, 2, 64), torch.nan, dtype=dtype)
    packed[:, :, 1] = torch.stack([metric + e, metric - e], 2)
    return packed[:, :, 1].transpose(1, 2)


@in_dtypes
@with_cuda
def test_matching_index_for_index(impl: str, dtype: torch.dtype) -> None:
    """Exact scores: ties, repeated, zero and broken rows."""
    for r, num_protected in ((16, 1), (22, 0)):
        metric = testing.exact_metric(2, 45, 3, zeros=0.1, non_finite=0.1, dtype=dtype)
        expected = Matching(*bipartite_soft_matching.bipartite_matching(metric.double(), r, num_protected))
        testing.assert_same_plan(Matching(*run(impl, "bipartite_matching", metric, r, num_protected)), expected)
        keys = exact_keys(dtype)
        expected = Matching(*bipartite_soft_matching.bipartite_matching_from_keys(keys.double(), r, num_protected))
        found = run(impl, "bipartite_matching_from_keys", keys, r, num_protected)
        testing.assert_same_plan(Matching(*found), expected, name="plan of keys")


@in_dtypes
@with_cuda
def test_matching_of_gaussian_rows(impl: str, dtype: torch.dtype) -> None:
    """Another choice than float64's only where the scores are within 1e-6, and such cases are counted."""
    metric = torch.randn(3, 61, 64, generator=testing.generator(1)).to(dtype)
    assert_as_good(metric, Matching(*run(impl, "bipartite_matching", metric, 16, 1)), 16)
    keys = torch.randn(2, 4, 61, 64, generator=testing.generator(2)).to(dtype)
    plan = Matching(*run(impl, "bipartite_matching_from_keys", keys, 16, 1))
    assert_as_good(bipartite_soft_matching.head_mean(keys), plan, 16)


# Merging


class Plan(NamedTuple):
    matching: Matching
    size: Tensor
    longest: int  # tokens of the largest group


@functools.cache
def plan() -> Plan:
    """Whole sizes above 1, as they are from the second layer on; one large group in each image."""
    matching = testing.random_plan(2, 23, 9, seed=1, destinations=2)
    return Plan(matching, testing.random_size(2, 23, 2, integer=True), int(matching.offsets.diff(dim=1).max()))


@in_dtypes
@without_cuda
def test_merge_and_unmerge(impl: str, dtype: torch.dtype) -> None:
    p = plan()
    x, grad = torch.randn(2, 23, 40).to(dtype), torch.randn(2, 14, 40).to(dtype)
    terms = 2 * p.longest + 4

    def bounded(op: str, value: Tensor, *rest: Any) -> Bounded:
        function = OPS[op].reference
        truth, magnitude, low = (function(v, *rest) for v in (value.double(), value.double().abs(), value))
        if op == "weighted_merge":
            truth, magnitude, low = truth[0], magnitude[0], low[0]
        return Bounded(truth, testing.store_band(truth, magnitude, terms, dtype), low)

    merged, size = run(impl, "weighted_merge", x, p.size, *p.matching)
    bounded("weighted_merge", x, p.size, *p.matching).hold(merged, "merged")
    testing.assert_same_bits(size, OPS["weighted_merge"].reference(x, p.size, *p.matching)[1])
    (back,) = run(impl, "weighted_merge_backward", grad, p.size, size, *p.matching)
    bounded("weighted_merge_backward", grad, p.size, size, *p.matching).hold(back, "gradient of the merge")
    (copied,) = run(impl, "unmerge", merged, *p.matching)
    testing.assert_same_bits(copied, OPS["unmerge"].reference(merged, *p.matching))
    (summed,) = run(impl, "unmerge_backward", x, *p.matching)
    bounded("unmerge_backward", x, *p.matching).hold(summed, "gradient of unmerge")


class Norm(NamedTuple):
    """Rows x', their mean, h = (x' - mean) rstd and rstd, in float64."""

    rows: Tensor
    mean: Tensor
    h: Tensor
    rstd: Tensor


def norm_of(rows: Tensor) -> Norm:
    mean = rows.mean(-1, keepdim=True)
    rstd = (rows.var(-1, correction=0, keepdim=True) + EPS).rsqrt()
    return Norm(rows, mean, (rows - mean) * rstd, rstd)


MIXED = [(f32, f32), (f16, f16), (b16, b16), (f32, b16)]  # stream and branch; the last is autocast's


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@with_cuda
def test_merge_layer_norm(impl: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """The norm is that of x' as stored: an error of x' shows in it, through the derivative of the norm."""
    p, channels, dtype = plan(), 72, torch.promote_types(*dtypes)
    x, y = (1.0 + 2.0 * torch.randn(2, 23, channels)).to(dtypes[0]), torch.randn(2, 23, channels).to(dtypes[1])
    weight, bias = 1.0 + 0.3 * torch.randn(channels), 0.3 * torch.randn(channels)
    args = (x, y, p.size, *p.matching, weight, bias, EPS)
    low = OPS["merge_layer_norm"].reference(*args)
    merge = OPS["weighted_merge"].reference
    rows = merge(x.double() + y.double(), p.size, *p.matching)[0]
    magnitude = merge(x.double().abs() + y.double().abs(), p.size, *p.matching)[0]
    row_band = testing.store_band(rows, magnitude, 2 * p.longest + 6, dtype)
    n = norm_of(rows)
    # To first order, with a tenth for the rest; then the norm's own two passes.
    moved = row_band * n.rstd
    moved = 1.1 * (moved + moved.mean(-1, keepdim=True) + n.h.abs() * (n.h.abs() * moved).mean(-1, keepdim=True))
    off = testing.gamma(channels + 2, f32) * rows.abs().mean(-1, keepdim=True) * n.rstd
    wrong = moved + off + n.h.abs() * (off.square() + testing.gamma(2 * channels + 16, f32))
    normed = n.h * weight.double() + bias.double()
    largest = normed.abs() + bias.double().abs()  # a product and a sum, rounded each
    band = wrong * weight.double().abs() + testing.store_band(normed, largest, 3, dtype)

    found = run(impl, "merge_layer_norm", *args)
    Bounded(rows, row_band, low[0]).hold(found[0], "merged")
    Bounded(normed, band, low[1]).hold(found[1], "normed")
    testing.assert_same_bits(found[2], low[2], name="size")
    mean_band = row_band.mean(-1) + testing.gamma(channels + 2, f32) * rows.abs().mean(-1)
    Bounded(n.mean[..., 0], mean_band, low[3]).hold(found[3], "mean")
    relative = (n.h.abs() * moved).mean(-1) + off[..., 0].square() + testing.gamma(2 * channels + 16, f32)
    Bounded(n.rstd[..., 0], 1.1 * relative * n.rstd[..., 0], low[4]).hold(found[4], "rstd")


@in_dtypes
@with_cuda
def test_merge_layer_norm_backward(impl: str, dtype: torch.dtype) -> None:
    p, channels, op = plan(), 72, "merge_layer_norm_backward"
    merged = (1.0 + 2.0 * torch.randn(2, 14, channels)).to(dtype)
    dm, dn = (torch.randn(2, 14, channels).to(dtype) for _ in range(2))
    weight = 1.0 + 0.3 * torch.randn(channels)
    n = norm_of(merged.double())
    size = OPS["weighted_merge"].reference(torch.zeros(2, 23, 1), p.size, *p.matching)[1]
    mean, rstd = n.mean[..., 0].float(), n.rstd[..., 0].float()
    low = OPS[op].reference(dm, dn, merged, mean, rstd, weight, True, p.size, size, *p.matching)
    wide = double(dm, dn, merged, mean, rstd, weight)
    truth = OPS[op].reference(*wide, True, p.size, size, *p.matching)
    # The magnitudes of the terms: |dm|, |g|, its mean, and h times the mean of |g h|, all but the first times rstd.
    h = ((wide[2] - wide[3][..., None]) * wide[4][..., None]).abs()
    g = wide[1].abs() * wide[5].abs()
    along = (g + g.mean(-1, keepdim=True) + h * (g * h).mean(-1, keepdim=True)) * wide[4][..., None]
    spread = OPS["weighted_merge_backward"].reference(wide[0].abs() + along, p.size, size, *p.matching)
    band = testing.store_band(truth[0], spread, channels + 16, dtype) + testing.roundoff(dtype) * spread
    rows = testing.gamma(28 + 8, f32)

    found = run(impl, op, dm, dn, merged, mean, rstd, weight, True, p.size, size, *p.matching)
    Bounded(truth[0], band, low[0]).hold(found[0], "gradient of x and residual")
    Bounded(truth[1], rows * (wide[1].abs() * h).sum((0, 1)), low[1]).hold(found[1], "gradient of weight")
    Bounded(truth[2], rows * wide[1].abs().sum((0, 1)), low[2]).hold(found[2], "gradient of bias")


# Attention


@in_dtypes
@without_cuda
def test_attention(impl: str, dtype: torch.dtype) -> None:
    """Sizes above 1; 41 queries on 37 keys; the gradients from each implementation's own output."""
    op, scale = "proportional_attention", 0.2
    q, grad = (torch.randn(2, 2, 41, 32).to(dtype) for _ in range(2))
    k, v = (torch.randn(2, 2, 37, 32).to(dtype) for _ in range(2))
    size = testing.random_size(2, 37, 3)
    truth = truth_of(q, k, v, size, scale, grad)
    low_out, low_lse = OPS[op].reference(q, k, v, size, scale)
    low = OPS[f"{op}_backward"].reference(grad, q, k, v, size, low_out, low_lse, scale)

    out, lse = run(impl, op, q, k, v, size, scale)
    Bounded(truth.out, truth.out_band, low_out).hold(out, "out")
    exact = OPS[op].reference(*double(q, k, v), size, scale)[1]
    largest = (q.double().abs() @ k.double().abs().transpose(-1, -2)).amax(-1) * scale + size.log().max()
    lse_band = testing.gamma(32 + 37 + 8, f32) * (1 + largest) + testing.roundoff(f32) * exact.abs()
    Bounded(exact, lse_band, low_lse).hold(lse, "log-sum-exp")
    found = run(impl, f"{op}_backward", grad, q, k, v, size, out, lse, scale)
    for name, *bounded, actual in zip("qkv", truth.grads, truth.grad_bands, low, found, strict=True):
        Bounded(*bounded).hold(actual, f"gradient of {name}")


# Assignment


@pytest.mark.parametrize(
    ("noise", "dtypes"),
    [("tensor", MIXED[0]), ("tensor", MIXED[2]), ("none", MIXED[0]), ("none", MIXED[1]), *(("seed", d) for d in MIXED)],
    ids=str,
)
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@without_cuda
def test_assignment(impl: str, hard: bool, noise: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Logits are float32 everywhere: what differs is the order of sums and the dtype of the products' operands."""
    op, m, count, depth, tau = "gumbel_assignment", 19, 37, 32, torch.tensor(0.4)
    dtype = torch.promote_types(*dtypes)
    x, s = torch.randn(m, depth).to(dtypes[0]), torch.randn(count, depth).to(dtypes[1])
    grad = torch.randn(m, depth).to(dtype)
    seed = torch.tensor(SEED) if noise == "seed" else None
    drawn = cosine_gumbel_assign.gumbel_noise(torch.tensor(7), m, count) if noise == "tensor" else None
    args = (x, s, tau, drawn, seed)
    wide = double(*args)
    truth = OPS[op].reference(*wide, hard)
    low = OPS[op].reference(*args, hard)
    _, logits, unit_x, unit_s, *_ = cosine_gumbel_assign._logits(*wide)
    u, low_u = testing.roundoff(f32), 0.0 if dtype == f32 else testing.roundoff(dtype)
    # A cosine of d products and two norms, a division, a sum; the noise is drawn in float32.
    error = (2 * depth + 8) * u / float(tau) + 2 * u * float(logits.abs().max()) + (1e-6 if noise == "seed" else 0)
    best = logits.topk(2, -1).values
    assert (best[:, 0] - best[:, 1]).min() > 2 * error, "a near-tie: draw other inputs"

    output, index, normalizer = run(impl, op, *args, hard)
    assert torch.equal(index, truth[1])
    sums = testing.gamma(count + 8, f32)
    Bounded(truth[2], error + sums + u * truth[2].abs(), low[2]).hold(normalizer, "log-normalizer")
    a, entities = logits.softmax(-1), s.double().abs()
    if hard:
        testing.assert_same_bits(output, s.to(dtype)[index], name="output")
    else:
        inner = (4 * error + low_u + sums) * (a @ entities)
        Bounded(truth[0], inner + testing.store_band(truth[0], inner, 1, dtype), low[0]).hold(output, "output")

    found = run(impl, f"{op}_backward", grad, *args, index, normalizer, hard, True)
    truths = OPS[f"{op}_backward"].reference(grad.double(), *wide, truth[1], truth[2], hard, True)
    lows = OPS[f"{op}_backward"].reference(grad, *args, low[1], low[2], hard, True)
    do = grad.double().abs()
    da = do @ entities.T
    dl = a * (da + (a * da).sum(-1, keepdim=True))

    def through_norm(d: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
        return (d + unit.abs() * (d * unit.abs()).sum(-1, keepdim=True)) / rows.double().norm(dim=-1, keepdim=True)

    choice = F.one_hot(truth[1], count).double() if hard else a
    magnitudes = (
        through_norm(dl @ unit_s.abs() / 0.4, unit_x, x),
        through_norm(dl.T @ unit_x.abs() / 0.4, unit_s, s) + choice.T @ do,
        (dl * (unit_x.abs() @ unit_s.abs().T)).sum() / 0.4**2,
    )
    for name, expected, magnitude, of, actual in zip(
        ("x", "entities", "tau"), truths, magnitudes, lows, found, strict=True
    ):
        terms = testing.gamma(3 * (depth + count) + m * count, f32)
        inner = (4 * error + (low_u if name != "tau" else 0.0) + terms) * magnitude
        band = inner + testing.store_band(expected, inner, 1, of.dtype)
        Bounded(expected, band, of).hold(actual, f"gradient of {name}")


@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
@without_cuda
def test_the_noise_of_a_seed_value_by_value(impl: str, seed: int) -> None:
    """Rows of zeros have no cosine, and one-hot entities show the softmax: g = log(output) + log-normalizer."""
    m, count = 33, 61
    truth = cosine_gumbel_assign.gumbel_noise(torch.tensor(seed), m, count, torch.float64)
    args = (torch.zeros(m, count), torch.eye(count), torch.tensor(1.0), None, torch.tensor(seed))
    output, index, normalizer = run(impl, "gumbel_assignment", *args, False)
    assert torch.equal(index, truth.argmax(-1))
    noise = output.double().log() + normalizer.double()[:, None]
    # The noise within 2.1 float32 epsilons of max(1, |g|); an exponential, a quotient, a sum of K, a logarithm.
    band = 5 * testing.roundoff(f32) * truth.abs().clamp(min=1) + 2 * testing.gamma(count + 8, f32)
    band = band + 2 * testing.roundoff(f32) * normalizer.double().abs()[:, None]
    testing.assert_error_band(noise, truth, band, name=f"noise of seed {seed}")
