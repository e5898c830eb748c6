"""The CPU kernel of proportional attention: its blocks and paddings, and the calls that PyTorch's kernel gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alt_kernels import testing
from alt_kernels.reference import proportional_attention as reference

from .test_proportional_attention import check, draw, truth_of

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    pytest.mark.skipif(testing.unavailable("cpp") is not None, reason=str(testing.unavailable("cpp"))),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OP = torch.ops.alt_kernels.proportional_attention


def calls_pytorch(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        OP(q, k, v, size, 0.2)
    return any("flash_attention_for_cpu" in event.key for event in profile.key_averages())


# Queries: off and on blocks of 6 and 8. Keys: off and on vectors of 8 and 16 and panels of 2 and 3 of them, odd and
# even (bfloat16 takes pairs). Depths: every number of vectors and so every grouping of them.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "depth"),
    [
        (1, 1, 16),
        (8, 2, 32),
        (9, 15, 48),
        (7, 16, 64),
        (12, 17, 80),
        (5, 31, 96),
        (16, 33, 112),
        (17, 48, 128),
        (6, 49, 64),
        (3, 64, 32),
        (23, 65, 80),
        (2, 81, 48),
        (24, 97, 64),
        (25, 197, 64),
        (8, 257, 96),
        (4, 1025, 128),
    ],
)
def test_blocks_and_paddings(dtype: torch.dtype, queries: int, keys: int, depth: int) -> None:
    """Output and gradients against float64; the log-sum-exp against the definition's."""
    q, k, v = draw(dtype, 2, 2, queries, keys, depth)
    size = testing.random_size(2, keys, seed=keys)
    size[1, keys // 2] = 0
    check(q, k, v, size, "cpp")
    check(q, k, v, None, "cpp")
    found, expected = OP(q, k, v, size, 0.1)[1], reference.proportional_attention(q, k, v, size, 0.1)[1]
    if keys == 1:  # the only key of the second image is masked
        expected[1] = 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4 if dtype == torch.bfloat16 else 1e-5)


def skip_where_pytorch_runs(*qkv: torch.Tensor) -> None:
    """For what only our kernel promises: PyTorch's drops NaN among few keys."""
    if calls_pytorch(*qkv):
        pytest.skip("PyTorch's kernel runs on this processor")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_which_calls_it_takes(dtype: torch.dtype) -> None:
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    for depth, keys in ((16, 5), (64, 197), (128, 4096)):
        assert calls_pytorch(*draw(dtype, 1, 1, 2, keys, depth)) != capable
    for depth, keys in ((8, 5), (24, 5), (144, 5), (64, 4097)):
        assert calls_pytorch(*draw(dtype, 1, 1, 2, keys, depth))
    assert calls_pytorch(*draw(torch.float64, 1, 1, 2, 5, 64))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(("depth", "keys"), [(24, 19), (144, 19), (64, 4097)])
def test_the_calls_it_leaves(dtype: torch.dtype, depth: int, keys: int) -> None:
    check(*draw(dtype, 2, 2, 9, keys, depth), testing.random_size(2, keys, seed=depth), "cpp")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [24, 64])
def test_heads_lie_beside_one_another(dtype: torch.dtype, depth: int) -> None:
    """Whatever the strides of q and whoever computes: joining the heads is a view."""
    shapes = ((2, 3, 5, 7), (1, 3, 5, 7), (2, 1, 5, 7), (2, 3, 1, 1), (2, 3, 5, 0), (0, 3, 5, 7))
    for batch, heads, queries, keys in shapes:
        q, k, v = draw(dtype, batch, heads, queries, keys, depth)
        for view in (q, q.transpose(1, 2).contiguous().transpose(1, 2), testing.spread(q), q.mT.contiguous().mT):
            out, logsumexp = OP(view, k, v, None, 0.1)
            assert out.transpose(1, 2).is_contiguous()
            assert logsumexp.transpose(1, 2).is_contiguous()
            assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 3)])
