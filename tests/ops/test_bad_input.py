"""Bad and borderline input, decided case by case: one sentence that names the argument, or the documented result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alt_kernels import (
    Matching,
    bipartite_soft_matching,
    bipartite_soft_matching_from_keys,
    cosine_gumbel_assign,
    merge_layer_norm,
    proportional_attention,
    source_map,
    testing,
    unmerge,
    weighted_merge,
)

B, N, C, R = 2, 9, 4, 3
LEFT = N - R


def _x(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape or (B, N, C)).to(device, dtype)


def _plan(batch: int = B, tokens: int = N, r: int = R) -> Matching:
    return testing.random_plan(batch, tokens, r, 0)


def _size(batch: int = B, tokens: int = N) -> Tensor:
    return testing.random_size(batch, tokens, 0)


def match(metric: Any = None, r: Any = R, **options: Any) -> Any:
    return bipartite_soft_matching(_x() if metric is None else metric, r, **options)


def match_keys(k: Any = None, r: Any = R, **options: Any) -> Any:
    return bipartite_soft_matching_from_keys(_x(B, 2, N, C) if k is None else k, r, **options)


def merge(x: Any = None, plan: Any = None, size: Any = None, **options: Any) -> Any:
    return weighted_merge(_x() if x is None else x, _plan() if plan is None else plan, size, **options)


def spread(x: Any = None, plan: Any = None, **options: Any) -> Any:
    return unmerge(_x(B, LEFT, C) if x is None else x, _plan() if plan is None else plan, **options)


def norm(x: Any = None, residual: Any = None, plan: Any = None, **options: Any) -> Any:
    arguments: dict[str, Any] = {"size": None, "weight": None, "bias": None, **options}
    return merge_layer_norm(
        _x() if x is None else x,
        _x() if residual is None else residual,
        _plan() if plan is None else plan,
        **arguments,
    )


def attend(q: Any = None, k: Any = None, v: Any = None, size: Any = None, **options: Any) -> Any:
    def heads(t: Any) -> Any:
        return _x(B, 2, N, C) if t is None else t

    return proportional_attention(heads(q), heads(k), heads(v), size, **options)


def assign(x: Any = None, entities: Any = None, **options: Any) -> Any:
    return cosine_gumbel_assign(_x(5, C) if x is None else x, _x(7, C) if entities is None else entities, **options)


def _replaced(field: str, change: Callable[[Tensor], Tensor]) -> Matching:
    plan = _plan()
    return plan._replace(**{field: change(getattr(plan, field).clone())})


def _case(error: type[Exception], sentence: str, call: Callable[[str], Any]) -> Any:
    return pytest.param(error, sentence, call, id=sentence.replace("\\", "")[:48])


META = "meta"
# The sentence, from its first letter: the argument, what was expected, what came.
CASES = [
    # bipartite_soft_matching_from_keys
    _case(TypeError, r"k: expected a tensor \[B, H, N, D\], got list", lambda i: match_keys([[1.0]], impl=i)),
    _case(
        ValueError,
        r"k: expected 4 dimensions \[B, H, N, D\], got shape \[2, 9, 4\]",
        lambda i: match_keys(_x(B, N, C), impl=i),
    ),
    _case(
        TypeError,
        "k: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: match_keys(_x(B, 2, N, C).long(), impl=i),
    ),
    _case(
        ValueError,
        r"k: expected at least one head, got shape \[2, 0, 9, 4\]",
        lambda i: match_keys(_x(B, 0, N, C), impl=i),
    ),
    _case(
        ValueError,
        r"k: expected at least one channel, got shape \[2, 2, 9, 0\]",
        lambda i: match_keys(_x(B, 2, N, 0), impl=i),
    ),
    _case(
        ValueError,
        "r: expected at most 4, half of the 8 unprotected tokens of k, got 5",
        lambda i: match_keys(r=5, impl=i),
    ),
    _case(TypeError, "r: expected an int >= 0, got bool True", lambda i: match_keys(r=True, impl=i)),
    _case(
        ValueError,
        "num_protected: expected at most the 9 tokens of k, got 10",
        lambda i: match_keys(num_protected=10, impl=i),
    ),
    # bipartite_soft_matching
    _case(TypeError, r"metric: expected a tensor \[B, N, C\], got list", lambda i: match([[1.0]], impl=i)),
    _case(
        ValueError, r"metric: expected 3 dimensions \[B, N, C\], got shape \[9, 4\]", lambda i: match(_x(N, C), impl=i)
    ),
    _case(
        TypeError,
        "metric: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: match(_x().long(), impl=i),
    ),
    _case(
        TypeError,
        "metric: expected float32, float16, bfloat16 or float64, got complex64",
        lambda i: match(_x().to(torch.complex64), impl=i),
    ),
    _case(
        ValueError,
        r"metric: expected at least one channel, got shape \[2, 9, 0\]",
        lambda i: match(_x(B, N, 0), impl=i),
    ),
    _case(ValueError, "r: expected an int >= 0, got -1", lambda i: match(r=-1, impl=i)),
    _case(
        ValueError,
        "r: expected at most 4, half of the 8 unprotected tokens of metric, got 5",
        lambda i: match(r=5, impl=i),
    ),
    _case(
        ValueError,
        "r: expected at most 0, half of the 0 unprotected",
        lambda i: match(_x(B, 0, C), r=1, num_protected=0, impl=i),
    ),
    _case(
        ValueError, "r: expected at most 0, half of the 1 unprotected", lambda i: match(r=1, num_protected=8, impl=i)
    ),
    _case(TypeError, "r: expected an int >= 0, got bool True", lambda i: match(r=True, impl=i)),
    _case(TypeError, "r: expected an int >= 0, got float 2.0", lambda i: match(r=2.0, impl=i)),
    _case(
        TypeError, "r: expected an int >= 0, got NoneType None", lambda i: bipartite_soft_matching(_x(), None, impl=i)
    ),  # type: ignore[arg-type]
    _case(ValueError, "num_protected: expected an int >= 0, got -1", lambda i: match(num_protected=-1, impl=i)),
    _case(
        ValueError,
        "num_protected: expected at most the 9 tokens of metric, got 10",
        lambda i: match(num_protected=10, impl=i),
    ),
    _case(
        ValueError,
        "num_protected: expected at most the 0 tokens of metric, got 1",
        lambda i: match(_x(B, 0, C), r=0, impl=i),
    ),
    _case(
        TypeError, "num_protected: expected an int >= 0, got bool False", lambda i: match(num_protected=False, impl=i)
    ),
    # weighted_merge
    _case(
        ValueError,
        r"x: expected 3 dimensions \[B, N, C\], got shape \[2, 9, 4, 1\]",
        lambda i: merge(_x(B, N, C, 1), impl=i),
    ),
    _case(
        TypeError, "x: expected float32, float16, bfloat16 or float64, got bool", lambda i: merge(_x().bool(), impl=i)
    ),
    _case(
        TypeError,
        "matching: expected a Matching from bipartite_soft_matching, got int",
        lambda i: merge(plan=3, impl=i),
    ),
    _case(
        TypeError,
        "matching: expected a Matching from bipartite_soft_matching, got tuple",
        lambda i: merge(plan=(_x(), _x()), impl=i),
    ),
    _case(
        TypeError,
        "matching.indices: expected int32, got int64",
        lambda i: merge(plan=_replaced("indices", Tensor.long), impl=i),
    ),
    _case(
        TypeError,
        "matching.offsets: expected int32, got float32",
        lambda i: merge(plan=_replaced("offsets", Tensor.float), impl=i),
    ),
    _case(
        ValueError,
        r"matching.output_row: expected 2 dimensions, got shape \[18\]",
        lambda i: merge(plan=_replaced("output_row", Tensor.flatten), impl=i),
    ),
    _case(
        ValueError,
        r"matching: indices \[2, 9\], offsets \[2, 7\] and output_row \[2, 8\] do not belong to one plan",
        lambda i: merge(plan=_replaced("output_row", lambda t: t[:, :-1]), impl=i),
    ),
    _case(
        ValueError,
        r"matching: indices \[2, 9\], offsets \[2, 0\] .* do not belong to one plan",
        lambda i: merge(plan=_replaced("offsets", lambda t: t[:, :0]), impl=i),
    ),
    _case(
        ValueError,
        r"matching: indices \[2, 9\], offsets \[2, 14\] .* do not belong to one plan",
        lambda i: merge(plan=_replaced("offsets", lambda t: torch.cat([t, t], 1)), impl=i),
    ),
    _case(
        ValueError,
        r"matching: expected a plan of 9 input tokens as in x \[2, 9, 4\], got a plan of 8",
        lambda i: merge(plan=_plan(tokens=8), impl=i),
    ),
    _case(
        ValueError, "matching: expected a plan of 2 images as in x, got 3", lambda i: merge(plan=_plan(batch=3), impl=i)
    ),
    _case(
        ValueError,
        "matching: expected the device of x",
        lambda i: merge(plan=Matching(*(t.to(META) for t in _plan())), impl=i),
    ),
    _case(
        ValueError,
        "matching.offsets: expected the device of matching.indices",
        lambda i: merge(plan=_replaced("offsets", lambda t: t.to(META)), impl=i),
    ),
    _case(
        ValueError,
        "size: sizes are constants of the operation and get no gradient, got requires_grad=True",
        lambda i: merge(size=_size().requires_grad_(), impl=i),
    ),
    _case(TypeError, r"size: expected a float32 tensor \[B, N\] or None, got float", lambda i: merge(size=1.0, impl=i)),
    _case(TypeError, "size: expected float32, got float64", lambda i: merge(size=_size().double(), impl=i)),
    _case(TypeError, "size: expected float32, got bfloat16", lambda i: merge(size=_size().bfloat16(), impl=i)),
    _case(TypeError, "size: expected float32, got int64", lambda i: merge(size=_size().long(), impl=i)),
    _case(
        ValueError,
        r"size: expected shape \[2, 9\] \(one size for each token of x\), got \[2, 9, 1\]",
        lambda i: merge(size=_size()[..., None], impl=i),
    ),
    _case(
        ValueError, r"size: expected shape \[2, 9\] .* got \[2, 6\]", lambda i: merge(size=_size(tokens=LEFT), impl=i)
    ),
    _case(
        ValueError, r"size: expected the device of x \(cpu\), got meta", lambda i: merge(size=_size().to(META), impl=i)
    ),
    # unmerge
    _case(
        ValueError,
        r"matching: expected a plan of 9 output rows as in x \[2, 9, 4\], got a plan of 6",
        lambda i: spread(_x(), impl=i),
    ),
    _case(ValueError, "x: expected 3 dimensions .* got shape", lambda i: spread(_x(B, LEFT), impl=i)),
    # merge_layer_norm
    _case(
        ValueError,
        r"residual: expected shape \[2, 9, 4\] \(as x\), got \[2, 9, 5\]",
        lambda i: norm(residual=_x(B, N, 5), impl=i),
    ),
    _case(TypeError, "residual: expected a tensor .* got int", lambda i: norm(residual=0, impl=i)),
    _case(
        ValueError,
        r"residual: expected the device of x \(cpu\), got meta",
        lambda i: norm(residual=_x(device=META), impl=i),
    ),
    _case(
        ValueError,
        r"weight: expected shape \[4\] \(one value for each channel of x\), got \[5\]",
        lambda i: norm(weight=_x(5), impl=i),
    ),
    _case(
        ValueError, r"weight: expected 1 dimensions \[C\], got shape \[1, 4\]", lambda i: norm(weight=_x(1, C), impl=i)
    ),
    _case(
        TypeError,
        "bias: expected float32, float16, bfloat16 or float64, got int32",
        lambda i: norm(bias=_x(C).int(), impl=i),
    ),
    _case(
        ValueError, r"bias: expected the device of x \(cpu\), got meta", lambda i: norm(bias=_x(C, device=META), impl=i)
    ),
    _case(ValueError, r"eps: expected a finite number > 0, got 0", lambda i: norm(eps=0, impl=i)),
    _case(ValueError, r"eps: expected a finite number > 0, got -1e-05", lambda i: norm(eps=-1e-5, impl=i)),
    _case(ValueError, r"eps: expected a finite number > 0, got nan", lambda i: norm(eps=float("nan"), impl=i)),
    _case(TypeError, r"eps: expected a finite number > 0, got str '1'", lambda i: norm(eps="1", impl=i)),
    _case(
        ValueError,
        r"x: expected at least one channel, got shape \[2, 9, 0\]",
        lambda i: norm(_x(B, N, 0), _x(B, N, 0), impl=i),
    ),
    _case(ValueError, r"size: sizes are constants", lambda i: norm(size=_size().requires_grad_(), impl=i)),
    # source_map (plain indexing: no implementations to choose from)
    _case(ValueError, "matchings: expected at least one plan, got none", lambda i: source_map([])),
    _case(TypeError, "matchings: expected a sequence of plans, got Matching", lambda i: source_map(_plan())),
    _case(TypeError, "matchings: expected a sequence of plans, got NoneType", lambda i: source_map(None)),  # type: ignore[arg-type]
    _case(
        TypeError,
        r"matchings\[1\]: expected a Matching from bipartite_soft_matching, got Tensor",
        lambda i: source_map([_plan(), _x()]),
    ),  # type: ignore[list-item]
    _case(
        ValueError,
        r"matchings\[1\]: expected a plan of the 6 tokens of 2 images .* got a plan of 9 tokens",
        lambda i: source_map([_plan(), _plan()]),
    ),
    _case(
        ValueError,
        r"matchings\[1\]: .* of 2 images .* got a plan of 6 tokens of 3 images",
        lambda i: source_map([_plan(), _plan(3, LEFT, 1)]),
    ),
    # proportional_attention
    _case(
        ValueError, r"q: expected 4 dimensions \[B, H, M, D\], got shape \[2, 9, 4\]", lambda i: attend(_x(), impl=i)
    ),
    _case(
        TypeError,
        r"k: expected the dtype of q \(float32\), got bfloat16",
        lambda i: attend(k=_x(B, 2, N, C, dtype=torch.bfloat16), impl=i),
    ),
    _case(
        TypeError,
        r"v: expected the dtype of q \(float32\), got float64",
        lambda i: attend(v=_x(B, 2, N, C, dtype=torch.float64), impl=i),
    ),
    _case(
        ValueError,
        r"k: expected shape \[2, 2, 9, 4\] .* got \[2, 2, 9, 5\]",
        lambda i: attend(k=_x(B, 2, N, 5), impl=i),
    ),
    _case(
        ValueError,
        r"v: expected shape \[2, 2, 9, 4\] .* got \[2, 2, 8, 4\]",
        lambda i: attend(v=_x(B, 2, 8, C), impl=i),
    ),
    _case(ValueError, r"k: expected shape .* got \[2, 3, 9, 4\]", lambda i: attend(k=_x(B, 3, N, C), impl=i)),
    _case(
        ValueError,
        r"k: expected the device of q \(cpu\), got meta",
        lambda i: attend(k=_x(B, 2, N, C, device=META), impl=i),
    ),
    _case(
        ValueError,
        r"q: expected a head dimension of at least 1, got shape \[2, 2, 9, 0\]",
        lambda i: attend(*(_x(B, 2, N, 0),) * 3, impl=i),
    ),
    _case(
        ValueError,
        r"size: expected shape \[2, 9\] \(one size for each token of k\), got \[2, 8\]",
        lambda i: attend(size=_size(tokens=8), impl=i),
    ),
    _case(ValueError, "size: sizes are constants", lambda i: attend(size=_size().requires_grad_(), impl=i)),
    _case(TypeError, "size: expected float32, got bool", lambda i: attend(size=_size().bool(), impl=i)),
    _case(ValueError, "scale: expected a finite number, got inf", lambda i: attend(scale=float("inf"), impl=i)),
    _case(ValueError, "scale: expected a finite number, got nan", lambda i: attend(scale=float("nan"), impl=i)),
    _case(TypeError, "scale: expected a finite number, got Tensor", lambda i: attend(scale=torch.tensor(1.0), impl=i)),
    # cosine_gumbel_assign
    _case(
        TypeError,
        r"x: expected a tensor \[..., M, d\], got NoneType",
        lambda i: cosine_gumbel_assign(None, _x(7, C), impl=i),
    ),  # type: ignore[arg-type]
    _case(
        ValueError, r"x: expected at least 2 dimensions \[..., M, d\], got shape \[4\]", lambda i: assign(_x(C), impl=i)
    ),
    _case(
        TypeError,
        "x: expected float32, float16, bfloat16 or float64, got uint8",
        lambda i: assign(_x(5, C).byte(), impl=i),
    ),
    _case(
        ValueError,
        r"x: expected rows of 4 channels as in entities, got shape \[5, 3\]",
        lambda i: assign(_x(5, 3), impl=i),
    ),
    _case(
        ValueError,
        r"entities: expected 2 dimensions \[K, d\], got shape \[1, 7, 4\]",
        lambda i: assign(entities=_x(1, 7, C), impl=i),
    ),
    _case(
        ValueError,
        r"entities: expected at least one entity and one channel, got shape \[0, 4\]",
        lambda i: assign(entities=_x(0, C), impl=i),
    ),
    _case(
        ValueError,
        r"entities: expected at least one entity and one channel, got shape \[7, 0\]",
        lambda i: assign(_x(5, 0), _x(7, 0), impl=i),
    ),
    _case(
        ValueError,
        r"entities: expected the device of x \(cpu\), got meta",
        lambda i: assign(entities=_x(7, C, device=META), impl=i),
    ),
    *(
        _case(ValueError, f"tau: expected a finite number > 0, got {shown}", lambda i, t=value: assign(tau=t, impl=i))
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
        _case(ValueError, f"tau:? .*> 0, got {value:g}", lambda i, t=value: assign(tau=torch.tensor(t), impl=i))
        for value in (0.0, -2.0, float("nan"), float("inf"))
    ),
    _case(ValueError, "tau:? .*> 0, got", lambda i: assign(tau=1e-50, impl=i)),  # zero in the float32 of the logits
    _case(TypeError, "tau: expected a finite number > 0, got bool True", lambda i: assign(tau=True, impl=i)),
    _case(TypeError, "tau: expected a finite number > 0, got str 'x'", lambda i: assign(tau="x", impl=i)),
    _case(
        TypeError,
        "tau: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: assign(tau=torch.tensor(1), impl=i),
    ),
    _case(
        ValueError,
        r"tau: expected a number or a 0-d tensor, got shape \[1\]",
        lambda i: assign(tau=torch.ones(1), impl=i),
    ),
    _case(
        ValueError,
        r"tau: expected the device of x \(cpu\), got meta",
        lambda i: assign(tau=torch.ones((), device=META), impl=i),
    ),
    _case(
        ValueError, "noise: expected 'gumbel', None or a tensor, got 'normal'", lambda i: assign(noise="normal", impl=i)
    ),
    _case(ValueError, "noise: expected 'gumbel', None or a tensor, got True", lambda i: assign(noise=True, impl=i)),
    _case(ValueError, r"noise: expected shape \[5, 7\] .* got \[7, 5\]", lambda i: assign(noise=_x(7, 5), impl=i)),
    _case(
        ValueError,
        "noise: a constant of the operation that gets no gradient, got requires_grad=True",
        lambda i: assign(noise=_x(5, 7).requires_grad_(), impl=i),
    ),
    _case(
        TypeError,
        "noise: expected float32, float16, bfloat16 or float64, got int64",
        lambda i: assign(noise=_x(5, 7).long(), impl=i),
    ),
    _case(
        ValueError,
        r"noise: expected the device of x \(cpu\), got meta",
        lambda i: assign(noise=_x(5, 7, device=META), impl=i),
    ),
    _case(TypeError, "hard: expected True or False, got str 'no'", lambda i: assign(hard="no", impl=i)),
    _case(TypeError, "seed: expected a 0-d int64 tensor or None, got int", lambda i: assign(seed=3, impl=i)),
    _case(
        TypeError, "seed: expected a 0-d int64 tensor, got int32", lambda i: assign(seed=torch.tensor(3).int(), impl=i)
    ),
    _case(
        ValueError,
        r"seed: expected a 0-d int64 tensor, got shape \[1\]",
        lambda i: assign(seed=torch.tensor([3]), impl=i),
    ),
    _case(
        ValueError,
        r"seed: expected the device of x \(cpu\), got meta",
        lambda i: assign(seed=torch.tensor(3, device=META), impl=i),
    ),
    _case(
        ValueError,
        "seed: only noise='gumbel' draws noise from a seed",
        lambda i: assign(noise=None, seed=torch.tensor(3), impl=i),
    ),
    _case(
        ValueError,
        "seed: only noise='gumbel' draws noise from a seed",
        lambda i: assign(noise=_x(5, 7), seed=torch.tensor(3), impl=i),
    ),
]


def _one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text.strip(), text
    assert len(text) < 300, text
    return text


@pytest.mark.parametrize(("error", "sentence", "call"), CASES)
def test_one_sentence_names_the_argument(
    error: type[Exception], sentence: str, call: Callable[[str], Any], impl: str
) -> None:
    with pytest.raises(error, match=f"^{sentence}") as caught:
        call(impl)
    _one_sentence(caught.value)


IMPLS = {
    "match": match,
    "merge": merge,
    "spread": spread,
    "norm": norm,
    "attend": attend,
    "assign": assign,
}


@pytest.mark.parametrize("name", IMPLS)
@pytest.mark.parametrize(
    ("impl", "error", "sentence"),
    [
        ("cutlass", ValueError, "impl: expected one of 'auto', 'reference', 'cpp', 'triton', 'cuda', got 'cutlass'"),
        (None, ValueError, "impl: expected one of .*, got None"),
        ("triton", RuntimeError, "impl: 'triton' is not available"),
        ("cuda", RuntimeError, "impl: 'cuda' is not available"),
    ],
)
def test_an_implementation_that_cannot_run_raises(name: str, impl: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{sentence}") as caught:
        IMPLS[name](impl=impl)
    _one_sentence(caught.value)


def test_cpp_does_not_take_other_devices() -> None:
    with pytest.raises(ValueError, match=r"^impl: 'cpp' runs on CPU tensors, got a tensor on meta"):
        match(_x(device=META), impl="cpp")
    with pytest.raises(ValueError, match=r"^impl: 'cpp' runs on CPU tensors, got a tensor on meta"):
        attend(*(_x(B, 2, N, C, device=META),) * 3, impl="cpp")


def test_cpp_raises_where_the_library_is_switched_off() -> None:
    """Attention has PyTorch's CPU kernel beside ours, so it runs all the same; nothing else falls back."""
    script = """
import torch, alt_kernels as a
x, plan = torch.randn(2, 9, 4), a.bipartite_soft_matching(torch.randn(2, 9, 4), 3)
calls = {
    "match": lambda: a.bipartite_soft_matching(x, 3, impl="cpp"),
    "match keys": lambda: a.bipartite_soft_matching_from_keys(x[:, None], 3, impl="cpp"),
    "merge": lambda: a.weighted_merge(x, plan, impl="cpp"),
    "spread": lambda: a.unmerge(x[:, :6], plan, impl="cpp"),
    "norm": lambda: a.merge_layer_norm(x, x, plan, None, None, None, impl="cpp"),
    "assign": lambda: a.cosine_gumbel_assign(x, x[0], impl="cpp"),
}
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        assert str(error) == "impl: 'cpp' is not available: switched off by ALT_KERNELS_DISABLE_CPP=1", error
    else:
        raise SystemExit(name + " ran")
q = x[:, None]
assert torch.equal(a.proportional_attention(q, q, q, impl="cpp"), a.proportional_attention(q, q, q))
assert not a.backends()["cpp"].available
"""
    environment = {**os.environ, "ALT_KERNELS_DISABLE_CPP": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_numbers_of_numpy_are_numbers() -> None:
    """As ``patch_clip`` takes them; NumPy's bool is no number."""
    x = torch.randn(1, 9, 4)
    plan = bipartite_soft_matching(x, np.int64(3), num_protected=np.uint8(1))
    testing.assert_same_plan(plan, bipartite_soft_matching(x, 3))
    keys = x[:, None]
    testing.assert_same_plan(bipartite_soft_matching_from_keys(keys, np.int32(3)), plan)
    scaled = proportional_attention(keys, keys, keys, scale=np.float32(0.5))
    testing.assert_same_bits(scaled, proportional_attention(keys, keys, keys, scale=0.5))
    for wrong in (np.True_, np.float64(2.0), np.array([3])):
        with pytest.raises(TypeError, match="r: expected an int >= 0, got"):
            bipartite_soft_matching(x, wrong)
    with pytest.raises(TypeError, match="scale: expected a finite number, got"):
        proportional_attention(keys, keys, keys, scale=np.True_)
