"""Random plans, shapes, layouts, dtypes and configurations: matching, merge, unmerge, merge + LayerNorm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alt_kernels import Matching, testing
from alt_kernels.reference import bipartite_soft_matching as matching_reference
from alt_kernels.triton import bipartite_soft_matching as matching
from alt_kernels.triton import launch_configs

from . import test_merge_layer_norm as norm
from . import test_weighted_merge as merge
from .random_problems import DTYPES, Draw, cut, examples, laid, token_sizes

WIDTHS = [1, 2, 3, 7, 8, 16, 17, 33, 64, 100, 129]


@st.composite
def plans(draw: Draw) -> Matching:
    tokens, r, protected = draw(cut(24))
    destinations = draw(st.sampled_from([None, 1, 2]))
    return testing.random_plan(
        draw(st.integers(1, 3)), tokens, r, draw(st.integers(0, 99)), num_protected=protected, destinations=destinations
    )


def strided(draw: Draw, plan: Matching) -> Matching:
    return Matching(*(testing.spread(field) if draw(st.booleans()) else field for field in plan))


@given(st.data())
@examples(8)
def test_merging(device: torch.device, guarded: None, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    plan, dtype, channels = draw(plans()), draw(st.sampled_from(DTYPES)), draw(st.sampled_from(WIDTHS))
    (batch, tokens), rows = plan.indices.shape, plan.offsets.shape[1] - 1
    size = draw(token_sizes(batch, tokens))
    plan = strided(draw, plan)
    use = {"R": draw(st.sampled_from([1, 2, 8, 16])), "num_warps": 4}
    x, y = (draw(laid(torch.randn(batch, n, channels).to(dtype))) for n in (tokens, rows))
    with launch_configs.force_config("weighted_merge", use):
        merge.check_merge(x, plan, "fractional", size, device)
        merge.check_merge_backward(y, plan, size, device)
        merge.check_unmerge(y, x, plan, device)


@given(st.data())
@examples(8)
def test_merge_layer_norm(device: torch.device, guarded: None, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    plan, channels = draw(plans()), draw(st.sampled_from(WIDTHS))
    batch, tokens = plan.indices.shape
    types = st.sampled_from(DTYPES)
    dtypes = draw(types), draw(types), draw(st.one_of(st.none(), types)), draw(st.one_of(st.none(), types))
    parameters = (None if t is None else draw(laid(torch.randn(1, channels).to(t)))[0] for t in dtypes[2:])
    weight, bias = parameters
    values = {
        "x": draw(laid((1 + 2 * torch.randn(batch, tokens, channels)).to(dtypes[0]))),
        "residual": draw(laid(torch.randn(batch, tokens, channels).to(dtypes[1]))),
        "size": draw(token_sizes(batch, tokens, whole=True)),
        **strided(draw, plan)._asdict(),
        "weight": weight,
        "bias": bias,
        "eps": norm.EPS,
    }
    with (
        launch_configs.force_config("merge_layer_norm", {"R": draw(st.sampled_from([1, 2, 8])), "num_warps": 4}),
        launch_configs.force_config("merge_layer_norm_backward", {"programs": draw(st.integers(1, 9)), "num_warps": 4}),
    ):
        norm.check_forward(values, device)
        back = norm.backward_inputs(values)
        if draw(st.booleans()):
            back["grad_merged"] = torch.tensor(0.5).to(back["merged"]).expand(back["merged"].shape)
        norm.check_backward(back, device)


@given(st.data())
@examples(8)
def test_matching(device: torch.device, guarded: None, data: st.DataObject) -> None:
    """Index for index the reference's plan, on rows whose scores are exact; from a metric and from keys."""
    draw = data.draw
    tokens, r, protected = draw(cut(110))
    channels, dtype, batch = draw(st.sampled_from([1, 2, 3, 5, 16, 17, 40, 64, 70])), draw(st.sampled_from(DTYPES)), 2
    kinds = st.sampled_from([0.0, 0.1, 0.9, 1.0])
    metric = testing.exact_metric(
        batch, tokens, draw(st.integers(0, 99)), channels=channels, dtype=dtype, zeros=draw(kinds),
        supports=[4**k for k in range(4) if 4**k <= channels], non_finite=draw(kinds),
    )  # fmt: skip
    heads = draw(st.sampled_from([0, 1, 2, 5]))
    tile = {"BB": draw(st.sampled_from([16, 32, 64])), "BC": draw(st.sampled_from([16, 32, 64])), "num_stages": 1}
    form = draw(st.sampled_from(["one program", "several", "tiles"]))
    tile["BA"] = 64 if form == "one program" else draw(st.sampled_from([16, 32]))
    tile["parts"] = 0 if form == "one program" else draw(st.sampled_from([1, 2, 4]))
    with (
        pytest.MonkeyPatch.context() as patch,
        launch_configs.force_config("bipartite_soft_matching", tile | {"num_warps": 4}),
    ):
        patch.setattr(matching, "ONE_PROGRAM", 0 if form == "tiles" else 512)
        patch.setattr(matching, "RANK_ROWS", 32)
        if form == "tiles":
            patch.setattr(matching, "RANK_OTHERS", 16)
        if heads:
            # The mean of heads that are powers of two times one row is exact, as is their sum.
            k = metric[:, None] * torch.exp2(torch.arange(heads) - 2.0).to(dtype)[:, None, None]
            k = draw(laid(k))
            seen = k.float().sum(1)
            found = matching.bipartite_matching_from_keys(k.to(device), r, protected)
        else:
            x = draw(laid(metric))
            seen = x
            found = matching.bipartite_matching(x.to(device), r, protected)
    expected = Matching(*matching_reference.bipartite_matching(seen.cpu(), r, protected))
    found = Matching(*(field.cpu() for field in found))
    testing.assert_same_plan(found, expected)
    testing.assert_valid_plan(found, batch, tokens, r, protected)