def test_bit_equal_for_every_number_of_threads(
    dtype: torch.dtype, batch: int, heads: int, threads: Callable[[int], None]
) -> None:
    """One head is shared out by its queries."""
    q, k, v = draw(dtype, batch, heads, 101, 83, 64)
    size = testing.random_size(batch, 83, seed=1)
    threads(1)
    alone = OP(q, k, v, size, 0.125)
    threads(2)
    for left, right in zip(OP(q, k, v, size, 0.125), alone, strict=True):
        testing.assert_same_bits(left, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_block(dtype: torch.dtype) -> None:
    q, k, v = draw(dtype, 1, 2, 19, 53, 64)
    skip_where_pytorch_runs(q, k, v)
    together = OP(q, k, v, None, 0.125)
    for row in (0, 7, 8, 18):
        alone = OP(q[:, :, row : row + 1], k, v, None, 0.125)
        for left, right in zip(alone, together, strict=True):
            testing.assert_same_bits(left, right[:, :, row : row + 1].clone())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", [16, 17, 31])
def test_numbers_that_are_not_finite(dtype: torch.dtype, keys: int) -> None:
    """NaN and infinities spread as by the formula, also next to keys that only pad a vector."""
    q, k, v = draw(dtype, 6, 1, 9, keys, 32)
    k = k.abs() + 0.5
    q[0, 0, 3, 5] = torch.nan
    k[1, 0, keys - 1, 0] = torch.nan
    v[2, 0, 4, 1] = torch.nan
    q[3, 0, 8, 7] = -torch.inf  # every score is -inf: no key is left
    q[4, 0, 0, 7] = torch.inf
    v[5, 0, 0, 2] = torch.inf
    skip_where_pytorch_runs(q, k, v)
    size = testing.random_size(6, keys, seed=keys)
    out, _ = OP(q, k, v, size, 0.1)
    expected, _ = reference.proportional_attention(q, k, v, size, 0.1)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert 0 < (~finite).sum() < finite.numel() / 2
    torch.testing.assert_close(out[finite], expected[finite], rtol=2e-2, atol=2e-2)
    assert not out[3, 0, 8].any()


@pytest.mark.parametrize("depth", [16, 48, 64, 80])
def test_it_leaves_the_tiles_of_other_products_alone(depth: int, threads: Callable[[int], None]) -> None:
    """With AMX, products of PyTorch and ours set the same registers in turn, in every thread."""
    threads(2)
    q, k, v = draw(torch.bfloat16, 2, 6, 67, 67, depth)
    left, right = draw(torch.bfloat16, 1, 2, 160, 96, 96)[:2]
    size = testing.random_size(2, 67, seed=3)
    product, (out, lse) = left @ right.mT, OP(q, k, v, size, 0.125)
    for _ in range(3):
        testing.assert_same_bits(left @ right.mT, product)
        again = OP(q, k, v, size, 0.125)
        testing.assert_same_bits(again[0], out)
        testing.assert_same_bits(again[1], lse)
        torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_bad_calls_of_the_op_itself() -> None:
    """The public function refuses them before; here they would read other memory."""
    q, k, v = draw(torch.float32, 2, 3, 4, 5, 16)
    size = torch.ones(2, 5)
    for arguments, sentence in (
        ((q[0], k, v, size), "q: expected 4 dimensions, got 3"),
        ((q, k[:, :1], v, size), r"k: expected shape \[2, 3, 5, 16\], got \[2, 1, 5, 16\]"),
        ((q, k, v[:, :, :4], size), r"v: expected shape \[2, 3, 5, 16\], got \[2, 3, 4, 16\]"),
        ((q, k, v.double(), size), "v: expected Float, got Double"),
        ((q, k, v, size[:1]), r"size: expected shape \[2, 5\], got \[1, 5\]"),
        ((q, k, v, size.double()), "size: expected Float, got Double"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=sentence):
            OP(*arguments, 0.25)


SCRIPT = """
import sys, torch, alt_kernels
for name, (q, k, v, size) in torch.load(sys.argv[1]).items():
    print(name, flush=True)
    torch.save(torch.ops.alt_kernels.proportional_attention(q, k, v, size, 0.125), sys.argv[1] + name)
"""


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_other_instruction_sets(capability: str, tmp_path: object) -> None:
    """In a process of its own: the kernels for processors without AVX-512, and none without AVX2."""
    cases = {}
    for dtype in DTYPES:
        for keys, depth in ((31, 80), (97, 64)):
            q, k, v = draw(dtype, 2, 2, 13, keys, depth)
            cases[f"{dtype}-{keys}"] = (q, k, v, testing.random_size(2, keys, seed=keys))
    path = f"{tmp_path}/cases."
    torch.save(cases, path)
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, (q, k, v, size) in cases.items():
        out, logsumexp = torch.load(path + name)
        truth = truth_of(q, k, v, size, 0.125, q)
        testing.assert_error_band(out, truth.out, truth.out_band, name=name)
        expected = reference.proportional_attention(q, k, v, size, 0.125)[1]
        torch.testing.assert_close(logsumexp, expected, rtol=1e-5, atol=1e-4)
    assert len(done.stdout.split()) == len(cases)
