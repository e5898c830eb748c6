"""Proportional attention in Triton: both launchers against float64 with the bands of the contract's own tests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alt_kernels import testing
from alt_kernels.reference import proportional_attention as reference
from alt_kernels.triton import attention_tiles, launch_configs
from alt_kernels.triton import proportional_attention as forward
from alt_kernels.triton import proportional_attention_backward as backward
from tools import aot

from ..ops.test_proportional_attention import truth_of

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2"),  # numpy's word for a masked key
]

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALF)
Heads = tuple[Tensor, Tensor, Tensor]


def draw(device: torch.device, dtype: torch.dtype, queries: int, keys: int, depth: int, batch: int = 2) -> Heads:
    """q, k, v of two heads each."""
    q = torch.randn(batch, 2, queries, depth).to(device, dtype)
    k, v = (torch.randn(batch, 2, keys, depth).to(device, dtype) for _ in range(2))
    return q, k, v


def run(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float, grad: Tensor) -> list[Tensor]:
    """out, logsumexp, dq, dk, dv."""
    out, lse = forward.proportional_attention(q, k, v, size, scale)
    return [out, lse, *backward.proportional_attention_backward(grad, q, k, v, size, out, lse, scale)]


def check(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float | None = None) -> list[Tensor]:
    """Hold every result of both launchers against float64."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grad = torch.randn(q.shape).to(q)
    results = run(q, k, v, size, scale, grad)
    out, lse, *grads = (t.cpu() for t in results)
    q, k, v, grad = (t.cpu() for t in (q, k, v, grad))
    size = None if size is None else size.cpu()
    truth = truth_of(q, k, v, size, scale, grad)
    testing.assert_error_band(out, truth.out, truth.out_band, name="out")
    for name, found, expected, band in zip("qkv", grads, truth.grads, truth.grad_bands, strict=True):
        assert found.dtype == q.dtype
        testing.assert_error_band(found, expected, band, name=f"gradient of {name}")
    exact = reference.proportional_attention(q.double(), k.double(), v.double(), size, scale)[1]
    # A log-sum-exp errs by no more than its worst logit, a product of D terms and a bias, and its own rounding.
    bias = 0.0 if size is None else size.double().log().nan_to_num(neginf=0.0).abs().max()
    worst = (q.double().abs() @ k.double().abs().transpose(-1, -2)).amax(-1) * abs(scale) + bias
    band = testing.gamma(q.shape[-1] + k.shape[2] + 8, torch.float32) * (1 + worst) + 2**-22 * exact.abs()
    keyless = exact == -torch.inf
    assert torch.equal(lse == -torch.inf, keyless), "logsumexp: -inf where no key is left, and only there"
    testing.assert_error_band(
        lse.masked_fill(keyless, 0), exact.masked_fill(keyless, 0), band.nan_to_num(), name="logsumexp"
    )
    assert lse.dtype == torch.float32
    return results


# What reaches which kernel with the default configurations is said beside the sizes.
CASES = [
    (1, 1, 64, torch.float32),
    (17, 17, 32, torch.float16),  # resident, one tile; whole head
    (64, 64, 64, torch.bfloat16),
    (40, 101, 64, torch.float16),  # M != N, one tile of 128
    (150, 150, 32, torch.bfloat16),  # resident, two tiles of 128 and 64; two kernels backward
    (197, 197, 64, torch.bfloat16),
    (256, 256, 64, torch.float16),
    (70, 197, 80, torch.bfloat16),  # padded width, online
    (33, 90, 80, torch.float16),  # padded width, resident
    (9, 65, 96, torch.float32),
    (3, 257, 64, torch.float16),  # online, one key in the last tile
    (257, 130, 64, torch.float32),
    (400, 400, 32, torch.bfloat16),
    (20, 400, 128, torch.float16),
    (20, 40, 160, torch.bfloat16),
]


@pytest.mark.parametrize("sized", [True, False], ids=["sizes", "none"])
@pytest.mark.parametrize(("queries", "keys", "depth", "dtype"), CASES)
def test_equal_to_the_formula(
    device: torch.device, queries: int, keys: int, depth: int, dtype: torch.dtype, sized: bool
) -> None:
    size = testing.random_size(1, keys, seed=keys, high=60).to(device) if sized else None
    check(*draw(device, dtype, queries, keys, depth, batch=1), size)


