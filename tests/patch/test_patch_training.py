"""Training, checkpointing, autocast and torch.compile of patched towers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed._composable import checkpoint as composable_checkpoint
from towers import bit_equal, images, images_for, loss_of, max_difference, parameter_gradients, tower

import alt

VARIANTS = {
    "multihead": {"ls_init_value": 0.3},
    "open_clip": {"qk_norm": True, "scale_attn": True},
    "attentional": {"attentional_pool": True, "attn_pooler_queries": 5},
}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("kind", ["host", "composable"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_checkpointing_gives_bit_equal_gradients(options, kind, autocast):
    visual = tower(torch.float32, **options).train()
    batch = images(dtype=torch.float32)
    handle = alt.patch_clip(visual, 3, trace_source=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = visual(batch)
        # The backward runs outside autocast, as it should; the recomputation must go back into it.
        return output, parameter_gradients(visual, loss_of(output.float()))

    expected, gradients = run()
    sizes = handle.sizes
    calls = []
    for block in visual.transformer.resblocks:
        block.ln_1.register_forward_hook(lambda *_: calls.append(1))
    if kind == "host":
        visual.set_grad_checkpointing(True)
    else:
        for block in visual.transformer.resblocks:
            composable_checkpoint(block)
    output, again = run()
    assert len(calls) == 6  # every block ran twice
    assert bit_equal(output, expected)
    assert torch.equal(handle.sizes, sizes)
    for name, gradient in gradients.items():
        assert torch.equal(again[name], gradient), name


def test_a_recomputed_block_keeps_the_plan_of_its_first_run():
    """Weights that change between forward and backward must not change which tokens merge."""
    visual = tower(torch.float32)
    visual.set_grad_checkpointing(True)
    alt.patch_clip(visual, 3)
    plans = []
    matching = alt.patch.step.match

    def counted(*args, **kwargs):
        plans.append(1)
        return matching(*args, **kwargs)

    alt.patch.step.match = counted
    try:
        output = visual(images(dtype=torch.float32))
        assert len(plans) == 3
        with torch.no_grad():
            for block in visual.transformer.resblocks:
                block.attn.in_proj_weight.mul_(-1.0)
        loss_of(output).backward()
    finally:
        alt.patch.step.match = matching
    assert len(plans) == 3


def test_training_lowers_the_loss():
    visual = tower(torch.float32, pool_type="avg").train()
    alt.patch_clip(visual, 0.25)
    batch, target = images(4, torch.float32), torch.randn(4, 16)
    optimizer = torch.optim.AdamW(visual.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = (visual(batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("way", ["autocast", "bfloat16", "half"])
def test_low_precision_is_as_near_to_the_truth_as_the_host(options, way):
    exact = tower(**options).eval()
    visual = copy.deepcopy(exact).float()
    batch = images_for(exact)
    dtype = torch.float16 if way == "half" else torch.bfloat16
    if way != "autocast":
        visual = visual.to(dtype)
    low = batch.to(visual.conv1.weight.dtype)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            return visual(low)

    truth, host = exact(batch), run()
    handle = alt.patch_clip(visual, 0, trace_source=True)
    output = run()
    assert output.dtype == host.dtype
    assert (output - truth).square().mean() < 2 * (host - truth).square().mean()
    handle.r = 3
    merged = run()
    assert merged.dtype == host.dtype
    assert merged.isfinite().all()
    assert handle.sizes.dtype == torch.float32
    assert torch.equal(handle.sizes.sum(1), torch.full((3,), 17.0))
    # Given the plans this run chose, the merged tower is as exact as the host at its own task.
    with fixed_plans(handle), alt.patch_clip(exact, 3):
        truth = exact(batch)
    assert (merged - truth).square().mean() < 3 * (host - exact(batch)).square().mean()


class fixed_plans:
    """Makes matching return the plans of a handle's last forward, in order."""

    def __init__(self, handle):
        self.plans = iter(alt.patch.get_handle(handle.visual)._trace("sizes").matchings)

    def __enter__(self):
        self.kept = alt.patch.step.match
        alt.patch.step.match = lambda *args, **kwargs: next(self.plans)

    def __exit__(self, *_):
        alt.patch.step.match = self.kept


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "pool_type": "avg"}], ids=["multihead", "open_clip"])
def test_compiles_to_one_graph(options, checkpointing):
    torch.compiler.reset()
    visual = tower(torch.float32, layers=2, **options)
    visual.set_grad_checkpointing(checkpointing)
    batch = images(dtype=torch.float32)
    handle = alt.patch_clip(visual, 3)
    expected = visual(batch)
    gradients = parameter_gradients(visual, loss_of(expected))
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(visual, backend=backend, fullgraph=True)
    output = compiled(batch)
    assert backend.frame_count == 1
    assert max_difference(output, expected) < 1e-5
    assert max_difference(parameter_gradients(visual, loss_of(output)), gradients) < 1e-4
    assert torch.equal(compiled(batch), output)
    assert backend.frame_count == 1
    if not checkpointing:
        handle.r = 4  # a new schedule is a new graph, never the old one
        assert max_difference(compiled(batch), visual(batch)) < 1e-5
        assert max_difference(compiled(batch), expected) > 1e-3
        handle.remove()
        assert max_difference(compiled(batch), visual(batch)) < 1e-5


def test_compiled_forward_does_not_trace_or_warn_differently():
    """trace_source works in a compiled tower, and a clipped r gives the clipped schedule without a warning."""
    torch.compiler.reset()
    visual = tower(torch.float32, layers=2)
    batch = images(dtype=torch.float32)
    with pytest.warns(UserWarning, match="r=7 is more than block"):
        handle = alt.patch_clip(visual, 7, trace_source=True)
    expected = visual(batch)
    sizes, source = handle.sizes, handle.source
    handle._settings.trace = None
    output = torch.compile(visual, backend="aot_eager", fullgraph=True)(batch)
    assert max_difference(output, expected) < 1e-5
    assert torch.equal(handle.sizes, sizes)
    assert torch.equal(handle.source, source)


def test_compiled_in_place_before_patching():
    torch.compiler.reset()
    visual = tower(layers=2)
    batch = images()
    visual.compile(backend="eager", fullgraph=True)
    expected = visual(batch)
    with alt.patch_clip(visual, 3):
        merged = visual(batch)
        visual._compiled_call_impl = None
        assert max_difference(merged, visual(batch)) < 1e-12
        assert max_difference(merged, expected) > 1e-3


@pytest.mark.slow
def test_inductor():
    torch.compiler.reset()
    visual = tower(torch.float32, layers=2)
    batch = images(dtype=torch.float32)
    alt.patch_clip(visual, 3)
    expected = visual(batch)
    gradients = parameter_gradients(visual, loss_of(expected))
    output = torch.compile(visual, fullgraph=True)(batch)
    assert max_difference(output, expected) < 1e-5
    assert max_difference(parameter_gradients(visual, loss_of(output)), gradients) < 1e-4


def test_trace_is_detached():
    visual = tower()
    handle = alt.patch_clip(visual, 3, trace_source=True)
    visual(images())
    assert not handle.sizes.requires_grad
    assert handle.sizes.grad_fn is None
    assert handle.source.dtype in (torch.int32, torch.int64)
    handle.r = 0
    visual(images(2))
    assert torch.equal(handle.sizes, torch.ones(2, 17))
    assert torch.equal(handle.source.long(), torch.arange(17).expand(2, -1))
