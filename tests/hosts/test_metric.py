"""``metric="projection"`` on every family: the pairs of the keys, or a refusal where q/k norms come between."""

from __future__ import annotations

import peft
import pytest
import torch
import torch.nn.utils.prune as prune

import alt
from alt.hosts import find_tower
from tests.patch.compare import max_difference

from .all_families import FAMILIES
from .copied_families import COPIES
from .families import SIDE, build


def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def refused(model):
    """Returns True if the first block normalises its keys."""
    host, tower = find_tower(model)
    attention = host.block_parts(host.blocks(tower)[0], tower, 0).attention.module
    return not isinstance(getattr(attention, "k_norm", torch.nn.Identity()), torch.nn.Identity)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in COPIES])  # of these hosts' parents
def test_pairs_and_outputs_are_those_of_the_keys(name):
    family = FAMILIES[name]
    model, reference = build(family), build(family)
    if refused(model):
        with pytest.raises(TypeError, match="this attention normalises its keys before their mean over heads"):
            alt.patch_model(model, 3, metric="projection")
        return
    handle = alt.patch_model(model, 3, metric="projection", trace_source=True)
    expected = alt.patch_model(reference, 3, trace_source=True)
    with torch.no_grad():
        assert max_difference(family.run(model, images()), family.run(reference, images())) < 1e-11
    assert torch.equal(handle.source, expected.source)


@pytest.mark.parametrize(("name", "projection"), [("timm token", "qkv"), ("CLIPVisionModel", "k_proj")])
def test_adapters_and_pruned_weights_are_part_of_it(name, projection):
    family = FAMILIES[name]
    models = [build(family) for _ in range(2)]
    for model, metric in zip(models, ("projection", "keys"), strict=True):
        alt.patch_model(model, 3, metric=metric)
        torch.manual_seed(0)
        for part in [part for path, part in model.named_modules() if path.endswith(projection)]:
            prune.random_unstructured(part, "weight", 0.3)
        with torch.no_grad():
            family.run(model, images())
            model.load_state_dict({key: -1.5 * value for key, value in model.state_dict().items()})
    with torch.no_grad():
        outputs = [family.run(model, images()) for model in models]
        assert max_difference(*outputs) < 1e-11, "the weights of the call before"
    config = peft.LoraConfig(r=2, target_modules=[projection], init_lora_weights=False)
    models = [build(family) for _ in range(2)]
    for model, metric in zip(models, ("projection", "keys"), strict=True):
        alt.patch_model(model, 3, metric=metric)
        torch.manual_seed(0)
        peft.get_peft_model(model, config).double()
    with torch.no_grad():
        assert max_difference(*[family.run(model, images()) for model in models]) < 1e-11


def test_adapters_that_are_no_sum_are_refused():
    model = build(FAMILIES["timm token"])
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"], use_dora=True)).double()
    with pytest.raises(TypeError, match="LoRA adapters without DoRA and without biases"):
        alt.patch_model(model, 3, metric="projection")