@pytest.mark.parametrize("keys", [40, 150, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_keys(device: torch.device, dtype: torch.dtype, keys: int) -> None:
    """A size of 0 masks a key: nothing flows to it. Without any key left all is zero, and nothing is NaN."""
    q, k, v = draw(device, dtype, 20, keys, 32)
    size = torch.randint(0, 3, (2, keys)).float().to(device)
    size[0], size[0, -1] = 0, 2  # only the last key is left, which is in the last tile
    if keys == 150:
        size[1] = 0
    out, lse, dq, dk, dv = check(q, k, v, size)
    assert torch.equal(out[0], v[0, :, -1:].expand_as(out[0])), "one key is copied"
    masked = (size == 0)[:, None, :, None]
    assert not dk[masked.expand_as(dk)].any()
    assert not dv[masked.expand_as(dv)].any()
    if keys == 150:
        assert not out[1].any()
        assert not dq[1].any()
        assert (lse[1] == -torch.inf).all()


@pytest.mark.parametrize("keys", [60, 150])
def test_whole_sizes_are_repeated_keys(device: torch.device, keys: int) -> None:
    """Plain attention over repeated keys gives the same results; what a key gets is the sum over its copies.

    Both runs are within the float64 bands of the same formula, so the distance is twice the band.
    """
    q, k, v = draw(device, torch.float32, 30, keys, 32, batch=1)
    times = torch.randint(0, 5, (keys,))
    owner = torch.repeat_interleave(torch.arange(keys), times).to(device)
    grad, size = torch.randn(q.shape).to(device), times[None].float().to(device)
    sized = run(q, k, v, size, 0.2, grad)
    copied = run(q, k[:, :, owner], v[:, :, owner], None, 0.2, grad)
    folded = [t.new_zeros(k.shape).index_add_(2, owner, t) for t in copied[3:]]
    truth = truth_of(q.cpu(), k.cpu(), v.cpu(), size.cpu(), 0.2, grad.cpu())
    pairs = zip((sized[0], *sized[2:]), (copied[0], copied[2], *folded), strict=True)
    for (left, right), band in zip(pairs, (truth.out_band, *truth.grad_bands), strict=True):
        testing.assert_error_band(left.cpu(), right.double().cpu(), 2 * band)


@pytest.mark.parametrize(
    ("scale", "shift"), [(-0.3, 0.0), (0.0, 0.0), (8.0, 0.0), (0.125, 100.0)], ids=["negative", "zero", "hot", "far"]
)
@pytest.mark.parametrize("keys", [70, 300])
def test_any_scale(device: torch.device, keys: int, scale: float, shift: float) -> None:
    """Logits far from zero on either side, where exp without the row's peak would be 0 or inf."""
    q, k, v = draw(device, torch.float32, 20, keys, 32, batch=1)
    q[..., 0] = 30.0
    k[..., 0] -= shift
    check(q, k, v, testing.random_size(1, keys, seed=1).to(device), scale)


@pytest.mark.parametrize("keys", [60, 150])
def test_sizes_beyond_half_precision(device: torch.device, keys: int) -> None:
    """A size that float16 cannot hold never leaves float32: the rows past the last query would turn it into inf * 0."""
    q, k, v = draw(device, torch.float16, 20, keys, 32, batch=1)
    check(q, k, v, testing.random_size(1, keys, seed=2).to(device) * 2.0**20)


@pytest.mark.parametrize("keys", [50, 140, 260])
def test_strides_and_layout(device: torch.device, keys: int) -> None:
    """Views of a packed QKV, a transposed depth, sizes with a step and an expanded gradient: the bits of plain copies.

    Every result of ``[B, H, N, D]`` lies as ``[B, N, H, D]``.
    """
    qkv = torch.randn(2, keys, 3, 2, 32).to(device, torch.float16)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    turned = v.transpose(-1, -2).contiguous().transpose(-1, -2)
    size = testing.random_size(2, 2 * keys, seed=0).to(device)[:, ::2]
    grad = torch.randn(2, 1, 1, 1).to(device, torch.float16).expand(q.shape)
    strided = run(q, k, turned, size, 0.125, grad)
    assert not q.is_contiguous()
    plain = run(*(t.contiguous() for t in (q, k, v, size)), 0.125, grad.contiguous())
    for one, two in zip(strided, plain, strict=True):
        testing.assert_same_bits(one, two)
    for result in (strided[0], *strided[2:]):
        assert result.stride() == (keys * 2 * 32, 32, 2 * 32, 1)
        assert not result.isnan().any()
    assert strided[1].is_contiguous()


@pytest.mark.parametrize("keys", [30, 190, 300])
def test_same_bits_every_time(device: torch.device, keys: int) -> None:
    """Twice the same, one head alone the same as among others, and a size of 1 the same as none."""
    q, k, v = draw(device, torch.float16, 70, keys, 64)
    grad, ones = torch.randn(q.shape).to(q), torch.ones(2, keys, device=device)
    first = run(q, k, v, None, 0.125, grad)
    again = run(q, k, v, ones, 0.125, grad)
    alone = run(*(t[1:, 1:] for t in (q, k, v)), None, 0.125, grad[1:, 1:])
    for one, two, three in zip(first, again, alone, strict=True):
        testing.assert_same_bits(one, two)
        testing.assert_same_bits(one[1:, 1:], three)


@pytest.mark.parametrize("programs", [1, 3])
def test_programs_that_share_a_head(device: torch.device, monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    """However many programs share the queries of a head: each row comes out once, with the same bits."""
    q, k, v = draw(device, torch.float16, 300, 60, 32, batch=1)
    grad = torch.randn(q.shape).to(q)
    free = run(q, k, v, None, 0.2, grad)
    monkeypatch.setattr(forward, "PROGRAMS", programs)
    for one, two in zip(free, run(q, k, v, None, 0.2, grad), strict=True):
        testing.assert_same_bits(one, two)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_whole_head_and_two_kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """A tuner may choose either form of the backward, and either softmax, at any number of keys up to 256."""
    q, k, v = draw(device, dtype, 75, 100, 64, batch=1)
    size = testing.random_size(1, 100, seed=3).to(device)
    chosen = launch_configs.config

    def other(stem: str, **sizes: int) -> dict[str, int]:
        use = chosen(stem, **sizes)
        if stem == forward.STEM:
            assert use["resident"]
            return use | {"resident": 0, "cols": 32, "max_registers": 0}
        assert use["whole_head"]
        two = {f"{side}_{name}": value for side in ("query", "key") for name, value in tile.items()}
        return use | {"whole_head": 0} | two

    tile = {"rows": 16, "cols": 32, "num_warps": 4, "num_stages": 1}
    check(q, k, v, size)
    monkeypatch.setattr(forward, "config", other)
    monkeypatch.setattr(backward, "config", other)
    check(q, k, v, size)


# What sm_90 has of its own: three tiles of keys, a softmax in two passes, one program for 256 keys backward.
@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_configs, "device_name", lambda: "any, sm_90")


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("keys", [1, 16, 17, 129, 192, 193, 208, 209, 256, 257, 272, 273])
def test_tiles_of_keys(device: torch.device, keys: int) -> None:
    """On either side of every tile's edge, a third of the keys masked; the last key is there."""
    size = torch.randint(0, 3, (1, keys)).float().to(device)
    size[0, -1] = 3
    check(*draw(device, torch.float16, 5, keys, 64, batch=1), size)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_whole_image(device: torch.device, dtype: torch.dtype) -> None:
    """197 tokens: four tiles of queries forward, seven backward, the last ones with five rows."""
    check(*draw(device, dtype, 197, 197, 64, batch=1), testing.random_size(1, 197, seed=4).to(device))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("masked", [range(0, 128), range(128, 197), range(197)], ids=["first", "rest", "all"])
def test_a_pass_without_keys(device: torch.device, masked: range) -> None:
    """Either pass of the softmax may find nothing but masked keys, or both: no NaN comes of it."""
    q, k, v = draw(device, torch.bfloat16, 9, 197, 64, batch=1)
    size = torch.ones(1, 197, device=device)
    size[:, list(masked)] = 0
    out, lse, *grads = check(q, k, v, size)
    assert not any(t.isnan().any() for t in (out, *grads))
    if len(masked) == 197:
        assert not any(t.any() for t in (out, *grads))
        assert (lse == -torch.inf).all()


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("keys", [150, 197, 260])
def test_layouts_agree(device: torch.device, monkeypatch: pytest.MonkeyPatch, keys: int) -> None:
    """One pass or two, tiles in any number, sizes of 1 or none: all within the same bands; the last pair to the bit."""
    q, k, v = draw(device, torch.float16, 20, keys, 64, batch=1)
    grad, ones = torch.randn(q.shape).to(q), torch.ones(1, keys, device=device)
    for one, two in zip(run(q, k, v, None, 0.125, grad), run(q, k, v, ones, 0.125, grad), strict=True):
        testing.assert_same_bits(one, two)
    chosen = launch_configs.config

    def single(stem: str, **sizes: int) -> dict[str, int]:
        use = chosen(stem, **sizes)
        return use | ({"passes": 1} if stem == forward.STEM else {})

    monkeypatch.setattr(forward, "config", single)
    check(q, k, v, testing.random_size(1, keys, seed=5).to(device))


def test_key_tiles() -> None:
    """Only the tiles that some key reaches; none where the keys do not fit, or are to stream by."""
    use = {"resident": 1, "cols": 128, "more_cols": 64, "last_cols": 16}
    found = {keys: forward.key_tiles(use, keys) for keys in (1, 128, 129, 192, 193, 208, 209)}
    assert found == {
        1: (128,), 128: (128,), 129: (128, 64), 192: (128, 64), 193: (128, 64, 16), 208: (128, 64, 16), 209: (),
    }  # fmt: skip
    assert forward.key_tiles(use | {"resident": 0}, 1) == ()
    assert [forward.bucket(keys) for keys in (1, 65, 129, 197, 209, 257, 273)] == [64, 128, 160, 208, 256, 272, 512]


def test_rows_far_apart_are_copied() -> None:
    """Offsets inside a tile are 32 bits: rows so far apart that they would not hold them are brought together."""
    near = torch.zeros(1, 1, 4, 16)
    far = torch.empty(2 * attention_tiles.STRIDE_LIMIT, device="meta")
    far = far.as_strided((1, 1, 2, 16), (0, 0, attention_tiles.STRIDE_LIMIT, 1))
    assert attention_tiles.unit_stride_rows(near) is near
    assert attention_tiles.unit_stride_rows(far).stride(-2) == 16


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]
)
def test_empty(device: torch.device, batch: int, heads: int, queries: int, keys: int) -> None:
    """Sums over nothing are zero; no kernel starts."""
    q = torch.randn(batch, heads, queries, 16, device=device)
    k, v = (torch.randn(batch, heads, keys, 16, device=device) for _ in range(2))
    size = torch.ones(batch, keys, device=device)
    out, lse, *grads = run(q, k, v, size, 0.25, torch.randn_like(q))
    assert out.shape == q.shape
    assert lse.shape == q.shape[:-1]
    for found, like in zip(grads, (q, k, v), strict=True):
        assert found.shape == like.shape
    assert not any(t.any() for t in (out, *grads))
    assert (lse == -torch.inf).all()


