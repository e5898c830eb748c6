"""The noise of the assignment: Philox's published vectors, the law, and what it may depend on.

The noise itself is not an output, so it is read off the log-normalizer: with one channel, x = 1, an entity of +1
and all others of -1, the logits are 32 + g and -32 + g', whose log-sum-exp is 32 + g to the last bit of a double.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from alt_kernels import cosine_gumbel_assign, testing
from alt_kernels.reference.cosine_gumbel_assign import gumbel_noise, philox4x32

_PEAK = 32.0

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> tuple[int, ...]:
    return tuple(int(w, 16) for w in text.split())


def _philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """The generator in Python's unbounded integers, written apart from the reference."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def _law(seed: int, row: int, column: int) -> float:
    """The noise of one element from its definition."""
    seed %= 2**64
    word = _philox((column // 4, row % 2**32, row >> 32, 0), (seed % 2**32, seed >> 32))[column % 4]
    u = min((word + 0.5) * 2.0**-32, 1.0 - 2.0**-24)
    return -math.log(-math.log1p(-u))


def _drawn(
    seed: int, rows: int, count: int, columns: Sequence[int], impl: str, dtype: torch.dtype = torch.float64
) -> Tensor:
    """``[rows, len(columns)]``: the noise an implementation draws in these columns of a problem of ``count``."""
    x = torch.ones(rows, 1, dtype=dtype)
    noise = []
    for column in columns:
        entities = -torch.ones(count, 1, dtype=dtype)
        entities[column] = 1
        result = cosine_gumbel_assign(x, entities, tau=1 / _PEAK, seed=torch.tensor(seed), impl=impl)
        noise.append(result.log_normalizer - _PEAK)
    return torch.stack(noise, 1)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    assert _philox(_words(counter), _words(key)) == _words(expected)
    c, k = ([torch.tensor(w) for w in _words(t)] for t in (counter, key))
    assert tuple(int(w) for w in philox4x32(tuple(c), tuple(k))) == _words(expected)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 + 5, -(2**63), 2**63 - 1])
def test_noise_is_its_definition(seed: int, impl: str) -> None:
    """Element by element, for seeds that use both halves of the key."""
    drawn = _drawn(seed, 5, 11, range(11), impl)
    expected = torch.tensor([[_law(seed, r, c) for c in range(11)] for r in range(5)], dtype=torch.float64)
    # Adding 32 rounds to 2^-48; the noise of a double is a few units in the last place besides.
    assert (drawn - expected).abs().max() < 1e-13
    assert (gumbel_noise(torch.tensor(seed), 5, 11, torch.float64) - expected).abs().max() < 1e-14


def test_noise_in_float32(impl: str) -> None:
    """Within the spacing of float32 at 32 and a few roundings of g (|g| < 23) itself."""
    columns = range(48)
    drawn = _drawn(7, 40, 48, columns, impl, torch.float32)
    expected = gumbel_noise(torch.tensor(7), 40, 48, torch.float64)
    band = 2 * 2.0**-18 / 2 + 8 * testing.roundoff(torch.float32) * expected.abs().max()
    testing.assert_error_band(drawn, expected, band, name="noise")


def test_noise_does_not_depend_on_the_problem(impl: str) -> None:
    """The element (row, column) is the same bit for bit in a small problem and in one of many tiles."""
    columns = [0, 1, 2, 3, 4, 36]
    small = _drawn(3, 7, 37, columns, impl)
    assert torch.equal(small, _drawn(3, 300, 37, columns, impl)[:7])
    assert torch.equal(small, _drawn(3, 7, 2500, columns, impl))
    wide = [1023, 1024, 2047, 2048, 2499]
    drawn = _drawn(3, 300, 2500, wide, impl)
    expected = gumbel_noise(torch.tensor(3), 300, 2500, torch.float64)[:, wide]
    assert (drawn - expected).abs().max() < 1e-13
    # Leading dimensions are rows counted through.
    x = torch.randn(3, 4, 5, 6)
    entities = torch.randn(9, 6)
    folded = cosine_gumbel_assign(x, entities, seed=torch.tensor(3), impl=impl)
    flat = cosine_gumbel_assign(x.reshape(60, 6), entities, seed=torch.tensor(3), impl=impl)
    assert torch.equal(folded.log_normalizer.reshape(60), flat.log_normalizer)


