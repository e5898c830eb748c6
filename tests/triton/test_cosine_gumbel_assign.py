"""The Triton kernels of cosine-Gumbel assignment against the float64 reference: same noise tensor, same seed, none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from alt_kernels import testing
from alt_kernels.reference import cosine_gumbel_assign as reference
from alt_kernels.triton import cosine_gumbel_assign as forward_module
from alt_kernels.triton import cosine_gumbel_assign_backward as backward_module
from alt_kernels.triton import cosine_gumbel_assign_shared as shared
from alt_kernels.triton import launch_configs, philox
from alt_kernels.triton.cosine_gumbel_assign import gumbel_assignment
from alt_kernels.triton.cosine_gumbel_assign_backward import gumbel_assignment_backward
from alt_kernels.triton.philox import gumbel_of_words, gumbel_tile, tile_columns

from .conftest import DEVICE

# Tiles the interpreter runs fast, by branch: the row in one piece, or in several; one program or several on a row.
WHOLE = {"BM": 128, "BK": 128, "BD": 64, "DV": 64, "programs": 1}
PIECES = {"BM": 128, "BK": 64, "BD": 32, "DV": 32, "programs": 1}
SPLIT = {"BM": 64, "BK": 64, "BD": 64, "DV": 64, "programs": 8}
SPLIT_PIECES = {"BM": 32, "BK": 64, "BD": 32, "DV": 32, "programs": 8}
WAVES = {"BM": 16, "BK": 32, "BD": 64, "DV": 32, "programs": 6}  # full waves, and fewer tiles that are split
BRANCHES = {"whole": WHOLE, "pieces": PIECES, "split": SPLIT, "split-pieces": SPLIT_PIECES, "waves": WAVES}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SEED = -(2**62) - 12345678901


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    """Sets the tiles of every kernel of the op."""

    def use(chosen: dict[str, int]) -> None:
        def configuration(stem: str, prefix: str, depth: int, dtype: torch.dtype) -> dict[str, int]:
            wanted = {"num_warps": 4, "num_stages": 1} | chosen
            if prefix == "delta":
                del wanted["DV"]
            width = max(16, triton.next_power_of_2(depth))
            return wanted | {name: min(wanted[name], width) for name in ("BD", "DV") if name in wanted}

        monkeypatch.setattr(forward_module, "select_config", configuration)
        monkeypatch.setattr(backward_module, "select_config", configuration)

    return use


@contextmanager
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN, or the largest integer."""
    empty = torch.empty

    def fill(t: Tensor) -> Tensor:
        return t.fill_(torch.nan if t.is_floating_point() else torch.iinfo(t.dtype).max)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *a, **k: fill(empty(*a, **k)))
        patch.setattr(torch, "empty_like", lambda t, **k: fill(empty(t.shape, dtype=t.dtype, device=t.device)))
        patch.setattr(
            Tensor,
            "new_empty",
            lambda self, *shape, dtype=None, device=None: fill(
                empty(*shape, dtype=dtype or self.dtype, device=device or self.device)
            ),
        )
        yield


class Case(NamedTuple):
    x: Tensor
    entities: Tensor
    tau: Tensor
    noise: Tensor | None
    seed: Tensor | None
    grad: Tensor

    def inputs(self) -> tuple[Any, ...]:
        return self[:5]

    def double(self) -> tuple[Any, ...]:
        noise = None if self.noise is None else self.noise.double()
        return self.x.double(), self.entities.double(), self.tau.double(), noise, self.seed


def problem(
    rows: int, count: int, depth: int, dtypes: tuple[torch.dtype, torch.dtype], noise: str, tau: float = 0.4
) -> Case:
    x, entities = torch.randn(rows, depth).to(DEVICE, dtypes[0]), torch.randn(count, depth).to(DEVICE, dtypes[1])
    drawn = reference.gumbel_noise(torch.tensor(1), rows, count).to(DEVICE) if noise == "tensor" else None
    seed = torch.tensor(SEED, device=DEVICE) if noise == "seed" else None
    grad = torch.randn(rows, depth).to(DEVICE, torch.promote_types(*dtypes))
    return Case(x, entities, torch.tensor(tau, device=DEVICE), drawn, seed, grad)


def drawn_band(noise: Any) -> Any:
    """Returns the error bound of noise of this magnitude: philox.py's bound, or the smaller one of exact logarithms."""
    return 6e-7 + 3.6e-7 * noise if philox.HARDWARE.value else 2.4e-7 + 1.5e-7 * noise


