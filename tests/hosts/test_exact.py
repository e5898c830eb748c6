"""Every built-in host: exact at r = 0, equal to the plain reference at r > 0, reversible, copied, checkpointed."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch

import alt
from alt.hosts import find_tower
from tests.patch.compare import (
    assert_same_gradients,
    bit_equal,
    images,
    loss_of,
    max_difference,
    parameter_gradients,
)

from .all_families import FAMILIES, IMAGES, REMOVED, by_hand
from .copied_families import COPIES, SHOWN_BY_ANOTHER
from .families import Family, build

SLOW = SHOWN_BY_ANOTHER | {"Dinov2WithRegistersBackbone"}

each = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, family in FAMILIES.items()
    ],
)

FLOAT32_SUMS = 1e-6
"""Of gradients that a host sums in float32 also in a float64 model: 16 patches, each rounded by 2^-24."""

SAME_ANSWERS = {f"timm {name}" for name in ("EVA-02 CLIP", "Sapiens2", "PE-Core", "RoPE mixed", "MRoPE")} | {
    "DINOv3ViTModel with gated MLP",
    "Siglip2Model",
    "Dinov2WithRegistersBackbone",
    "DINOv3ViTBackbone",
    *(name for name in COPIES if name != "DeiTModel"),
}
"""Families whose host is asked the same of another one; a count takes half a second."""


def snapshot(model: Any) -> list[Any]:
    """Classes and own attributes of every module."""
    return [(name, type(part), sorted(part.__dict__)) for name, part in model.named_modules()]


def _note(called: list[Any], module: Any, *_: Any) -> None:
    called.append(module)


@each
def test_at_r_0_it_is_the_model_itself(family: Family) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = build(family, dtype)
        for training in (False, True):  # training has stochastic depth where the family has it
            model.train(training)
            for size in family.sizes:
                batch = images(2, dtype, size)
                torch.manual_seed(3)
                expected = family.run(model, batch)
                expected_gradients = parameter_gradients(model, loss_of(expected))
                with alt.patch_model(model, 0):
                    torch.manual_seed(3)
                    found = family.run(model, batch)
                    gradients = parameter_gradients(model, loss_of(found))
                assert max_difference(found, expected) < tolerance
                looser = dict.fromkeys(family.float32_gradients, FLOAT32_SUMS)
                assert_same_gradients(gradients, expected_gradients, tolerance, looser)


@each
def test_merged_it_is_the_reference(family: Family) -> None:
    """Outputs, sizes and gradients; with a hook on every attention, which then runs through its own call, the same."""
    model = build(family)
    for size in family.sizes:
        batch = images(2, size=size)
        expected, sizes = by_hand(family, model, batch)
        expected_gradients = parameter_gradients(model, loss_of(expected))
        with alt.patch_model(model, REMOVED, trace_source=True) as handle:
            found = family.run(model, batch)
            assert max_difference(found, expected) < family.tolerance
            assert handle.sizes.tolist() == sizes
            assert handle.host.num_protected(handle.tower) == family.protected
            gradients = parameter_gradients(model, loss_of(found))
            tolerance = 10 * family.tolerance
            if size != family.sizes[0]:
                tolerance = max(tolerance, FLOAT32_SUMS)  # hosts resize positions in float32
            looser = dict.fromkeys(family.float32_gradients, FLOAT32_SUMS)
            assert_same_gradients(gradients, expected_gradients, tolerance, looser)
            called: list[Any] = []
            attentions = family.attention(handle.tower)
            hooks = [attention.register_forward_hook(partial(_note, called)) for attention in attentions]
            again = family.run(model, batch)
            assert set(called) == set(attentions)
            assert max_difference(again, found) < 1e-10
            for hook in hooks:
                hook.remove()


def assert_checkpointing(family: Family, model: Any, handle: Any) -> None:
    """Recomputed blocks have the same gradients."""
    model.train()
    torch.manual_seed(3)
    plain = parameter_gradients(model, loss_of(family.run(model, images(2))))
    handle.host.set_checkpointing(handle.tower, True)
    assert handle.host.checkpointing(handle.tower)
    torch.manual_seed(3)
    recomputed = parameter_gradients(model, loss_of(family.run(model, images(2))))
    assert all(torch.equal(gradient, plain[name]) for name, gradient in recomputed.items())
    handle.host.set_checkpointing(handle.tower, False)
    model.eval()


@each
def test_removal_copies_and_checkpointing(family: Family) -> None:
    model = build(family)
    batch, before, keys = images(2), snapshot(model), list(model.state_dict())
    expected = family.run(model, batch)
    handle = alt.patch_model(model, REMOVED)
    assert list(model.state_dict()) == keys
    merged = family.run(model, batch)
    assert not bit_equal(merged, expected)
    for twin in (copy.deepcopy(model), *([pickle.loads(pickle.dumps(model))] if family.pickles else [])):
        assert bit_equal(family.run(twin, batch), merged)
        assert alt.get_handle(twin).r == REMOVED
    if family.switch:
        assert_checkpointing(family, model, handle)
    else:
        with pytest.raises(TypeError, match=r"gradient checkpointing: .* has no switch for it"):
            handle.host.set_checkpointing(handle.tower, True)
        handle.host.set_checkpointing(handle.tower, False)
        assert not handle.host.checkpointing(handle.tower)
    handle.remove()
    assert [(name, cls) for name, cls, _ in snapshot(model)] == [(name, cls) for name, cls, _ in before]
    assert list(model.state_dict()) == keys
    assert bit_equal(family.run(model, batch), expected)


@each
def test_removal_leaves_no_attribute(family: Family) -> None:
    model = build(family)
    before = snapshot(model)
    with alt.patch_model(model, REMOVED):
        family.run(model, images(2))
    assert snapshot(model) == before


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in SAME_ANSWERS])
def test_it_answers_what_alt_asks(name: str) -> None:
    family = IMAGES[name]
    model = build(family, torch.float32)
    host, tower = find_tower(model)
    assert tower is family.tower(model)
    assert host.num_tokens(tower) == 16 + family.protected
    assert host.embed(tower, images(2, torch.float32)).x.shape == (2, 16 + family.protected, host.width(tower))
    native = alt.count_macs(model, frames=1)
    with alt.patch_model(model, REMOVED):
        merged = alt.count_macs(model, frames=1)
    for part in ("attention_projections", "attention", "mlp", "patch_embedding"):
        assert native.by_component[part] > 0, part
    assert merged.by_component["mlp"] < native.by_component["mlp"]
    assert merged.by_component["matching"] > 0
    assert len(host.mean_std(tower)[0]) == 3