def test_noise_does_not_depend_on_threads(impl: str, threads: object) -> None:
    x, entities = torch.randn(300, 32), torch.randn(500, 32)
    results = []
    for count in (1, 2):
        threads(count)  # type: ignore[operator]
        results.append(cosine_gumbel_assign(x, entities, seed=torch.tensor(1), impl=impl))
    assert torch.equal(results[0].index, results[1].index)
    bound = 64 * testing.roundoff(torch.float32) * results[0].log_normalizer.abs().max()
    assert (results[0].log_normalizer - results[1].log_normalizer).abs().max() < bound


def test_moments_and_kolmogorov_smirnov() -> None:
    """Mean Euler's constant, variance pi^2 / 6, skewness 1.1395; distance to exp(-exp(-g)) at the 0.1 % level."""
    g = gumbel_noise(torch.tensor(11), 500, 400, torch.float64).flatten()
    n, deviation = len(g), math.pi / math.sqrt(6)
    assert abs(g.mean() - 0.5772156649) < 4 * deviation / math.sqrt(n)
    # The kurtosis of the law is 5.4, so the variance of a sample variance is 4.4 sigma^4 / n.
    assert abs(g.var() - deviation**2) < 4 * math.sqrt(4.4 / n) * deviation**2
    assert abs(((g - g.mean()) / g.std()).pow(3).mean() - 1.1395470994) < 0.05
    law = (-(-g.sort().values).exp()).exp()
    step = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((step[1:] - law).max(), (law - step[:-1]).max())
    assert distance * math.sqrt(n) < 1.95
    assert g.min() > -2.82
    assert g.max() < 22.9


def test_the_upper_tail_is_there() -> None:
    """P(g > 8) = 3.35e-4: two million draws see it, whatever float32 does near u = 1."""
    g = gumbel_noise(torch.tensor(5), 2000, 1000, torch.float32)
    expected = g.numel() * -math.expm1(-math.exp(-8.0))
    assert abs(int((g > 8).sum()) - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("seed", [0, 12345])
def test_picks_follow_the_gumbel_law(seed: int, impl: str) -> None:
    """P(index = k) = softmax(cos / tau), by chi-square over 24,000 rows."""
    x = torch.randn(8).repeat(24_000, 1)
    entities = torch.randn(10, 8)
    tau = 0.5
    index = cosine_gumbel_assign(x, entities, tau=tau, seed=torch.tensor(seed), impl=impl).index
    cosine = torch.nn.functional.cosine_similarity(x[:1].double(), entities.double())
    law = (cosine / tau).softmax(0)
    assert law.max() > 3 * law.min(), "the law must differ from the uniform one"
    assert testing.chi_square(index.bincount(minlength=10), law) > 1e-3


def test_picks_of_neighbours_are_independent(impl: str) -> None:
    """Rows, columns of one Philox call, and consecutive seeds: the joint law is the product."""
    zero, entities = torch.zeros(20_001, 2), torch.randn(4, 2)
    index = cosine_gumbel_assign(zero, entities, seed=torch.tensor(9), impl=impl).index
    uniform = torch.full((16,), 1 / 16)
    assert testing.chi_square((4 * index[:-1] + index[1:]).bincount(minlength=16), uniform) > 1e-3
    other = cosine_gumbel_assign(zero, entities, seed=torch.tensor(10), impl=impl).index
    assert testing.chi_square((4 * index + other).bincount(minlength=16), uniform) > 1e-3
    first = [int(cosine_gumbel_assign(zero[:1], entities, seed=torch.tensor(s), impl=impl).index) for s in range(600)]
    assert testing.chi_square(torch.tensor(first).bincount(minlength=4), uniform[:4] * 4) > 1e-3
