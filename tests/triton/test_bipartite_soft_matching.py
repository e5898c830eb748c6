"""Matching in Triton: index for index the reference's plan where scores are exact, on every launch branch."""

from __future__ import annotations

import contextlib
import functools
import itertools

import pytest
import torch
from torch import Tensor

from alt_kernels import Matching, testing
from alt_kernels.reference import bipartite_soft_matching as reference
from alt_kernels.triton import bipartite_soft_matching as matching
from alt_kernels.triton import launch_configs

from ..ops.test_bipartite_soft_matching import EXTREMES, LAYOUTS, choices, loops

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # numpy's word for rows with NaN and inf
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PADDED = (2, 3, 8, 31, 64, 197, 256, 257, 511, 512)


def plan_of(metric: Tensor, r: int, num_protected: int = 1) -> Matching:
    return Matching(*(field.cpu() for field in matching.bipartite_matching(metric, r, num_protected)))


def check(metric: Tensor, r: int, num_protected: int, name: str) -> None:
    expected = reference.bipartite_matching(metric.cpu(), r, num_protected)
    testing.assert_same_plan(plan_of(metric, r, num_protected), Matching(*expected), name=name)


def images(tokens: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Four images: ties; ties with zero and broken rows; with hardly a row that has a direction; with none."""
    kinds = ((0.3, 0.0, 0.0), (0.3, 0.2, 0.2), (0.0, 0.9, 0.05), (0.0, 0.5, 1.0))
    made = [
        testing.exact_metric(
            1, tokens, seed + i, duplicates=repeat, zeros=zeros, non_finite=broken, dtype=dtype,
            supports=(16,) if i else (4, 16, 64),
        )
        for i, (repeat, zeros, broken) in enumerate(kinds)
    ]  # fmt: skip
    return torch.cat(made)


def protections(tokens: int) -> list[int]:
    return sorted({p for p in (0, 1, 2, 5, tokens - 3, tokens - 2) if 0 <= p <= tokens - 2})


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path over tiles for few tokens, with every loop going round more than once."""
    monkeypatch.setattr(matching, "ONE_PROGRAM", 0)
    monkeypatch.setattr(matching, "RANK_ROWS", 32)
    monkeypatch.setattr(matching, "RANK_OTHERS", 16)
    tuned = {"parts": 2, "BA": 32, "BB": 16, "BC": 64, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(matching, "config", lambda stem, **sizes: tuned)


def one_program(tokens: int) -> dict[str, int]:
    """The configuration of many images."""
    rows = 128 if tokens <= 256 else 256
    return {"parts": 0, "BA": rows, "BB": 64, "BC": 64, "num_warps": 8, "num_stages": 1}


def several(parts: int = 4) -> dict[str, int]:
    """The configuration of few images, with smaller tiles of B, so that most parts have rows."""
    return {"parts": parts, "BA": 64, "BB": 16, "BC": 64, "num_warps": 4, "num_stages": 1}


def forced(use: dict[str, int]) -> contextlib.AbstractContextManager[None]:
    return launch_configs.force_config("bipartite_soft_matching", use)


# Plans


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_program_equals_the_reference(device: torch.device, dtype: torch.dtype) -> None:
    for tokens in PADDED if dtype == torch.float32 else (3, 197, 511):
        metric = images(tokens, dtype, seed=tokens).to(device)
        for number, num_protected in enumerate(protections(tokens)):
            limit = (tokens - num_protected) // 2
            r = limit if number % 2 else max(1, limit // 3)
            with forced(one_program(tokens)):
                check(metric, r, num_protected, f"N={tokens}, P={num_protected}, r={r}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_programs_equal_the_reference(device: torch.device, dtype: torch.dtype) -> None:
    for tokens in (2, 31, 257) if dtype == torch.float32 else (3, 101):
        metric = images(tokens, dtype, seed=tokens).to(device)
        for number, num_protected in enumerate(protections(tokens)[:: 1 if tokens < 100 else 3]):
            limit = (tokens - num_protected) // 2
            r = max(1, limit // 3) if number % 2 else limit
            with forced(several(parts=3 if number else 8)):
                check(metric, r, num_protected, f"N={tokens}, P={num_protected}, r={r}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_equal_the_reference(device: torch.device, small_tiles: None, dtype: torch.dtype) -> None:
    for tokens in (2, 3, 64, 65, 128, 197) if dtype == torch.float32 else (65, 128):
        metric = images(tokens, dtype, seed=tokens)[:3].to(device)
        for number, num_protected in enumerate(protections(tokens)[:: 1 if tokens < 100 else 3]):
            limit = (tokens - num_protected) // 2
            r = max(1, limit // 3) if number % 2 else limit
            check(metric, r, num_protected, f"N={tokens}, P={num_protected}, r={r}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "num_protected", "r"), [(513, 0, 256), (600, 1, 100), (600, 590, 5)])
def test_shipped_tiles(device: torch.device, dtype: torch.dtype, tokens: int, num_protected: int, r: int) -> None:
    check(images(tokens, dtype, seed=5)[1:2].to(device), r, num_protected, f"N={tokens}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "channels"), [(61, 1), (61, 5), (300, 17), (61, 65), (300, 80), (61, 128), (61, 200), (300, 768)]
)
def test_any_number_of_channels(device: torch.device, dtype: torch.dtype, tokens: int, channels: int) -> None:
    support = max(4**k for k in range(5) if 4**k <= channels)
    metric = testing.exact_metric(1, tokens, 3, channels=channels, supports=(support,), zeros=0.1, dtype=dtype)
    check(metric.to(device), tokens // 3, 1, f"C={channels}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_with_many_channels(device: torch.device, small_tiles: None, dtype: torch.dtype) -> None:
    metric = testing.exact_metric(1, 75, 3, channels=300, supports=(256,), zeros=0.1, dtype=dtype)
    check(metric.to(device), 20, 1, "C=300")


def test_every_token_is_the_same(device: torch.device) -> None:
    """All ties: the first a's go, all of them to the first b, whatever tile they are in."""
    for tokens in (150, 512):
        expected = testing.plan_from_pairs(tokens, 1, [dict.fromkeys(range(2, 42, 2), 1)])
        for use in (one_program(tokens), several()):
            with forced(use):
                testing.assert_same_plan(plan_of(torch.ones(1, tokens, 16, device=device), 20), expected)


@pytest.mark.parametrize(("batch", "tokens", "r"), [(0, 9, 4), (0, 600, 4), (3, 0, 0), (3, 1, 0), (2, 7, 0), (0, 0, 0)])
def test_nothing_to_do(device: torch.device, batch: int, tokens: int, r: int) -> None:
    metric = torch.full((batch, tokens, 4), torch.nan, device=device)
    expected = Matching(*reference.bipartite_matching(metric.cpu(), r, 0))
    testing.assert_same_plan(plan_of(metric, r, 0), expected)
    keys = metric[:, None].expand(-1, 3, -1, -1)
    found = matching.bipartite_matching_from_keys(keys, r, 0)
    testing.assert_same_plan(Matching(*(field.cpu() for field in found)), expected)


@pytest.mark.parametrize("use", [one_program(60), several()], ids=["one program", "several"])
def test_one_row_without_a_direction_takes_no_place(device: torch.device, use: dict[str, int]) -> None:
    """No scores are equal, and every a goes, the one at -inf last: rows past |A|, at -inf as well, are no pairs."""
    metric = torch.randn(2, 60, 16, generator=testing.generator(7))
    metric[0, 20] = 0
    metric[1, 2] = torch.inf
    with forced(use):
        check(metric.to(device), 29, 1, "r = |A|")


def two_adjacent_scores() -> Tensor:
    """Rows of A for which b_1 beats b_0 by the last bit of the score, which the division by |a| rounds away."""
    metric = torch.zeros(1, 64, 16, dtype=torch.float16)
    metric[0, 1, [0, 3, 4, 5]] = 0.5
    metric[0, 1 + 2 * 16, [0, 3, 4, 1]] = 0.5  # in the second part
    metric[0, 0::2, 0] = 1.875 + torch.arange(32) / 512
    metric[0, 0::2, 1] = 2.0**-23
    metric[0, 0::2, 3] = 0.0625
    a, b = metric[0, 0::2].float(), metric[0, [1, 33]].float()
    scores = a @ b.T
    assert (scores[:, 1] > scores[:, 0]).all()
    rounded = scores / a.norm(dim=1, keepdim=True)
    assert (rounded[:, 0] == rounded[:, 1]).sum() > 8
    return metric


@pytest.mark.parametrize("use", [one_program(64), several()], ids=["one program", "several"])
def test_scores_are_compared_before_they_are_rounded(device: torch.device, use: dict[str, int]) -> None:
    with forced(use):
        assert set(choices(plan_of(two_adjacent_scores().to(device), 31, 0))[0].values()) == {33}


# Scores


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_choices_are_as_good(device: torch.device, dtype: torch.dtype) -> None:
    """Against float64: another choice only where the scores are within 1e-6. Holds the split of float32 rows."""
    batch, tokens, r = 6, 197, 16
    metric = torch.randn(batch, tokens, 64, generator=testing.generator(1)).to(dtype)
    metric = metric * torch.exp2(torch.arange(tokens) % 7 - 3.0).to(dtype)[:, None]
    assert_as_good(metric, plan_of(metric.to(device), r), r)


def assert_as_good(metric: Tensor, plan: Matching, r: int) -> None:
    """``metric`` as the kernel saw it; one protected token."""
    unit = torch.nn.functional.normalize(metric.double(), dim=-1)
    score = (unit @ unit.transpose(1, 2)).numpy()
    different = 0
    for image, (left, right) in enumerate(zip(choices(plan), loops(metric, r, 1), strict=True)):
        best = {a: score[image, a, 1::2].max() for a in range(2, metric.shape[1], 2)}
        assert len(left) == r
        for a, b in left.items():
            assert score[image, a, b] >= best[a] - 1e-6
            different += right.get(a, b) != b
        entered, left_out = set(left) - set(right), set(right) - set(left)
        different += len(entered)
        assert not entered or min(best[a] for a in entered) >= max(best[a] for a in left_out) - 1e-6
    assert different <= 1, f"{different} choices differ"


@pytest.mark.parametrize("step", [2.0**-13, 2.0**-20])
def test_float32_is_not_rounded_to_a_half(device: torch.device, step: float) -> None:
    """The better b, which has the higher index, is so by bits that float16 lacks: in the row of a, in that of b."""
    in_a = torch.tensor([[0, 0], [0, 1], [1 + step, 1], [1, 0]])
    in_b = torch.tensor([[0, 0], [1, 1], [1, 0], [1 + step, 1]])
    for rows in (in_a, in_b):
        assert rows[1].half().equal(rows[3].half()) or rows[2, 0].half() == rows[2, 1].half()
        assert choices(plan_of(rows[None].to(device), 1)) == [{2: 3}]


def test_half_precision_scores_are_not_rounded(device: torch.device) -> None:
    """1 - 8/C and 1 - 6/C round to one bfloat16; the better b has the higher index, the better a as well."""
    ones, worse, better = torch.ones(3, 1024)
    worse[:4] = -1
    better[:3] = -1
    means = torch.stack([worse.mean(), better.mean()])
    assert means[0] < means[1]
    assert means.bfloat16().unique().numel() == 1
    metric = torch.stack([ones, worse, ones, better]).bfloat16()[None]
    assert choices(plan_of(metric.to(device), 1)) == [{2: 3}]
    metric = torch.stack([ones, ones, worse, ones, better]).bfloat16()[None]
    assert choices(plan_of(metric.to(device), 1)) == [{4: 1}]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_magnitudes(device: torch.device, dtype: torch.dtype) -> None:
    """From the subnormals to the largest number: squares that overflow or vanish in float32 do not."""
    metric = testing.exact_metric(3, 61, seed=3, exponent=0, dtype=torch.float64)
    exponents = torch.tensor(EXTREMES[dtype])
    drawn = exponents[torch.randint(len(exponents), (3, 61), generator=testing.generator(2))]
    extreme = (metric * torch.exp2(drawn.double())[..., None]).to(dtype)
    assert torch.equal(extreme.double().sign(), metric)
    expected = testing.plan_from_pairs(61, 1, loops(metric, 20, 1))
    testing.assert_same_plan(plan_of(extreme.to(device), 20), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_powers_of_two_change_no_bit(device: torch.device, dtype: torch.dtype) -> None:
    g = testing.generator(4)
    metric = torch.randn(2, 120, 32, generator=g).to(dtype)
    factor = torch.exp2(torch.randint(-3, 4, (2, 120, 1), generator=g).double()).to(dtype)
    testing.assert_same_plan(plan_of((metric * factor).to(device), 30), plan_of(metric.to(device), 30))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(device: torch.device, layout: str) -> None:
    view = LAYOUTS[layout](testing.exact_metric(3, 41, seed=11, dtype=torch.bfloat16).to(device))
    check(view, 13, 1, layout)


def test_same_bits_twice(device: torch.device, small_tiles: None) -> None:
    metric = torch.randn(2, 150, 48).to(device)
    testing.assert_same_plan(plan_of(metric, 40), plan_of(metric, 40))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_forms_agree(device: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """To the bit, also where scores are rounded."""
    check_forms(torch.randn(2, 300, 64, generator=testing.generator(8)).to(device, dtype), 100)
    monkeypatch.setattr(matching, "ONE_PROGRAM", 0)
    check_forms(torch.randn(2, 300, 64, generator=testing.generator(8)).to(device, dtype), 100)


def check_forms(metric: Tensor, r: int) -> None:
    with forced(one_program(metric.shape[1])):
        one = plan_of(metric, r)
    for parts in (1, 4):
        with forced(several(parts)):
            testing.assert_same_plan(plan_of(metric, r), one)


# Keys


def packed_keys(metric: Tensor, heads: int) -> Tensor:
    """Keys [B, H, N, D] with that mean, exactly, as a view of packed QKV whose other entries are NaN."""
    batch, tokens, depth = metric.shape
    qkv = torch.full((batch, tokens, 3, heads, depth), torch.nan, dtype=metric.dtype, device=metric.device)
    scale = metric.abs().amax(-1, keepdim=True)
    noise = scale * torch.randint(-1, 2, (heads // 2, batch, tokens, depth), generator=testing.generator(6)).to(metric)
    spread = [metric + sign * part for part in noise for sign in (1, -1)] + [metric] * (heads % 2)
    qkv[:, :, 1] = torch.stack(spread, 2)
    return qkv[:, :, 1].transpose(1, 2)


def check_keys(k: Tensor, r: int, num_protected: int) -> None:
    found = Matching(*(field.cpu() for field in matching.bipartite_matching_from_keys(k, r, num_protected)))
    mean = k.mean(1, dtype=torch.float32).cpu()
    testing.assert_same_plan(found, Matching(*reference.bipartite_matching(mean, r, num_protected)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "depth", "heads", "inside"),
    [
        (50, 64, 2, True), (197, 64, 12, True), (257, 64, 3, True), (257, 80, 4, False),
        (90, 80, 5, True), (90, 32, 7, True), (90, 160, 2, False), (90, 64, 1, False),
    ],
)  # fmt: skip
def test_mean_of_packed_keys(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tokens: int,
    depth: int,
    heads: int,
    inside: bool,
) -> None:
    """Equal to matching on the float32 mean; ``inside``: without computing that mean outside the kernel."""
    metric = testing.exact_metric(2, tokens, 9, channels=depth, zeros=0.1, exponent=3, dtype=dtype).to(device)
    k = packed_keys(metric, heads)
    assert torch.equal(k.mean(1, dtype=torch.float32), metric.float())
    taken: list[object] = []
    monkeypatch.setattr(matching, "bipartite_matching", functools.partial(recorded, matching.bipartite_matching, taken))
    check_keys(k, tokens // 4, 1)
    assert bool(taken) != inside


def recorded(function: object, calls: list[object], *arguments: object) -> object:
    calls.append(arguments)
    return function(*arguments)  # type: ignore[operator]


def test_keys_of_a_long_sequence(device: torch.device, small_tiles: None) -> None:
    check_keys(packed_keys(testing.exact_metric(1, 90, 9).to(device), 3), 20, 2)


def test_keys_with_broken_rows_in_one_head(device: torch.device) -> None:
    k = packed_keys(testing.exact_metric(2, 60, 9).to(device), 4).contiguous()
    k[0, 1, 7, 3], k[0, 3, 8, 5], k[1, 0, 20:] = torch.nan, torch.inf, -torch.inf
    k[1, :, 11] = 0
    check_keys(k, 25, 1)
    check_keys(k.transpose(2, 3).contiguous().transpose(2, 3), 25, 1)


def test_gaussian_keys(device: torch.device) -> None:
    k = torch.randn(4, 12, 197, 64, generator=testing.generator(3)).bfloat16()
    found = matching.bipartite_matching_from_keys(k.to(device), 16, 1)
    assert_as_good(k.float().mean(1), Matching(*(field.cpu() for field in found)), 16)


# Launches


def test_bad_input(device: torch.device) -> None:
    with pytest.raises(TypeError, match="float32, float16 and bfloat16, got float64"):
        matching.bipartite_matching(torch.zeros(1, 4, 2, dtype=torch.float64, device=device), 1, 0)
    with pytest.raises(TypeError, match="got float64"):
        matching.bipartite_matching_from_keys(torch.zeros(1, 2, 4, 2, dtype=torch.float64, device=device), 1, 0)
    with pytest.raises(ValueError, match=r"k: expected at least one head, got shape \[1, 0, 4, 2\]"):
        matching.bipartite_matching_from_keys(torch.zeros(1, 0, 4, 2, device=device), 1, 0)


def test_a_shrinking_sequence_compiles_nothing_new() -> None:
    """Every N of a bucket has the same constants, and no kernel looks at the value of N, r or P."""
    for itemsize, channels, batch in itertools.product((2, 4), (64, 80, 768), (1, 256)):
        found = {
            str(launch_configs.config("bipartite_soft_matching", **matching.bucket(n, channels, itemsize, batch)))
            for n in range(257)
        }
        assert len(found) == 1
    assert matching._finish(100) == matching._finish(256)
    one = (matching._match_image,)
    for kernel in (*one, matching._match_tiles, matching._finish_image, matching._rank_tiles, matching._plan_tiles):
        for name in {"tokens", "r", "num_protected", "even", "share", "parts"} & set(kernel.arg_names):
            # Under the interpreter the kernel is another class, which keeps the arguments of the decorator.
            assert name in launch_options(kernel)


def launch_options(kernel: object) -> set[str]:
    if hasattr(kernel, "params"):
        return {p.name for p in kernel.params if p.do_not_specialize}
    return set(kernel.kwargs["do_not_specialize"])  # type: ignore[attr-defined]


def test_configurations_hold_an_image() -> None:
    """One program needs a row of its tile for every token of A; above 512 tokens no program has an image."""
    for entries in launch_configs.load("bipartite_soft_matching").values():
        wanted = set(itertools.product(matching.IMAGES, matching.TOKENS, matching.CHANNELS, (2, 4)))
        assert {tuple(entry["when"].values()) for entry in entries} == wanted
        for entry in entries:
            one = entry["use"]["parts"] == 0
            assert not one or entry["when"]["tokens"] <= min(matching.ONE_PROGRAM, 2 * entry["use"]["BA"])


def test_few_images_fill_the_multiprocessors() -> None:
    """Keys of ViT-B/16: eight programs per image up to 32 images, one per image above."""
    for batch, programs in ((1, 8), (16, 8), (32, 8), (33, 1), (256, 1)):
        use = launch_configs.config("bipartite_soft_matching", **matching.bucket(197, 64, 4, batch))
        rows, share = (98, 98) if use["parts"] == 0 else (use["BA"], -(-98 // (use["parts"] * use["BB"])) * use["BB"])
        assert -(-98 // rows) * -(-98 // share) == programs