def test_refused(device: torch.device) -> None:
    double = torch.zeros(1, 1, 2, 16, dtype=torch.float64, device=device)
    wide = torch.zeros(1, 1, 2, 257, device=device)
    lse = torch.zeros(1, 1, 2, device=device)
    for x, error, match in (
        (double, TypeError, "float64"),
        (wide, ValueError, "head dimension of at most 256 .* got 257"),
    ):
        with pytest.raises(error, match=match):
            forward.proportional_attention(x, x, x, None, 1.0)
        with pytest.raises(error, match=match):
            backward.proportional_attention_backward(x, x, x, x, None, x, lse, 1.0)


def test_configurations() -> None:
    """Every entry holds the keys of its bucket where it says so, and every kernel is compiled ahead of time."""
    for entries in launch_configs.load(forward.STEM).values():
        for when, use in (entry.values() for entry in entries):
            assert not use["resident"] or sum(forward.key_tiles(use, when["keys"])) >= when["keys"]
    for entries in launch_configs.load(backward.STEM).values():
        for when, use in (entry.values() for entry in entries):
            assert not use["whole_head"] or use["key_cols"] >= when["keys"]
    cases = aot.cases(forward.STEM) + aot.cases(backward.STEM)
    assert {case.kernel for case in cases} == {
        forward._forward_resident, forward._forward_online, backward._backward_queries, backward._backward_keys,
    }  # fmt: skip
    for case in cases:
        assert set(case.kernel.arg_names) == set(case.signature) | set(case.constants), case.name
    assert math.isclose(forward.LOG2_E * forward.LN_2.value, 1.0)
