"""The operations with small valid arguments, of which a test replaces one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    testing,
    unmerge,
    weighted_merge,
)

B, N, C, R = 2, 9, 4, 3
LEFT = N - R


def make_x(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape or (B, N, C)).to(device, dtype)


def make_plan(batch: int = B, tokens: int = N, r: int = R) -> Matching:
    return testing.random_plan(batch, tokens, r, 0)


def make_size(batch: int = B, tokens: int = N) -> Tensor:
    return testing.random_size(batch, tokens, 0)


def match(metric: Any = None, r: Any = R, **options: Any) -> Any:
    return bipartite_soft_matching(make_x() if metric is None else metric, r, **options)


def match_keys(k: Any = None, r: Any = R, **options: Any) -> Any:
    return bipartite_soft_matching_from_keys(make_x(B, 2, N, C) if k is None else k, r, **options)


def merge(x: Any = None, plan: Any = None, size: Any = None, **options: Any) -> Any:
    return weighted_merge(make_x() if x is None else x, make_plan() if plan is None else plan, size, **options)


def spread(x: Any = None, plan: Any = None, **options: Any) -> Any:
    return unmerge(make_x(B, LEFT, C) if x is None else x, make_plan() if plan is None else plan, **options)


def norm(x: Any = None, residual: Any = None, plan: Any = None, **options: Any) -> Any:
    arguments: dict[str, Any] = {"size": None, "weight": None, "bias": None, **options}
    return merge_layer_norm(
        make_x() if x is None else x,
        make_x() if residual is None else residual,
        make_plan() if plan is None else plan,
        **arguments,
    )


def attend(q: Any = None, k: Any = None, v: Any = None, size: Any = None, **options: Any) -> Any:
    def heads(t: Any) -> Any:
        return make_x(B, 2, N, C) if t is None else t

    return proportional_attention(heads(q), heads(k), heads(v), size, **options)


def assign(x: Any = None, entities: Any = None, **options: Any) -> Any:
    return cosine_gumbel_assign(
        make_x(5, C) if x is None else x, make_x(7, C) if entities is None else entities, **options
    )


def replace_field(field: str, change: Callable[[Tensor], Tensor]) -> Matching:
    plan = make_plan()
    return plan._replace(**{field: change(getattr(plan, field).clone())})


def refusal(error: type[Exception], sentence: str, call: Callable[[str], Any]) -> Any:
    return pytest.param(error, sentence, call, id=sentence.replace("\\", "")[:48])


def check_refusal(error: type[Exception], sentence: str, call: Callable[[], Any]) -> None:
    """The call raises ``error``: one short sentence that begins with the regular expression ``sentence``."""
    with pytest.raises(error, match=f"^{sentence}") as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text.strip(), text
    assert 0 < len(text) < 300, text