def check(c: Case, hard: bool) -> None:
    """Forward and backward inside bands derived from float32 logits and one rounding of each product's operand."""
    rows, (count, depth) = c.x.shape[0], c.entities.shape
    dtype = torch.promote_types(c.x.dtype, c.entities.dtype)
    low = 0.0 if dtype == torch.float32 else testing.roundoff(dtype)
    u = testing.roundoff(torch.float32)
    truth_output, truth_index, truth_normalizer = reference.gumbel_assignment(*c.double(), hard)
    x, s, tau, noise, seed = c.double()
    _, logits, unit_x, unit_s, *_ = reference._logits(x, s, tau, noise, seed)
    # A cosine: d products and two normalisations; a division, a sum, another base; the noise, drawn in float32.
    error = (2 * depth + 8) * u / float(tau) + 3 * u * float(logits.abs().max())
    if seed is not None:
        error += drawn_band(reference.gumbel_noise(seed.cpu(), rows, count, torch.float64).abs().max().item())

    output, index, normalizer = gumbel_assignment(*c.inputs(), hard)
    assert (output.dtype, index.dtype, normalizer.dtype) == (dtype, torch.int64, torch.float32)
    best = logits.topk(min(2, count), -1).values
    assert (best[:, 0] - best[:, -1]).min() > 2 * error or count == 1, "the problem has near-ties"
    assert torch.equal(index, truth_index)
    band = error + testing.gamma(count + 8, torch.float32) + u * truth_normalizer.abs()
    testing.assert_error_band(normalizer, truth_normalizer, band, name="log_normalizer")
    a = logits.softmax(-1)
    if hard:
        testing.assert_same_bits(output, c.entities.to(dtype)[index], name="output")
    else:
        magnitude = a @ s.abs()
        band = (4 * error + low + testing.gamma(count + 8, torch.float32)) * magnitude
        band = band + testing.roundoff(dtype) * (truth_output.abs() + band) + torch.finfo(dtype).smallest_normal
        testing.assert_error_band(output, truth_output, band, name="output")

    grads = gumbel_assignment_backward(c.grad, *c.inputs(), index, normalizer, hard, True)
    truths = reference.gumbel_assignment_backward(
        c.grad.double(), *c.double(), truth_index, truth_normalizer, hard, True
    )
    do = c.grad.double().abs()
    da = do @ s.abs().T
    dl = a * (da + (a * da).sum(-1, keepdim=True))
    dux, dus = dl @ unit_s.abs() / tau, dl.T @ unit_x.abs() / tau
    mag_x = (dux + unit_x.abs() * (dux * unit_x.abs()).sum(-1, keepdim=True)) / x.norm(dim=-1, keepdim=True)
    mag_s = (dus + unit_s.abs() * (dus * unit_s.abs()).sum(-1, keepdim=True)) / s.norm(dim=-1, keepdim=True)
    mag_s = mag_s + (F.one_hot(truth_index, count).double() if hard else a).T @ do
    mag_tau = (dl * (unit_x.abs() @ unit_s.abs().T)).sum() / tau**2
    terms = 3 * (depth + count) + 30
    for name, actual, truth, magnitude, n, leaf, rounded in (
        ("x", grads[0], truths[0], mag_x, terms, c.x, low),
        ("entities", grads[1], truths[1], mag_s, terms + rows, c.entities, low),
        ("tau", grads[2], truths[2], mag_tau, terms + rows * count, c.tau, 0.0),
    ):
        assert actual.dtype == leaf.dtype
        inner = (4 * error + rounded + testing.gamma(n, torch.float32)) * magnitude
        band = inner + testing.roundoff(leaf.dtype) * (truth.abs() + inner) + torch.finfo(leaf.dtype).smallest_normal
        testing.assert_error_band(actual, truth, band, name=f"gradient of {name}")


@triton.jit
def _noise_kernel(seed_ptr, out_ptr, row_ptr, columns, ROWS: tl.constexpr, SIZE: tl.constexpr):
    first = tl.program_id(0) * SIZE
    place = tl.arange(0, ROWS)
    g = gumbel_tile(tl.load(seed_ptr), tl.load(row_ptr + place), first, SIZE)
    tl.store(out_ptr + place[:, None] * columns + (first + tile_columns(SIZE))[None, :], g)


