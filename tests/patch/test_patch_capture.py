"""A patched tower is safe inside a CUDA graph, as far as that shows without a GPU."""

from __future__ import annotations

import pytest
import torch
from capture import Capture
from towers import images, max_difference, tower

import alt
from tests.random_state import global_random_state

VARIANTS = {
    "multihead": {},
    "open_clip": {"scale_heads": True, "ls_init_value": 0.3},
    "mean of patches": {"pool_type": "avg"},
    "attentional": {"attentional_pool": True, "attn_pooler_queries": 5},
}


def patched(metric="keys", training=False, **options):
    visual = tower(layers=2, **options).train(training)
    alt.patch_clip(visual, 3, metric=metric)
    return visual


def run(visual, batch, weight=None):
    """The output; with ``weight``, its gradient, also the gradients of all parameters, which a graph writes too."""
    with torch.set_grad_enabled(weight is not None):
        output = visual(batch)
        if weight is None:
            return [output]
        return [output, *torch.autograd.grad(output, list(visual.parameters()), weight, allow_unused=True)]


def capture(visual, batch, weight=None):
    run(visual, batch, weight)  # as make_graphed_callables warms up
    given = [batch, *visual.parameters(), *visual.buffers(), *([] if weight is None else [weight])]
    with Capture(given) as graph:
        results = run(visual, batch, weight)
    return graph, results


@pytest.mark.parametrize("metric", ["keys", "projection"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_replay_is_the_eager_run_on_other_images_and_weights(options, training, metric):
    visual, batch = patched(metric, training, **options), images(2)
    weight = torch.randn_like(run(visual, batch)[0]) if training else None
    graph, results = capture(visual, batch, weight)
    before = results[0].detach().clone()
    with torch.no_grad():
        batch.copy_(images(4)[2:])
        for parameter in visual.parameters():
            parameter.mul_(1.3)
    graph.replay()
    assert max_difference(results[0].detach(), before) > 1e-3
    for ours, expected in zip(results, run(visual, batch, weight), strict=True):
        assert (ours is None) == (expected is None)
        assert ours is None or max_difference(ours.detach(), expected.detach()) < 1e-12


@pytest.mark.parametrize("metric", ["keys", "projection"])
def test_operations_and_shapes_do_not_depend_on_values(metric):
    visual = patched(metric)
    batches = [images(2), torch.zeros(2, 3, 32, 32), torch.full((2, 3, 32, 32), float("nan"))]
    found = [capture(visual, batch.double())[0].shapes() for batch in batches]
    assert found[0] == found[1] == found[2]


def test_no_random_generator_is_drawn_from():
    visual, batch = patched(training=True), images(2)
    before = global_random_state()
    run(visual, batch, torch.ones(2, 16, dtype=torch.float64))
    assert global_random_state() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, kept: x.sum().item(), "aten::_local_scalar_dense waits"),
        (lambda x, kept: x[x > 0], "aten::index waits"),
        (lambda x, kept: x.nonzero(), "aten::nonzero waits"),
        (lambda x, kept: x + kept, "reads a tensor .* from outside"),
    ],
)
def test_the_recorder_notices_what_a_capture_forbids(call, message):
    x, kept = torch.randn(3), torch.randn(3)
    with pytest.raises(RuntimeError, match=message), Capture([x]):
        call(x, kept)


def test_a_value_read_by_python_would_show():
    x = torch.tensor([1.0])
    with Capture([x]) as graph:
        y = x * x.shape[0] + 1
    x.fill_(5)
    graph.replay()
    assert y.item() == 6
