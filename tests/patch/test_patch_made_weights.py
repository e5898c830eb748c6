"""Weights that pruning, weight norm and spectral norm make: a patched tower reads today's, and as often as the host."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune as prune
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from towers import images, max_difference, tower

import alt

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")

KINDS = {
    "pruned": lambda module, name: prune.random_unstructured(module, name, 0.3),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "weight norm, parametrized": parametrizations.weight_norm,
    "spectral norm, parametrized": parametrizations.spectral_norm,
}
IN_BLOCKS = {
    "in_proj of MultiheadAttention": ({}, "attn.in_proj_weight"),
    "in_proj of Attention": ({"qk_norm": True}, "attn.in_proj_weight"),
    "out_proj of MultiheadAttention": ({}, "attn.out_proj.weight"),
    "out_proj of Attention": ({"qk_norm": True}, "attn.out_proj.weight"),
}


def made(kind, options, target, layers=2):
    """The tower whose weight ``target``, of every block or of the tower itself, is made from other tensors."""
    visual = tower(layers=layers, **options)
    owners = visual.transformer.resblocks if "." in target else [visual]
    path, _, name = target.rpartition(".")
    torch.manual_seed(0)  # masks and first vectors of the power iteration
    for owner in owners:
        KINDS[kind](owner.get_submodule(path), name)
    return visual


def load_others(*modules):
    """Loads other weights: those of an equal name get equal values."""
    for module in modules:
        state = module.state_dict()
        for name, value in state.items():
            if not name.endswith(("_mask", "_u", "_v", "._u", "._v")):
                generator = torch.Generator().manual_seed(len(name))
                state[name] = value + 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        module.load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "target"), IN_BLOCKS.values(), ids=IN_BLOCKS)
def test_a_block_uses_the_weights_of_this_call(kind, options, target):
    host, same, merging = (made(kind, options, target) for _ in range(3))
    alt.patch_clip(same, 0)
    alt.patch_clip(merging, 3)
    batch = images(2)
    for training in (False, True):
        for module in (host, same, merging):
            module.train(training)
        for _ in range(2):
            load_others(host, same, merging)
            output = merging(batch)
            assert max_difference(same(batch), host(batch)) < 1e-11
            if not training:
                assert torch.equal(merging(batch), output), "matched by the weights of the call before"


def test_a_merging_block_takes_the_hosts_number_of_power_iterations():
    """One block: it attends before anything merges, so the vectors of spectral norm must be the host's."""
    for kind in ("spectral norm", "spectral norm, parametrized"):
        host, merging = (made(kind, {}, "attn.in_proj_weight", layers=1).train() for _ in range(2))
        alt.patch_clip(merging, 3)
        for _ in range(2):
            host(images(2))
            merging(images(2))
        pairs = zip(host.buffers(), merging.buffers(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs), kind


@pytest.mark.parametrize("kind", ["pruned", "weight norm", "spectral norm"])
@pytest.mark.parametrize("target", ["proj", "positional_embedding"])
def test_the_handle_makes_what_the_towers_call_makes(kind, target):
    """``handle.encode`` does not call the tower; the tower's own parameters must be today's all the same."""
    visual = made(kind, {}, target).eval()
    handle = alt.patch_clip(visual, 3)
    visual(images(2))
    load_others(visual)
    tokens, run = handle.encode(images(2))
    pooled = handle.host.pool(visual, tokens, run.size)
    assert max_difference(pooled, visual(images(2))) < 1e-12
