"""Random shapes, layouts and configurations for the kernels' tests; few in a run, thousands where they are asked for.

``HYPOTHESIS_PROFILE=explore pytest tests/triton/test_random_merging.py`` draws thousands of new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

Draw = Callable[..., Any]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EVERY_RUN = 100  # the examples of hypothesis' own default, which the profile of every run leaves alone


def examples(count: int) -> settings:
    """``count`` of them in every run; as many as the profile says where that asks for more than its default."""
    asked = settings().max_examples
    # Fixtures hold for all examples of a test: the guards of each are looked at when the last is done.
    return settings(
        max_examples=count if asked <= EVERY_RUN else asked,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "turned": lambda x: x.mT.contiguous().mT,
    "window": lambda x: window(x),
    "spread": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "rows apart": lambda x: torch.stack([torch.full_like(x, torch.nan), x], -2)[..., 1, :],
    "batch last": lambda x: x.movedim(0, -2).contiguous().movedim(-2, 0),
}


def window(x: Tensor) -> Tensor:
    """Inside a tensor of NaN that is larger on every side, at an address that is a multiple of nothing."""
    around = torch.full([n + 3 for n in x.shape], torch.nan, dtype=x.dtype, device=x.device)
    inner = around[tuple(slice(1, n + 1) for n in x.shape)]
    return inner.copy_(x)


layouts = st.sampled_from(sorted(LAYOUTS))


@st.composite
def laid(draw: Draw, x: Tensor) -> Tensor:
    """The values of ``x`` in any layout; now and then the first image for all of them, with a stride of zero."""
    if x.shape[0] > 1 and draw(st.integers(0, 5)) == 0:
        return LAYOUTS[draw(layouts)](x[:1]).expand(x.shape)
    return LAYOUTS[draw(layouts)](x)


@st.composite
def token_sizes(draw: Draw, batch: int, tokens: int, *, whole: bool = False) -> Tensor | None:
    """None; whole numbers, zeros among them; halves; far too large ones; ones. With any step between them."""
    kind = draw(st.sampled_from(["none", "whole", "zeros", "ones"] + ([] if whole else ["halves", "huge"])))
    if kind == "none":
        return None
    size = torch.randint(1, 9, (batch, tokens)).float()
    if kind == "zeros":
        size = torch.where(torch.rand(batch, tokens) < draw(st.sampled_from([0.1, 0.6, 1.0])), 0.0, size)
    size = {"ones": torch.ones_like(size), "halves": size / 2, "huge": size * 2.0**40}.get(kind, size)
    return LAYOUTS[draw(layouts)](size)


@st.composite
def cut(draw: Draw, most: int) -> tuple[int, int, int]:
    """(tokens, r, num_protected): the ends of each range as often as all between."""
    tokens = draw(st.integers(1, most))
    protected = draw(st.one_of(st.sampled_from([0, 1, tokens]), st.integers(0, tokens)))
    limit = (tokens - protected) // 2
    return tokens, draw(st.one_of(st.sampled_from([min(1, limit), limit]), st.integers(0, limit))), protected
