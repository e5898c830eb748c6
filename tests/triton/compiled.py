"""Small cases of every launcher for compiled code, which ``test_compiled.py`` runs on the emulator of ``tests/ptx``.

Bounds are those of the tests that run under the interpreter: their checks are called, at shapes of a few programs.
Every branch of a launcher is here, rows of odd length and views that begin anywhere, so that the kernels without
16-byte accesses run as well. Names begin with the family, by which the processes of a run are told apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alt_kernels import testing
from alt_kernels.triton import bipartite_soft_matching as matching

from ..ptx import launch
from ..ptx.memory import HazardError
from ..ptx.translate import translate
from . import test_bipartite_soft_matching as check_matching
from . import test_cosine_gumbel_assign as check_assignment
from . import test_merge_layer_norm as check_norm
from . import test_proportional_attention as check_attention
from . import test_weighted_merge as check_merge
from .random_problems import window

f32, f16, b16 = torch.float32, torch.float16, torch.bfloat16
CPU = torch.device("cpu")
# The other dtypes and widths: `make test-slow`.
every = pytest.mark.skipif(not os.environ.get("ALT_KERNELS_PTX_EVERY"), reason="ALT_KERNELS_PTX_EVERY is not set")

Tiles = Callable[[dict[str, int]], None]
small_tiles, tiles = check_matching.small_tiles, check_assignment.tiles  # fixtures


def rest(*values: Any) -> Any:
    return pytest.param(*values, marks=every)


# Merge: [batch, tokens, r, protected, destinations, channels]

MERGES = [
    ((1, 12, 4, 1, None, 768), b16, "fractional"),
    rest((2, 9, 3, 1, 1, 67), f16, "none"),
    rest((2, 9, 3, 1, 1, 96), f32, "whole"),
    rest((1, 21, 9, 0, 2, 33), b16, "fractional"),
    rest((1, 12, 4, 1, None, 768), f16, "none"),
    rest((1, 7, 2, 1, None, 1024), f32, "fractional"),
    rest((1, 4, 1, 0, None, 2100), b16, "whole"),
]


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(("shape", "dtype", "kind"), MERGES, ids=str)
def test_merge(shape: tuple[Any, ...], dtype: torch.dtype, kind: str) -> None:
    """Merge, its derivative, unmerge and its derivative."""
    check_merge.test_merge(shape, kind, dtype, CPU)
    check_merge.test_merge_backward(shape, kind, dtype, CPU)
    check_merge.test_unmerge_and_its_derivative(shape, dtype, CPU)


@pytest.mark.usefixtures("guarded")
def test_merge_of_views() -> None:
    """Rows that begin anywhere, steps between elements: the bits of plain tensors."""
    check_merge.test_strided_arguments(CPU)


@every
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("dtype", [b16, f32], ids=str)
def test_merge_copies(dtype: torch.dtype) -> None:
    check_merge.test_rows_of_one_token_are_copied_bit_for_bit(dtype, CPU)


NORMS = [
    ((1, 9, 3, 1, None, 768), (b16, b16, b16, b16)),
    ((2, 9, 4, 0, 1, 67), (f32, b16, None, f32)),
    rest((1, 9, 3, 1, None, 768), (f32, b16, f32, f32)),
    rest((1, 9, 3, 1, None, 128), (f16, f16, f16, None)),
    rest((2, 33, 12, 1, 2, 96), (f32, f32, f32, f32)),
    rest((1, 4, 1, 0, None, 1030), (b16, f32, None, None)),
]


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(("shape", "dtypes"), NORMS, ids=str)
def test_norm(shape: tuple[Any, ...], dtypes: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual, merge and LayerNorm, and their derivative, with several rows per program."""
    check_norm.test_forward(shape, dtypes, CPU)
    check_norm.test_backward(shape, dtypes, CPU, monkeypatch)


@every
@pytest.mark.usefixtures("guarded")
def test_norm_of_views() -> None:
    check_norm.test_strided_arguments(CPU)


# Matching

MATCHINGS = [
    (61, 64, b16),
    rest(61, 64, f32),
    rest(61, 64, f16),
    rest(33, 5, f16),
    rest(300, 17, b16),
    rest(61, 200, f32),
]


