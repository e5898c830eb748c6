"""Hooks, wrappers and parametrizations on parts of a patched tower do what they do on the host."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.transformer import LayerNorm
from torch.nn.utils import parametrize
from towers import bit_equal, images, images_for, loss_of, max_difference, parameter_gradients, tower

import alt

VARIANTS = {"multihead": {}, "open_clip": {"qk_norm": True, "scale_heads": True, "ls_init_value": 0.3}}
PARTS = ("", "attn", "ln_1", "ln_2", "ls_1", "ls_2", "mlp", "mlp.c_fc")


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def visual(request):
    return tower(**request.param)


def part_of(visual, name):
    return visual.transformer.resblocks[1].get_submodule(name)


@pytest.mark.parametrize("name", PARTS)
def test_hooks_see_and_replace_tensors_as_on_the_host(visual, name):
    batch = images_for(visual)

    def run(r=None):
        seen = []

        def hook(module, inputs, output):
            seen.append((inputs[0], output[0] if isinstance(output, tuple) else output))
            return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5

        def pre_hook(module, inputs):
            return (inputs[0] + 0.1, *inputs[1:])

        part = part_of(visual, name)
        handles = [part.register_forward_hook(hook), part.register_forward_pre_hook(pre_hook)]
        try:
            return visual(batch), seen
        finally:
            for handle in handles:
                handle.remove()

    unhooked = visual(batch)
    expected, seen = run()
    patch = alt.patch_clip(visual, 0)
    output, patched_seen = run()
    assert max_difference(output, expected) < 1e-12
    assert len(seen) == len(patched_seen) == 1
    assert max_difference(patched_seen, seen) < 1e-12
    assert max_difference(output, unhooked) > 1e-3
    patch.r = 3
    merged, merged_seen = run()
    assert len(merged_seen) == 1
    assert max_difference(merged, output) > 1e-3
    left = 14 if name in ("", "attn", "ln_1", "ls_1") else 11  # what enters: before or after the second merge
    assert merged_seen[0][0].shape[1] == left
    assert merged_seen[0][1].shape[1] == (11 if name == "" else left)


@pytest.mark.parametrize("parts", [("attn",), ("ln_2",), ("attn", "ln_2")], ids="+".join)
def test_a_watching_hook_changes_nothing(visual, parts):
    """The unfused paths compute what the fused ones do, gradients included."""
    batch = images_for(visual)
    patch = alt.patch_clip(visual, 3, trace_source=True)
    expected = visual(batch)
    gradients, sizes = parameter_gradients(visual, loss_of(expected)), patch.sizes
    for block in visual.transformer.resblocks:
        for name in parts:
            block.get_submodule(name).register_forward_hook(lambda module, inputs, output: None)
    output = visual(batch)
    assert torch.equal(patch.sizes, sizes)
    assert max_difference(output, expected) < 1e-11
    assert max_difference(parameter_gradients(visual, loss_of(output)), gradients) < 1e-10


def test_backward_hooks_fire(visual):
    alt.patch_clip(visual, 3)
    fired = []
    for name in ("", "attn", "ln_2", "mlp"):
        part_of(visual, name).register_full_backward_hook(lambda *_, name=name: fired.append(name))
    loss_of(visual(images_for(visual))).backward()
    assert sorted(fired) == sorted(["", "attn", "ln_2", "mlp"])


@pytest.mark.parametrize("owner", ["transformer", "visual"])
def test_hooks_on_trunk_and_tower(visual, owner):
    batch = images_for(visual)
    module = visual if owner == "visual" else visual.transformer
    expected = visual(batch) * 2 if owner == "visual" else None
    shapes = []

    def hook(module, inputs, output):
        shapes.append(tuple(output.shape))
        return output * 2

    module.register_forward_hook(hook)
    expected = visual(batch)
    patch = alt.patch_clip(visual, 0)
    assert max_difference(visual(batch), expected) < 1e-12
    patch.r = 3
    assert visual(batch).isfinite().all()
    assert shapes[2] == ((3, 8, 32) if owner == "transformer" else (3, 16))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("pre", "gave it 16 tokens instead of 17"),
        ("block", "returned a tensor of shape"),
        ("trunk", "returned a tensor of shape"),
    ],
)
@pytest.mark.parametrize("r", [0, 3])
def test_hooks_that_change_the_number_of_tokens_are_told_so(visual, where, message, r):
    alt.patch_clip(visual, r)
    block = visual.transformer.resblocks[0]
    if where == "pre":
        block.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :-1],))
    else:
        part = block if where == "block" else visual.transformer
        part.register_forward_hook(lambda module, inputs, output: output[:, :-1])
    with pytest.raises(ValueError, match=f"{message}.*hooks may change the tokens, not their number"):
        visual(images())


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("target", ["attn.in_proj_weight", "attn.out_proj.weight", "ln_2.weight", "mlp.c_fc.weight"])
def test_parametrized_weights_count(visual, target):
    """A parametrization that halves a weight equals the tower with that weight halved."""
    plain = copy.deepcopy(visual)
    for module, change in ((visual, "parametrize"), (plain, "halve")):
        for block in module.transformer.resblocks:
            name, leaf = target.rsplit(".", 1)
            part = block.get_submodule(name)
            if change == "parametrize":
                parametrize.register_parametrization(part, leaf, Halved())
            else:
                part.get_parameter(leaf).data.div_(2)
    batch = images_for(visual)
    before = visual(batch)
    for r in (0, 3):
        with alt.patch_clip(visual, r), alt.patch_clip(plain, r):
            assert max_difference(visual(batch), plain(batch)) < 1e-11
    assert bit_equal(visual(batch), before)


class LoudNorm(LayerNorm):
    """A LayerNorm of the user's own: must be called, not read."""

    def forward(self, x):
        return super().forward(x) * 3


def test_a_foreign_layer_norm_is_called(visual):
    for block in visual.transformer.resblocks:
        loud = LoudNorm(32).double()
        loud.load_state_dict(block.ln_2.state_dict())
        block.ln_2 = loud
    batch = images_for(visual)
    expected = visual(batch)
    patch = alt.patch_clip(visual, 0)
    assert max_difference(visual(batch), expected) < 1e-12
    patch.r = 3
    merged = visual(batch)
    for block in visual.transformer.resblocks:  # the same tower without the foreign class
        plain = LayerNorm(32).double()
        plain.load_state_dict({k: 3 * v for k, v in block.ln_2.state_dict().items()})
        block.ln_2 = plain
    assert max_difference(visual(batch), merged) < 1e-11


def test_dropout_of_attention_weights_is_the_hosts(visual):
    for block in visual.transformer.resblocks:
        if isinstance(block.attn, torch.nn.MultiheadAttention):
            block.attn.dropout = 0.4
        else:
            block.attn.attn_drop.p = 0.4
    batch = images_for(visual)
    visual.train()

    def run():
        torch.manual_seed(1)
        return visual(batch)

    expected = run()
    patch = alt.patch_clip(visual, 0)
    assert max_difference(run(), expected) < 1e-12
    patch.r = 3
    assert not torch.equal(visual(batch), visual(batch))
    visual.eval()
    assert torch.equal(visual(batch), visual(batch))
