"""``metric="projection"``: the keys' mean over heads by a projection of its own, from the weights of the same call."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
from torch.nn.utils import parametrizations, prune
from towers import bit_equal, images, images_for, loss_of, max_difference, parameter_gradients, tower

import alt
from alt.hosts.open_clip.attention import read_attention
from alt.patch.metric import match, mean_projection, project_metric

VARIANTS = {"multihead": {}, "open_clip": {"scale_heads": True, "scale_attn_inner": True, "ls_init_value": 0.3}}


def patched(visual, metric="projection", r=3, **options):
    alt.patch_clip(visual, r, metric=metric, trace_source=True, **options)
    return visual


def pair(**options):
    """The same tower twice, matching by the projection and by the keys, which agree in float64."""
    return patched(tower(**options)), patched(tower(**options), "keys")


def assert_same_merging(visual, reference, batch=None):
    batch = images_for(visual) if batch is None else batch
    assert max_difference(visual(batch), reference(batch)) < 1e-11
    for ours, theirs in zip(alt.get_handle(visual).sources, alt.get_handle(reference).sources, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_metric_is_the_mean_of_the_keys(options):
    """Against the definition, per head; and the columns of one product against a product of their own."""
    visual = tower(**options)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    for block in visual.transformer.resblocks:
        attention = read_attention(block.attn)
        mean = attention.project_keys(x, None).mean(1)
        assert max_difference(project_metric(attention, x), mean) < 1e-12
        projected, beside = attention.project_columns(x, *mean_projection(attention))
        assert max_difference(beside, mean) < 1e-12
        assert max_difference([*projected[:3]], [*attention.project(x, None)[:3]]) < 1e-12
        assert not beside.requires_grad
        assert projected.q.requires_grad


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_merges_and_gradients_are_those_of_the_keys(options):
    visual, reference = pair(**options)
    assert_same_merging(visual, reference)
    batch = images_for(visual)
    gradients = [parameter_gradients(module, loss_of(module(batch))) for module in (visual, reference)]
    for name, gradient in gradients[1].items():
        assert max_difference(gradients[0][name], gradient) < 1e-10, name
    for module in (visual, reference):  # the path through the attention's own call
        module.transformer.resblocks[1].attn.register_forward_hook(lambda *_: None)
    assert_same_merging(visual, reference)


def write(visual):
    with torch.no_grad():
        for block in visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(torch.linspace(0.2, 3, 96, dtype=torch.float64)[:, None])


def write_behind_the_version_counter(visual):
    for block in visual.transformer.resblocks:
        block.attn.in_proj_weight.data.mul_(torch.linspace(0.2, 3, 96, dtype=torch.float64)[:, None])
        block.attn.in_proj_bias.data += torch.linspace(-1, 1, 96, dtype=torch.float64)


def load(visual):
    state = {name: value * torch.linspace(0.5, 2, len(value)).double().view(-1, *[1] * (value.dim() - 1))
             for name, value in visual.state_dict().items() if value.dim()}  # fmt: skip
    visual.load_state_dict(state, strict=False)


def step(visual):
    loss_of(visual(images())).backward()
    torch.optim.SGD(visual.parameters(), 0.01).step()


def merge_adapters(visual):
    config = peft.LoraConfig(r=4, target_modules=["attn"], init_lora_weights=False)
    torch.manual_seed(0)
    peft.get_peft_model(visual, config).double().merge_and_unload()


CHANGES = {
    "in place": write,
    "through .data": write_behind_the_version_counter,
    "load_state_dict": load,
    "optimizer step": step,
    "adapters merged": merge_adapters,
    "other dtypes and back": lambda visual: visual.to(torch.bfloat16).to(torch.float64),
    "pruned": lambda visual: [
        prune.ln_structured(block.attn, "in_proj_weight", 0.5, 2, 0) for block in visual.transformer.resblocks
    ],
    "parametrized": lambda visual: [
        parametrizations.weight_norm(block.attn, "in_proj_weight") for block in visual.transformer.resblocks
    ],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_follows_every_change_of_the_weights(change):
    visual, reference = pair(layers=2)
    before = visual.eval()(images())
    reference.eval()
    for module in (visual, reference):
        change(module)
    assert_same_merging(visual, reference)
    if change is not CHANGES["parametrized"]:
        assert max_difference(visual(images()), before) > 1e-3


@pytest.mark.parametrize("target", [{"target_modules": ["attn"]}, {"target_parameters": ["attn.in_proj_weight"]}])
def test_active_adapters_are_part_of_it(target):
    visual, reference = pair(layers=2)
    config = peft.LoraConfig(r=4, init_lora_weights=False, **{"target_modules": [], **target})
    adapted = []
    for module in (visual, reference):
        torch.manual_seed(0)
        adapted.append(peft.get_peft_model(module, config).double())
    assert_same_merging(*(model.base_model.model for model in adapted))
    with adapted[0].disable_adapter(), adapted[1].disable_adapter():
        assert_same_merging(*(model.base_model.model for model in adapted))


def test_copies_handles_and_removal():
    visual = tower()
    keys, plain = list(visual.state_dict()), visual(images())
    handle = alt.patch_clip(visual, 3, metric="projection")
    assert handle.metric == "projection"
    assert "metric='projection'" in repr(handle)
    assert list(visual.state_dict()) == keys
    expected = visual(images())
    for twin in (copy.deepcopy(visual), pickle.loads(pickle.dumps(visual))):
        assert alt.get_handle(twin).metric == "projection"
        assert bit_equal(twin(images()), expected)
    handle.remove()
    assert bit_equal(visual(images()), plain)
    assert alt.patch_clip(visual, 3).metric == "keys"


def test_it_compiles_to_one_graph():
    visual = patched(tower(layers=1)).train()
    compiled = torch.compile(visual, fullgraph=True, backend="eager")
    assert max_difference(compiled(images()), visual(images())) < 1e-11
    write_behind_the_version_counter(visual)  # a graph keeps no copy either
    assert max_difference(compiled(images()), visual(images())) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_checkpointing_autocast_and_low_precision_run(dtype):
    visual = patched(tower(torch.float32, layers=2)).train()
    visual.set_grad_checkpointing(True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = loss_of(visual(images(dtype=torch.float32)).float())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in visual.parameters())
    low = patched(tower(torch.float32, layers=2).to(dtype)).eval()
    assert low(images(dtype=torch.float32).to(dtype)).dtype == dtype


def share_of_equal_pairs(plan, other):
    """Counts, over a batch, the merged tokens of ``plan`` that have the same output row in ``other``."""
    same = total = 0
    for ours, theirs in zip(plan.output_row.tolist(), other.output_row.tolist(), strict=True):
        pairs, others = ({(i, j) for i in range(len(row)) for j in range(i) if row[i] == row[j]}
                         for row in (ours, theirs))  # fmt: skip
        same, total = same + len(pairs & others), total + len(pairs)
    return same / total


def test_in_bfloat16_the_pairs_are_about_as_exact_as_those_of_the_keys():
    """Random attention of ViT-B/16's size: over 256 sequences both chose 99.4 % of float64's pairs."""
    torch.manual_seed(0)
    exact = torch.nn.MultiheadAttention(768, 12, batch_first=True)
    low = copy.deepcopy(exact).bfloat16()
    x = torch.nn.functional.layer_norm(torch.randn(12, 197, 768), (768,)).bfloat16()
    attention, reference = (read_attention(module) for module in (low, copy.deepcopy(low).double()))
    truth = match(reference.project_keys(x.double(), None), 8, 1, "auto")
    keys, projection = (
        match(rows, 8, 1, "auto") for rows in (attention.project_keys(x, None), project_metric(attention, x))
    )
    assert share_of_equal_pairs(projection, truth) > 0.97
    assert share_of_equal_pairs(projection, truth) > share_of_equal_pairs(keys, truth) - 0.02


@pytest.mark.parametrize(
    ("options", "metric", "error", "message"),
    [
        ({"qk_norm": True}, "projection", TypeError, "this attention normalises its keys before their mean over heads"),
        ({}, "mean", ValueError, "metric must be 'keys', 'projection' or 'rotated', got 'mean'"),
        ({}, None, ValueError, "metric must be 'keys', 'projection' or 'rotated', got None"),
        ({}, ["keys"], ValueError, "metric must be 'keys', 'projection' or 'rotated', got"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_touched(options, metric, error, message):
    visual = tower(**options)
    with pytest.raises(error, match=message):
        alt.patch_clip(visual, 3, metric=metric)
    alt.patch_clip(visual, 3)
