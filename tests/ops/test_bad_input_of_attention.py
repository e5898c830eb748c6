"""Bad input of attention and assignment: one sentence that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alt_kernels import cosine_gumbel_assign

from .small_calls import B, C, N, assign, attend, check_refusal, make_size, make_x, refusal

# The sentence, from its first letter: the argument, what was expected, what came.
CASES = [
    # proportional_attention
    refusal(
        ValueError,
        r"q: expected 4 dimensions \[B, H, M, D\], got shape \[2, 9, 4\]",
        lambda i: attend(make_x(), impl=i),
    ),
    refusal(
        TypeError,
        r"k: expected the dtype of q \(float32\), got bfloat16",
        lambda i: attend(k=make_x(B, 2, N, C, dtype=torch.bfloat16), impl=i),
    ),
    refusal(
        TypeError,
        r"v: expected the dtype of q \(float32\), got float64",
        lambda i: attend(v=make_x(B, 2, N, C, dtype=torch.float64), impl=i),
    ),
    refusal(
        ValueError,
        r"k: expected shape \[2, 2, 9, 4\] .* got \[2, 2, 9, 5\]",
        lambda i: attend(k=make_x(B, 2, N, 5), impl=i),
    ),
    refusal(
        ValueError,
        r"v: expected shape \[2, 2, 9, 4\] .* got \[2, 2, 8, 4\]",
        lambda i: attend(v=make_x(B, 2, 8, C), impl=i),
    ),
    refusal(ValueError, r"k: expected shape .* got \[2, 3, 9, 4\]", lambda i: attend(k=make_x(B, 3, N, C), impl=i)),
    refusal(
        ValueError,
        r"k: expected the device of q \(cpu\), got meta",
        lambda i: attend(k=make_x(B, 2, N, C, device="meta"), impl=i),
    ),
    refusal(
        ValueError,
        r"q: expected a head dimension of at least 1, got shape \[2, 2, 9, 0\]",
        lambda i: attend(*(make_x(B, 2, N, 0),) * 3, impl=i),
    ),
    refusal(
        ValueError,
        r"size: expected shape \[2, 9\] \(one size for each token of k\), got \[2, 8\]",
        lambda i: attend(size=make_size(tokens=8), impl=i),
    ),
    refusal(ValueError, "size: sizes are constants", lambda i: attend(size=make_size().requires_grad_(), impl=i)),
    refusal(TypeError, "size: expected float32, got bool", lambda i: attend(size=make_size().bool(), impl=i)),
    refusal(ValueError, "scale: expected a finite number, got inf", lambda i: attend(scale=float("inf"), impl=i)),
    refusal(ValueError, "scale: expected a finite number, got nan", lambda i: attend(scale=float("nan"), impl=i)),
    refusal(
        TypeError, "scale: expected a finite number, got Tensor", lambda i: attend(scale=torch.tensor(1.0), impl=i)
    ),
    # cosine_gumbel_assign
    refusal(
        TypeError,
        r"x: expected a tensor \[..., M, d\], got NoneType",
        lambda i: cosine_gumbel_assign(None, make_x(7, C), impl=i),
    ),  # type: ignore[arg-type]
    refusal(
        ValueError,
        r"x: expected at least 2 dimensions \[..., M, d\], got shape \[4\]",
        lambda i: assign(make_x(C), impl=i),
    ),
    refusal(
        TypeError,
        "x: expected float32, float16, bfloat16 or float64, got uint8",
        lambda i: assign(make_x(5, C).byte(), impl=i),
    ),
    refusal(
        ValueError,
        r"x: expected rows of 4 channels as in entities, got shape \[5, 3\]",
        lambda i: assign(make_x(5, 3), impl=i),
    ),
    refusal(
        ValueError,
        r"entities: expected 2 dimensions \[K, d\], got shape \[1, 7, 4\]",
        lambda i: assign(entities=make_x(1, 7, C), impl=i),
    ),
    refusal(
        ValueError,
        r"entities: expected at least one entity and one channel, got shape \[0, 4\]",
        lambda i: assign(entities=make_x(0, C), impl=i),
    ),
    refusal(
        ValueError,
        r"entities: expected at least one entity and one channel, got shape \[7, 0\]",
        lambda i: assign(make_x(5, 0), make_x(7, 0), impl=i),
    ),
    refusal(
        ValueError,
        r"entities: expected the device of x \(cpu\), got meta",
        lambda i: assign(entities=make_x(7, C, device="meta"), impl=i),
    ),
    *(
        refusal(ValueError, f"tau: expected a finite number > 0, got {shown}", lambda i, t=value: assign(tau=t, impl=i))
        for value, shown in (
            (0, "0.0"),
            (0.0, "0.0"),
            (-1.0, "-1.0"),
            (float("nan"), "nan"),
            (float("inf"), "inf"),
            (10**400, "inf"),
        )
    ),
    *(
        refusal(ValueError, f"tau:? .*> 0, got {value:g}", lambda i, t=value: assign(tau=torch.tensor(t), impl=i))
        for value in (0.0, -2.0, float("nan"), float("inf"))
    ),
    refusal(ValueError, "tau:? .*> 0, got", lambda i: assign(tau=1e-50, impl=i)),  # zero in the float32 of the logits
    refusal(TypeError, "tau: expected a finite number > 0, got bool True", lambda i: assign(tau=True, impl=i)),
    refusal(TypeError, "tau: expected a finite number > 0, got str 'x'", lambda i: assign(tau="x", impl=i)),
    refusal(
        TypeError,
        "tau: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: assign(tau=torch.tensor(1), impl=i),
    ),
    refusal(
        ValueError,
        r"tau: expected a number or a 0-d tensor, got shape \[1\]",
        lambda i: assign(tau=torch.ones(1), impl=i),
    ),
    refusal(
        ValueError,
        r"tau: expected the device of x \(cpu\), got meta",
        lambda i: assign(tau=torch.ones((), device="meta"), impl=i),
    ),
    refusal(
        ValueError, "noise: expected 'gumbel', None or a tensor, got 'normal'", lambda i: assign(noise="normal", impl=i)
    ),
    refusal(ValueError, "noise: expected 'gumbel', None or a tensor, got True", lambda i: assign(noise=True, impl=i)),
    refusal(
        ValueError, r"noise: expected shape \[5, 7\] .* got \[7, 5\]", lambda i: assign(noise=make_x(7, 5), impl=i)
    ),
    refusal(
        ValueError,
        "noise: a constant of the operation that gets no gradient, got requires_grad=True",
        lambda i: assign(noise=make_x(5, 7).requires_grad_(), impl=i),
    ),
    refusal(
        TypeError,
        "noise: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: assign(noise=make_x(5, 7).long(), impl=i),
    ),
    refusal(
        ValueError,
        r"noise: expected the device of x \(cpu\), got meta",
        lambda i: assign(noise=make_x(5, 7, device="meta"), impl=i),
    ),
    refusal(TypeError, "hard: expected True or False, got str 'no'", lambda i: assign(hard="no", impl=i)),
    refusal(TypeError, "seed: expected a 0-d int64 tensor or None, got int", lambda i: assign(seed=3, impl=i)),
    refusal(
        TypeError, "seed: expected a 0-d int64 tensor, got int32", lambda i: assign(seed=torch.tensor(3).int(), impl=i)
    ),
    refusal(
        ValueError,
        r"seed: expected a 0-d int64 tensor, got shape \[1\]",
        lambda i: assign(seed=torch.tensor([3]), impl=i),
    ),
    refusal(
        ValueError,
        r"seed: expected the device of x \(cpu\), got meta",
        lambda i: assign(seed=torch.tensor(3, device="meta"), impl=i),
    ),
    refusal(
        ValueError,
        "seed: only noise='gumbel' draws noise from a seed",
        lambda i: assign(noise=None, seed=torch.tensor(3), impl=i),
    ),
    refusal(
        ValueError,
        "seed: only noise='gumbel' draws noise from a seed",
        lambda i: assign(noise=make_x(5, 7), seed=torch.tensor(3), impl=i),
    ),
]


@pytest.mark.parametrize(("error", "sentence", "call"), CASES)
def test_one_sentence_names_the_argument(
    error: type[Exception], sentence: str, call: Callable[[str], Any], impl: str
) -> None:
    check_refusal(error, sentence, lambda: call(impl))