@pytest.mark.parametrize(("tokens", "channels", "dtype"), MATCHINGS, ids=str)
def test_matching_in_one_program(tokens: int, channels: int, dtype: torch.dtype) -> None:
    """Ties and broken rows; what lies between the tokens is NaN."""
    support = max(4**k for k in range(4) if 4**k <= channels)
    made = {"channels": channels, "supports": (support,), "dtype": dtype, "zeros": 0.1, "non_finite": 0.1}
    metric = testing.exact_metric(2, tokens, 3, **made)
    with check_matching.forced(check_matching.one_program(tokens)):
        check_matching.check(metric if channels == 64 else window(metric), tokens // 4, 1, f"N={tokens}")


@pytest.mark.parametrize(("tokens", "dtype"), [(61, b16), rest(61, f32), rest(61, f16), rest(300, b16)], ids=str)
def test_matching_in_several_programs(tokens: int, dtype: torch.dtype) -> None:
    """Ties and broken rows; to the bit the plan of one program, also where scores are rounded."""
    metric = testing.exact_metric(1, tokens, 3, supports=(16,), dtype=dtype, zeros=0.1, non_finite=0.1)
    with check_matching.forced(check_matching.several()):
        check_matching.check(metric, tokens // 4, 1, f"N={tokens}")
    check_matching.check_forms(torch.randn(1, tokens, 64, generator=testing.generator(8)).to(dtype), tokens // 3)


def test_matching_compares_before_rounding() -> None:
    check_matching.test_scores_are_compared_before_they_are_rounded(CPU, check_matching.several())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("tokens", "dtype"), [(75, b16), rest(75, f32), rest(128, f16)], ids=str)
def test_matching_in_tiles(tokens: int, dtype: torch.dtype) -> None:
    metric = testing.exact_metric(1, tokens, 3, channels=70, supports=(64,), zeros=0.1, dtype=dtype)
    check_matching.check(metric, 20, 1, f"N={tokens}")


@pytest.mark.parametrize(("dtype", "heads"), [(b16, 3), rest(f16, 4), rest(f32, 3)], ids=str)
def test_matching_of_packed_keys(dtype: torch.dtype, heads: int) -> None:
    metric = testing.exact_metric(1, 50, 9, exponent=3, zeros=0.1, dtype=dtype)
    for use in (check_matching.one_program(50), check_matching.several()):
        with check_matching.forced(use):
            check_matching.check_keys(check_matching.packed_keys(metric, heads), 12, 1)


@every
def test_matching_shipped_tiles() -> None:
    assert matching.ONE_PROGRAM < 600
    check_matching.check(check_matching.images(600, b16, seed=5)[1:2], 100, 1, "N=600")


# Attention: one image, one head, packed QKV


def heads(queries: int, keys: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Views of one packed tensor, whose rows have NaN between them where queries and keys differ in number."""
    packed = torch.full((1, max(queries, keys), 3, 1, depth), torch.nan, dtype=dtype)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    for part, rows in ((q, queries), (k, keys), (v, keys)):
        part[:, :, :rows] = torch.randn(1, 1, rows, depth).to(dtype)
    return q[:, :, :queries], k[:, :, :keys], v[:, :, :keys]


ATTENTIONS = [
    (17, 17, 32, f16, True),  # resident, one tile; whole head
    (197, 197, 64, b16, True),  # ViT-B/16
    (9, 257, 16, f16, False),  # online; two kernels backward
    (5, 33, 16, f32, True),
    rest(197, 197, 64, b16, False),
    rest(70, 197, 80, b16, True),  # a padded width
    rest(150, 150, 64, f16, True),
    rest(20, 130, 128, b16, True),
    rest(33, 65, 96, f32, False),
    rest(257, 257, 64, f32, True),
    rest(20, 40, 160, b16, True),
]


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize(("queries", "keys", "depth", "dtype", "sized"), ATTENTIONS, ids=str)
def test_attention(queries: int, keys: int, depth: int, dtype: torch.dtype, sized: bool) -> None:
    size = testing.random_size(1, keys, seed=keys, high=60) if sized else None
    check_attention.check(*heads(queries, keys, depth, dtype), size)


NEEDED = ["bar.sync", "cp.async.wait_group"]
NEEDED += ["wgmma.wait_group.sync.aligned", "fence.proxy.async.shared::cta"] if launch.TARGET == 90 else []


@pytest.mark.parametrize("dropped", NEEDED)
def test_attention_without(dropped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race check can fail: with the compiler's barriers, or its waits, taken out of the code it does."""
    monkeypatch.setattr(launch, "translated", lambda text: translate(re.sub(rf"\t{dropped}\b[^;]*;", "", text)))
    size = testing.random_size(1, 257, seed=257)
    with pytest.raises(HazardError, match=r"what another warp wrote|under way|nothing waits|fence"):
        check_attention.check(*heads(9, 257, 16, f16), size)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", [rest(f16), rest(f32)], ids=str)
def test_attention_of_odd_rows(dtype: torch.dtype) -> None:
    """Rows of 19 elements, which begin anywhere; a masked key."""
    size = testing.random_size(1, 70, seed=1)
    size[0, 3] = 0
    check_attention.check(*(window(torch.randn(1, 1, n, 19).to(dtype)) for n in (21, 70, 70)), size)


# Assignment: tiles of its own, so that few instructions compile

SMALL = {"BM": 16, "BK": 32, "BD": 32, "DV": 32, "programs": 1}
PIECES = {"BM": 16, "BK": 32, "BD": 16, "DV": 16, "programs": 20}
ASSIGNMENTS = [
    (SMALL, (19, 45, 24), (b16, b16), "seed", True),
    (PIECES, (19, 45, 40), (f16, f16), "tensor", False),
    rest(SMALL, (19, 45, 24), (f32, f32), "seed", False),
    rest(SMALL, (19, 45, 24), (f16, f16), "none", True),
    rest(PIECES, (19, 77, 40), (b16, f32), "seed", True),
    rest(PIECES, (19, 77, 37), (b16, b16), "seed", False),
    rest(check_assignment.SPLIT, (70, 150, 45), (b16, b16), "tensor", False),
]


@pytest.mark.parametrize(("chosen", "sizes", "dtypes", "noise", "hard"), ASSIGNMENTS, ids=str)
def test_assignment(
    chosen: dict[str, int], sizes: tuple[int, int, int], dtypes: tuple[Any, Any], noise: str, hard: bool, tiles: Tiles
) -> None:
    tiles(chosen)
    check_assignment.check(check_assignment.problem(*sizes, dtypes, noise), hard)


@pytest.mark.parametrize("rows", [16, 32])
def test_assignment_takes_the_lowest_of_equals(rows: int, tiles: Tiles) -> None:
    """Equal entities whose columns lie in two warps, or in two places of one thread, in an order that is not theirs."""
    tiles({"BM": rows, "BK": 2 * rows, "BD": 32, "DV": 32, "programs": 1, "num_warps": 8})
    x, entities = torch.randn(4, 24), torch.randn(40, 24)
    for low, high in ((2, 16), (3, 17), (1, 8), (0, 33)):
        given = entities.clone()
        given[high] = given[low] = x[0]
        index = check_assignment.gumbel_assignment(x[:1], given, torch.tensor(0.1), None, None, True)[1]
        assert index.tolist() == [low]


def test_assignment_noise() -> None:
    """Philox and the logarithms element by element, rows beyond 2^32 and negative seeds among them."""
    check_assignment.test_the_noise_is_that_of_the_law(CPU)


@every
def test_assignment_logarithms() -> None:
    check_assignment.test_the_logarithms_hold_over_every_word(CPU)


@every
def test_assignment_sparse(tiles: Tiles) -> None:
    check_assignment.test_sparse_choices_and_gradients_on_request(tiles)


@every
@pytest.mark.parametrize("dtype", [b16, f32], ids=str)
def test_assignment_as_shipped(dtype: torch.dtype) -> None:
    check_assignment.check(check_assignment.problem(9, 70, 512, (dtype, dtype), "seed"), False)