@triton.jit
def _words_kernel(word_ptr, out_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    g = gumbel_of_words(tl.load(word_ptr + place).to(tl.uint32))  # not as an argument, for Triton 3.8's interpreter
    tl.store(out_ptr + place, g)


def test_the_noise_is_that_of_the_law(device: torch.device) -> None:
    """Every element from (seed, row, column), rows beyond 2^32 and negative seeds among them."""
    for seed in (0, SEED, 2**63 - 1):
        rows = torch.tensor([0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**40 + 3])
        key = (torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32 & 0xFFFFFFFF))
        counter = (torch.arange(32)[None], (rows & 0xFFFFFFFF)[:, None], (rows >> 32)[:, None], torch.tensor(0))
        words = torch.stack([w.expand(8, 32) for w in reference.philox4x32(counter, key)], -1).flatten(1)
        u = ((words.double() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24)
        truth = -(-torch.log1p(-u)).log()
        out = torch.full((8, 128), torch.nan, device=device)
        _noise_kernel[(4,)](torch.tensor(seed, device=device), out, rows.to(device), 128, ROWS=8, SIZE=32)
        testing.assert_error_band(out.cpu(), truth, drawn_band(truth.abs()), name="noise")


def test_the_logarithms_hold_over_every_word(device: torch.device) -> None:
    """Small and large words and those around the seams of the piecewise logarithm."""
    seams = [0, 2**31, 2**32, int(2**32 * (1 - 0.5**0.5)), int(2**32 * (1 - np.exp(-(0.5**0.5)))), 2**30, 3 * 2**30]
    words = torch.cat(
        [torch.arange(-600, 600) + s for s in seams] + [2 ** torch.arange(32), torch.randint(2**32, (4000,))]
    )
    words = words.clamp(0, 2**32 - 1)
    words = F.pad(words, (0, 2**14 - len(words)))
    u = ((words.double() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24)
    truth = -(-torch.log1p(-u)).log()
    out = torch.empty(2**14, device=device)
    _words_kernel[(1,)](words.to(device), out, SIZE=2**14)
    testing.assert_error_band(out.cpu(), truth, drawn_band(truth.abs()), name="gumbel")
    assert truth.max() > 22
    assert truth.min() < -2.8


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)], ids=str)
def test_the_bound_holds_for_the_worst_logarithm_documented(signs: tuple[int, int]) -> None:
    """The steps of ``noise_of_words`` in NumPy with lg2.approx off by all that PTX allows, in either direction."""
    single, e = np.float32, 2.0**-24

    def rounded(a: Any, b: Any, c: Any) -> Any:  # a fused step
        return (np.float64(a) * np.float64(b) + np.float64(c)).astype(single)

    def worst(x: Any, sign: int) -> Any:
        exact = np.log2(x.astype(np.float64))
        near = (x > 0.5) & (x < 2)
        return np.where(near, exact + sign * 4 * e, exact * (1 + sign * 4 * e)).astype(single)

    ends = np.arange(20_000, dtype=np.int64)
    words = np.concatenate([ends, 2**31 - ends - 1, 2**31 + ends, 2**32 - 1 - ends, np.arange(0, 2**32, 20_011)])
    words = words.astype(np.uint32)
    signed = words.view(np.int32)
    h = rounded(signed.astype(single), 2.0**-32, 2.0**-33)
    p = np.full_like(h, philox.POLY_8.value)
    for i in range(7, -1, -1):
        p = rounded(p, h, single(getattr(philox, f"POLY_{i}").value))
    high = worst(-np.minimum(h, single(-e)), signs[0])
    noise = worst(-np.where(signed >= 0, (h * p).astype(single), high), signs[1])
    g = (single(philox.SHIFT.value) - noise) * single(philox.NATURAL.value)
    truth = -np.log(-np.log1p(-np.minimum((words + 0.5) * 2.0**-32, 1 - e)))
    assert (np.abs(g - truth) / (10 * e + 6 * e * np.abs(truth))).max() < 1


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("noise", ["tensor", "seed", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(dtype: torch.dtype, noise: str, hard: bool, tiles: Callable[..., None]) -> None:
    """Odd sizes, two tiles of entities, the second with 13 of 128 places taken."""
    tiles(WHOLE)
    check(problem(67, 141, 37, (dtype, dtype), noise), hard)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_every_branch(branch: str, hard: bool, tiles: Callable[..., None]) -> None:
    tiles(BRANCHES[branch])
    check(problem(70, 150, 45, (torch.bfloat16,) * 2, "tensor"), hard)


@pytest.mark.parametrize(
    ("rows", "count", "depth"), [(1, 1, 3), (5, 3, 2), (3, 260, 8), (150, 2, 16)], ids=["one", "tiny", "wide", "tall"]
)
def test_tiny_and_uneven_sizes(rows: int, count: int, depth: int, tiles: Callable[..., None]) -> None:
    tiles(SPLIT)
    for hard in (True, False):
        check(problem(rows, count, depth, (torch.float32,) * 2, "tensor"), hard)


def test_what_autocast_mixes_and_strides(tiles: Callable[..., None], device: torch.device) -> None:
    """bfloat16 rows with float32 entities; transposed inputs and noise."""
    tiles(WHOLE)
    for hard in (True, False):
        check(problem(40, 30, 9, (torch.bfloat16, torch.float32), "tensor"), hard)
    c = problem(40, 30, 9, (torch.float16,) * 2, "tensor")
    assert c.noise is not None
    odd = Case(c.x.t().contiguous().t(), testing.spread(c.entities), c.tau, testing.spread(c.noise), None, c.grad)
    plain, strided = (
        gumbel_assignment(*k.inputs(), False)
        + gumbel_assignment_backward(k.grad, *k.inputs(), *gumbel_assignment(*k.inputs(), True)[1:], True, True)
        for k in (c, odd)
    )
    for a, b in zip(plain, strided, strict=True):
        testing.assert_same_bits(a, b)


def test_tiling_changes_no_choice_and_runs_repeat(tiles: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is the same whatever the tiles; one configuration gives the same bits twice, from any memory."""
    c = problem(60, 130, 33, (torch.bfloat16,) * 2, "seed")
    found = []
    for branch in BRANCHES.values():
        tiles(branch)
        output, index, normalizer = gumbel_assignment(*c.inputs(), True)
        found.append((output, index, normalizer))
        torch.testing.assert_close(normalizer, found[0][2], rtol=0, atol=4e-6)
        testing.assert_same_bits(index, found[0][1])
    for branch, hard in ((WHOLE, True), (SPLIT, False), (SPLIT_PIECES, True)):
        tiles(branch)
        results = []
        for _ in range(2):
            with poisoned(monkeypatch):
                forward = gumbel_assignment(*c.inputs(), hard)
                results.append(forward + gumbel_assignment_backward(c.grad, *c.inputs(), *forward[1:], hard, True))
        for a, b in zip(*results, strict=True):
            assert torch.isfinite(a).all()
            testing.assert_same_bits(a, b)


@pytest.mark.parametrize("branch", ["whole", "split"])
def test_ties_go_to_the_lowest_index(branch: str, tiles: Callable[..., None]) -> None:
    """Exact arithmetic, copies of entities in one tile and in others, zero entities, powers of two far apart."""
    tiles(BRANCHES[branch])
    for dtype in DTYPES:
        x = testing.exact_metric(1, 60, 3, dtype=dtype)[0].to(DEVICE)
        entities = torch.cat([testing.exact_metric(1, 40, 4, zeros=0.1, dtype=dtype)[0]] * 6).to(DEVICE)
        _, index, _ = gumbel_assignment(x, entities, torch.tensor(1.0, device=DEVICE), None, None, True)
        score = F.normalize(x.double(), dim=-1) @ F.normalize(entities.double(), dim=-1).T
        best = score.round(decimals=10)
        lowest = torch.where(best == best.amax(-1, keepdim=True), torch.arange(240, device=DEVICE), 240).amin(-1)
        testing.assert_same_bits(index, lowest)


@pytest.mark.parametrize("tau", [0.4, 0.05])
def test_zero_rows_and_magnitudes(tau: float, tiles: Callable[..., None]) -> None:
    """A zero row has cosine 0 and no gradient; rows whose squares overflow or vanish change no choice."""
    tiles(SPLIT)
    c = problem(20, 50, 16, (torch.bfloat16,) * 2, "tensor", tau)
    c.x[3] = 0
    c.entities[7] = 0
    assert c.noise is not None
    forward = gumbel_assignment(*c.inputs(), True)
    assert forward[1][3] == c.noise[3].argmax()
    torch.testing.assert_close(forward[2][3], c.noise[3].logsumexp(0))
    grads = gumbel_assignment_backward(c.grad, *c.inputs(), *forward[1:], True, True)
    assert torch.equal(grads[0][3], torch.zeros(16, dtype=torch.bfloat16, device=DEVICE))
    assert all(g.isfinite().all() for g in grads)
    value_path = F.one_hot(forward[1], 50).float().T @ c.grad.float()
    torch.testing.assert_close(grads[1][7], value_path[7].bfloat16())

    scale_x = torch.exp2(torch.randint(-110, 110, (20, 1)).float()).to(DEVICE, torch.bfloat16)
    scale_s = torch.exp2(torch.randint(-110, 110, (50, 1)).float()).to(DEVICE, torch.bfloat16)
    scaled = gumbel_assignment(c.x * scale_x, c.entities * scale_s, *c.inputs()[2:], True)
    testing.assert_same_bits(scaled[1], forward[1])
    testing.assert_same_bits(scaled[2], forward[2])


def test_half_precision_gradients_of_any_scale(tiles: Callable[..., None]) -> None:
    """float16: gradients near the ends of the range neither overflow inside nor vanish, hard and soft."""
    tiles(WHOLE)
    for exponent in (-10, 11):
        c = problem(50, 120, 24, (torch.float16,) * 2, "tensor")
        check(c._replace(grad=c.grad * 2.0**exponent), True)
        check(c._replace(grad=c.grad * 2.0**exponent), False)


def test_a_non_finite_row_stays_alone(tiles: Callable[..., None]) -> None:
    tiles(SPLIT)
    c = problem(6, 70, 5, (torch.float32,) * 2, "tensor")
    clean = gumbel_assignment(*c.inputs(), True)
    others = [0, 1, 3, 4, 5]
    for value in (torch.nan, torch.inf, -torch.inf):
        c.x[2, 1] = value
        _, index, normalizer = gumbel_assignment(*c.inputs(), True)
        testing.assert_same_bits(index[others], clean[1][others])
        testing.assert_same_bits(normalizer[others], clean[2][others])
        assert 0 <= index[2] < 70
        assert normalizer[2].isnan()


def test_sparse_choices_and_gradients_on_request(tiles: Callable[..., None]) -> None:
    """More entities than a tile has places: tiles without a choice are passed over. No request, no gradient."""
    tiles({"BM": 32, "BK": 16, "BD": 16, "DV": 16, "programs": 1})
    c = problem(20, 530, 8, (torch.float32,) * 2, "tensor")
    check(c, True)
    forward = gumbel_assignment(*c.inputs(), True)
    full = gumbel_assignment_backward(c.grad, *c.inputs(), *forward[1:], True, True)
    part = gumbel_assignment_backward(c.grad, *c.inputs(), *forward[1:], True, False)
    assert part[1].shape == (0,)
    testing.assert_same_bits(part[0], full[0])
    testing.assert_same_bits(part[2], full[2])


def test_no_rows_and_float64() -> None:
    c = problem(0, 7, 5, (torch.float16,) * 2, "none")
    for hard in (True, False):
        output, index, normalizer = gumbel_assignment(*c.inputs(), hard)
        assert (output.shape, index.shape, normalizer.shape) == ((0, 5), (0,), (0,))
        grads = gumbel_assignment_backward(c.grad, *c.inputs(), index, normalizer, hard, True)
        assert grads[0].shape == (0, 5)
        assert torch.equal(grads[1], torch.zeros(7, 5, dtype=torch.float16, device=DEVICE))
        assert torch.equal(grads[2], torch.tensor(0.0, device=DEVICE))
    with pytest.raises(TypeError, match="got float64"):
        gumbel_assignment(torch.ones(2, 3), torch.ones(2, 3).double(), c.tau, None, None, True)


def test_shipped_configurations_run() -> None:
    """The tables as they are, at a small size: every field a launcher asks for is there."""
    for dtype in (torch.bfloat16, torch.float32):
        check(problem(9, 21, 20, (dtype, dtype), "tensor"), True)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
def test_what_ships_for_hopper(hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of sm_90 at a full row, several of them, a full wave and a split one."""

    def configuration(stem: str, prefix: str, depth: int, dtype: torch.dtype) -> dict[str, int]:
        return shared.kernel_fields(launch_configs.load(stem)["sm_90"][0]["use"], prefix, depth) | {
            "programs": 2 - hard
        }

    monkeypatch.setattr(forward_module, "select_config", configuration)
    monkeypatch.setattr(backward_module, "select_config", configuration)
    check(problem(150, 141, 512, (torch.bfloat16,) * 2, "seed"), hard)
