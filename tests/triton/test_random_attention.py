"""Random shapes, layouts and sizes of proportional attention, forward and derivative."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from . import test_proportional_attention as attention
from .random_problems import DTYPES, examples, laid, token_sizes


@given(st.data())
@examples(6)
def test_attention(device: torch.device, poisoned_empty: None, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    lengths = st.one_of(st.integers(1, 40), st.sampled_from([1, 63, 64, 65, 128, 129, 197, 257]))
    batch, heads, queries, keys = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(lengths), draw(lengths)
    depth, dtype = draw(st.sampled_from([1, 2, 3, 8, 15, 16, 17, 32, 40, 64])), draw(st.sampled_from(DTYPES))
    q = draw(laid(torch.randn(batch, heads, queries, depth).to(dtype)))
    k, v = (draw(laid(torch.randn(batch, heads, keys, depth).to(dtype))) for _ in range(2))
    size = draw(token_sizes(batch, keys))
    scale = draw(st.sampled_from([depth**-0.5, -0.5, 1.0, 0.0]))
    attention.check(q.to(device), k.to(device), v.to(device), None if size is None else size.to(device), scale)
