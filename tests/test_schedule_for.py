"""``alt.schedule_for``: the r of each block for a wanted cost or number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt
from tests.hosts.families import FAMILIES, build, timm_tower
from tests.hosts.test_protect import MASK

BLOCKS, TOKENS = 4, 17


def tower() -> Any:
    """ViT with 17 tokens and four blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm_tower(depth=BLOCKS).eval()


def test_every_number_of_tokens_is_reached_evenly() -> None:
    """16 patches can be halved four times: 1 is left, and the class token."""
    model = tower()
    state = [(name, type(module)) for name, module in model.named_modules()]
    for tokens in range(2, TOKENS + 1):
        r = alt.schedule_for(model, tokens=tokens)
        with alt.patch_model(model, r, strict=True) as handle:  # strict: no block is asked for more than it can lose
            assert handle.schedule().tokens[-1] == tokens
        if tokens > TOKENS - 12:  # no block is at its limit
            assert max(r) - min(r) <= 1
            assert r == sorted(r, reverse=True)
    assert [(name, type(module)) for name, module in model.named_modules()] == state


def test_the_cost_is_at_most_the_share_with_the_fewest_merges() -> None:
    model = tower()
    whole = alt.count_macs(model).native
    for share in (1.0, 0.75):
        r = alt.schedule_for(model, macs=share)
        with alt.patch_model(model, r) as handle:
            assert alt.count_macs(model).native <= share * whole
            one_less = alt.schedule_for(handle.tower, tokens=min(handle.schedule().tokens[-1] + 1, TOKENS))
            handle.r = one_less
            assert share == 1.0 or alt.count_macs(model).native > share * whole


def test_protected_patches_are_spared_and_the_handle_keeps_its_r() -> None:
    model = build(FAMILIES["CLIPModel"], torch.float32)
    handle = alt.patch_model(model, 2, inflection=0.5, protect=MASK)
    assert alt.schedule_for(model, tokens=9) == [5, 3]
    assert (handle.r, handle.inflection) == (2, 0.5)
    with pytest.raises(ValueError, match=r"tokens: expected 9 to 17 for this tower, .* got 8$"):
        alt.schedule_for(model, tokens=8)


@pytest.mark.parametrize(
    ("wanted", "error", "sentence"),
    [
        ({}, ValueError, "expected macs or tokens, got neither"),
        ({"macs": 0.5, "tokens": 9}, ValueError, "expected macs or tokens, got both"),
        ({"macs": 0}, ValueError, r"macs must be a share in \(0, 1\]"),
        ({"macs": "0.7"}, TypeError, r"macs must be a number in \(0, 1\], got str"),
        ({"macs": 0.1}, ValueError, r"macs: expected at least 0\.\d\d, the least that merging can leave, got 0.1"),
        ({"tokens": 9.0}, TypeError, "tokens must be an int, got float"),
        ({"tokens": 40}, ValueError, "tokens: expected 2 to 17 for this tower"),
    ],
)
def test_bad_input_is_one_sentence(wanted: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        alt.schedule_for(tower(), **wanted)


def test_another_model_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        alt.schedule_for(torch.nn.Linear(2, 2), tokens=4)
    with pytest.raises(TypeError, match="got the str 'ViT-B-16'"):
        alt.schedule_for("ViT-B-16", tokens=4)  # type: ignore[arg-type]
