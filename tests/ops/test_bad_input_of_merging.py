"""Bad input of matching, merging and their inverse: one sentence that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alt_kernels import Matching, bipartite_soft_matching, source_map

from .small_calls import (
    LEFT,
    B,
    C,
    N,
    check_refusal,
    make_plan,
    make_size,
    make_x,
    match,
    match_keys,
    merge,
    norm,
    refusal,
    replace_field,
    spread,
)

# The sentence, from its first letter: the argument, what was expected, what came.
CASES = [
    # bipartite_soft_matching_from_keys
    refusal(TypeError, r"k: expected a tensor \[B, H, N, D\], got list", lambda i: match_keys([[1.0]], impl=i)),
    refusal(
        ValueError,
        r"k: expected 4 dimensions \[B, H, N, D\], got shape \[2, 9, 4\]",
        lambda i: match_keys(make_x(B, N, C), impl=i),
    ),
    refusal(
        TypeError,
        "k: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: match_keys(make_x(B, 2, N, C).long(), impl=i),
    ),
    refusal(
        ValueError,
        r"k: expected at least one head, got shape \[2, 0, 9, 4\]",
        lambda i: match_keys(make_x(B, 0, N, C), impl=i),
    ),
    refusal(
        ValueError,
        r"k: expected at least one channel, got shape \[2, 2, 9, 0\]",
        lambda i: match_keys(make_x(B, 2, N, 0), impl=i),
    ),
    refusal(
        ValueError,
        "r: expected at most 4, half of the 8 unprotected tokens of k, got 5",
        lambda i: match_keys(r=5, impl=i),
    ),
    refusal(TypeError, "r: expected an int >= 0, got bool True", lambda i: match_keys(r=True, impl=i)),
    refusal(
        ValueError,
        "num_protected: expected at most the 9 tokens of k, got 10",
        lambda i: match_keys(num_protected=10, impl=i),
    ),
    # bipartite_soft_matching
    refusal(TypeError, r"metric: expected a tensor \[B, N, C\], got list", lambda i: match([[1.0]], impl=i)),
    refusal(
        ValueError,
        r"metric: expected 3 dimensions \[B, N, C\], got shape \[9, 4\]",
        lambda i: match(make_x(N, C), impl=i),
    ),
    refusal(
        TypeError,
        "metric: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: match(make_x().long(), impl=i),
    ),
    refusal(
        TypeError,
        "metric: expected float32, float16, bfloat16 or float64, got complex64",
        lambda i: match(make_x().to(torch.complex64), impl=i),
    ),
    refusal(
        ValueError,
        r"metric: expected at least one channel, got shape \[2, 9, 0\]",
        lambda i: match(make_x(B, N, 0), impl=i),
    ),
    refusal(ValueError, "r: expected an int >= 0, got -1", lambda i: match(r=-1, impl=i)),
    refusal(
        ValueError,
        "r: expected at most 4, half of the 8 unprotected tokens of metric, got 5",
        lambda i: match(r=5, impl=i),
    ),
    refusal(
        ValueError,
        "r: expected at most 0, half of the 0 unprotected",
        lambda i: match(make_x(B, 0, C), r=1, num_protected=0, impl=i),
    ),
    refusal(
        ValueError, "r: expected at most 0, half of the 1 unprotected", lambda i: match(r=1, num_protected=8, impl=i)
    ),
    refusal(TypeError, "r: expected an int >= 0, got bool True", lambda i: match(r=True, impl=i)),
    refusal(TypeError, "r: expected an int >= 0, got float 2.0", lambda i: match(r=2.0, impl=i)),
    refusal(
        TypeError,
        "r: expected an int >= 0, got NoneType None",
        lambda i: bipartite_soft_matching(make_x(), None, impl=i),
    ),  # type: ignore[arg-type]
    refusal(ValueError, "num_protected: expected an int >= 0, got -1", lambda i: match(num_protected=-1, impl=i)),
    refusal(
        ValueError,
        "num_protected: expected at most the 9 tokens of metric, got 10",
        lambda i: match(num_protected=10, impl=i),
    ),
    refusal(
        ValueError,
        "num_protected: expected at most the 0 tokens of metric, got 1",
        lambda i: match(make_x(B, 0, C), r=0, impl=i),
    ),
    refusal(
        TypeError, "num_protected: expected an int >= 0, got bool False", lambda i: match(num_protected=False, impl=i)
    ),
    # weighted_merge
    refusal(
        ValueError,
        r"x: expected 3 dimensions \[B, N, C\], got shape \[2, 9, 4, 1\]",
        lambda i: merge(make_x(B, N, C, 1), impl=i),
    ),
    refusal(
        TypeError,
        "x: expected float32, float16, bfloat16 or float64, got bool",
        lambda i: merge(make_x().bool(), impl=i),
    ),
    refusal(
        TypeError,
        "matching: expected a Matching from bipartite_soft_matching, got int",
        lambda i: merge(plan=3, impl=i),
    ),
    refusal(
        TypeError,
        "matching: expected a Matching from bipartite_soft_matching, got tuple",
        lambda i: merge(plan=(make_x(), make_x()), impl=i),
    ),
    refusal(
        TypeError,
        "matching.indices: expected int32, got int64",
        lambda i: merge(plan=replace_field("indices", Tensor.long), impl=i),
    ),
    refusal(
        TypeError,
        "matching.offsets: expected int32, got float32",
        lambda i: merge(plan=replace_field("offsets", Tensor.float), impl=i),
    ),
    refusal(
        ValueError,
        r"matching.output_row: expected 2 dimensions, got shape \[18\]",
        lambda i: merge(plan=replace_field("output_row", Tensor.flatten), impl=i),
    ),
    refusal(
        ValueError,
        r"matching: indices \[2, 9\], offsets \[2, 7\] and output_row \[2, 8\] do not belong to one plan",
        lambda i: merge(plan=replace_field("output_row", lambda t: t[:, :-1]), impl=i),
    ),
    refusal(
        ValueError,
        r"matching: indices \[2, 9\], offsets \[2, 0\] .* do not belong to one plan",
        lambda i: merge(plan=replace_field("offsets", lambda t: t[:, :0]), impl=i),
    ),
    refusal(
        ValueError,
        r"matching: indices \[2, 9\], offsets \[2, 14\] .* do not belong to one plan",
        lambda i: merge(plan=replace_field("offsets", lambda t: torch.cat([t, t], 1)), impl=i),
    ),
    refusal(
        ValueError,
        r"matching: expected a plan of 9 input tokens as in x \[2, 9, 4\], got a plan of 8",
        lambda i: merge(plan=make_plan(tokens=8), impl=i),
    ),
    refusal(
        ValueError,
        "matching: expected a plan of 2 images as in x, got 3",
        lambda i: merge(plan=make_plan(batch=3), impl=i),
    ),
    refusal(
        ValueError,
        "matching: expected the device of x",
        lambda i: merge(plan=Matching(*(t.to("meta") for t in make_plan())), impl=i),
    ),
    refusal(
        ValueError,
        "matching.offsets: expected the device of matching.indices",
        lambda i: merge(plan=replace_field("offsets", lambda t: t.to("meta")), impl=i),
    ),
    refusal(
        ValueError,
        "size: sizes are constants of the operation and get no gradient, got requires_grad=True",
        lambda i: merge(size=make_size().requires_grad_(), impl=i),
    ),
    refusal(
        TypeError, r"size: expected a float32 tensor \[B, N\] or None, got float", lambda i: merge(size=1.0, impl=i)
    ),
    refusal(TypeError, "size: expected float32, got float64", lambda i: merge(size=make_size().double(), impl=i)),
    refusal(TypeError, "size: expected float32, got bfloat16", lambda i: merge(size=make_size().bfloat16(), impl=i)),
    refusal(TypeError, "size: expected float32, got int64", lambda i: merge(size=make_size().long(), impl=i)),
    refusal(
        ValueError,
        r"size: expected shape \[2, 9\] \(one size for each token of x\), got \[2, 9, 1\]",
        lambda i: merge(size=make_size()[..., None], impl=i),
    ),
    refusal(
        ValueError,
        r"size: expected shape \[2, 9\] .* got \[2, 6\]",
        lambda i: merge(size=make_size(tokens=LEFT), impl=i),
    ),
    refusal(
        ValueError,
        r"size: expected the device of x \(cpu\), got meta",
        lambda i: merge(size=make_size().to("meta"), impl=i),
    ),
    # unmerge
    refusal(
        ValueError,
        r"matching: expected a plan of 9 output rows as in x \[2, 9, 4\], got a plan of 6",
        lambda i: spread(make_x(), impl=i),
    ),
    refusal(ValueError, "x: expected 3 dimensions .* got shape", lambda i: spread(make_x(B, LEFT), impl=i)),
    # merge_layer_norm
    refusal(
        ValueError,
        r"residual: expected shape \[2, 9, 4\] \(as x\), got \[2, 9, 5\]",
        lambda i: norm(residual=make_x(B, N, 5), impl=i),
    ),
    refusal(TypeError, "residual: expected a tensor .* got int", lambda i: norm(residual=0, impl=i)),
    refusal(
        ValueError,
        r"residual: expected the device of x \(cpu\), got meta",
        lambda i: norm(residual=make_x(device="meta"), impl=i),
    ),
    refusal(
        ValueError,
        r"weight: expected shape \[4\] \(one value for each channel of x\), got \[5\]",
        lambda i: norm(weight=make_x(5), impl=i),
    ),
    refusal(
        ValueError,
        r"weight: expected 1 dimensions \[C\], got shape \[1, 4\]",
        lambda i: norm(weight=make_x(1, C), impl=i),
    ),
    refusal(
        TypeError,
        "bias: expected float32, float16, bfloat16 or float64, got int32",
        lambda i: norm(bias=make_x(C).int(), impl=i),
    ),
    refusal(
        ValueError,
        r"bias: expected the device of x \(cpu\), got meta",
        lambda i: norm(bias=make_x(C, device="meta"), impl=i),
    ),
    refusal(ValueError, r"eps: expected a finite number > 0, got 0", lambda i: norm(eps=0, impl=i)),
    refusal(ValueError, r"eps: expected a finite number > 0, got -1e-05", lambda i: norm(eps=-1e-5, impl=i)),
    refusal(ValueError, r"eps: expected a finite number > 0, got nan", lambda i: norm(eps=float("nan"), impl=i)),
    refusal(TypeError, r"eps: expected a finite number > 0, got str '1'", lambda i: norm(eps="1", impl=i)),
    refusal(
        ValueError,
        r"x: expected at least one channel, got shape \[2, 9, 0\]",
        lambda i: norm(make_x(B, N, 0), make_x(B, N, 0), impl=i),
    ),
    refusal(ValueError, r"size: sizes are constants", lambda i: norm(size=make_size().requires_grad_(), impl=i)),
    # source_map (plain indexing: no implementations to choose from)
    refusal(ValueError, "matchings: expected at least one plan, got none", lambda i: source_map([])),
    refusal(TypeError, "matchings: expected a sequence of plans, got Matching", lambda i: source_map(make_plan())),
    refusal(TypeError, "matchings: expected a sequence of plans, got NoneType", lambda i: source_map(None)),  # type: ignore[arg-type]
    refusal(
        TypeError,
        r"matchings\[1\]: expected a Matching from bipartite_soft_matching, got Tensor",
        lambda i: source_map([make_plan(), make_x()]),
    ),  # type: ignore[list-item]
    refusal(
        ValueError,
        r"matchings\[1\]: expected a plan of the 6 tokens of 2 images .* got a plan of 9 tokens",
        lambda i: source_map([make_plan(), make_plan()]),
    ),
    refusal(
        ValueError,
        r"matchings\[1\]: .* of 2 images .* got a plan of 6 tokens of 3 images",
        lambda i: source_map([make_plan(), make_plan(3, LEFT, 1)]),
    ),
]


@pytest.mark.parametrize(("error", "sentence", "call"), CASES)
def test_one_sentence_names_the_argument(
    error: type[Exception], sentence: str, call: Callable[[str], Any], impl: str
) -> None:
    check_refusal(error, sentence, lambda: call(impl))
