"""Derivatives of a patched tower through torch.func, forward mode and second derivatives; export to core ATen ops.

The truth is the central difference in float64, along one direction per parameter.
"""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp, vmap
from towers import images, tower

import alt

SMALL = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "output_dim": 4}
STEP = 1e-6


@pytest.fixture
def patched():
    """Returns a function that makes a patched tower, and gives its handle, its weights and the loss of each image."""

    def make(impl="auto", **options):
        visual = tower(**SMALL, **options).eval()
        handle = alt.patch_clip(visual, 3, impl=impl)
        weights = {name: p.detach() for name, p in visual.named_parameters()}
        return handle, weights, lambda weights, batch: functional_call(visual, weights, (batch,)).square().sum(1)

    return make


def difference(loss, weights, name, tangent):
    """Returns the central difference of the loss along a tangent of one parameter."""
    ahead, behind = (loss({**weights, name: weights[name] + sign * STEP * tangent}) for sign in (1.0, -1.0))
    return (ahead - behind) / (2 * STEP)


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "ls_init_value": 0.3}], ids=["multihead", "open_clip"])
def test_per_sample_gradients(patched, options, impl):
    _, weights, losses = patched(impl, **options)
    batch = images(3, size=(16, 16))
    found = vmap(grad(lambda w, image: losses(w, image[None]).sum()), in_dims=(None, 0))(weights, batch)
    torch.manual_seed(0)
    for name, weight in weights.items():
        tangent = torch.randn_like(weight)
        truth = difference(lambda w: losses(w, batch), weights, name, tangent)
        ours = (found[name] * tangent).flatten(1).sum(1)
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_of_towers(patched):
    """vmap over stacked weights, as for an ensemble: every tower's own LayerNorms are applied."""
    _, weights, losses = patched()
    batch = images(2, size=(16, 16))

    def loss(weights, batch):
        return losses(weights, batch).sum()

    stacked = {name: torch.stack([w, w.cos(), w.sin()]) for name, w in weights.items()}
    found = vmap(grad(loss), in_dims=(0, None))(stacked, batch)
    for i in range(3):
        alone = grad(loss)({name: w[i] for name, w in stacked.items()}, batch)
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name][i], gradient, rtol=1e-8, atol=1e-8)


def test_forward_mode_and_second_derivatives(patched):
    """Right with impl="reference", one sentence without."""
    batch = images(2, size=(16, 16))
    torch.manual_seed(0)
    tangent, name = torch.randn(16, dtype=torch.float64), "transformer.resblocks.1.ln_1.weight"

    def derivatives(impl):
        _, weights, losses = patched(impl)

        def of_one(value):
            return losses({**weights, name: value}, batch).sum()

        def slope(values):
            return (grad(of_one)(values[name]) * tangent).sum()

        first = difference(lambda w: of_one(w[name]), weights, name, tangent)
        return (
            (lambda: jvp(of_one, (weights[name],), (tangent,))[1], first),
            (lambda: (hessian(of_one)(weights[name]) @ tangent * tangent).sum(), None),
            (lambda: (grad(lambda v: slope({name: v}))(weights[name]) * tangent).sum(), None),
        ), difference(slope, weights, name, tangent)

    (along, hessian_product, twice), second = derivatives("reference")
    torch.testing.assert_close(along[0](), along[1], rtol=1e-6, atol=1e-6)
    for found in (hessian_product[0](), twice[0]()):
        torch.testing.assert_close(found, second, rtol=1e-5, atol=1e-5)
    for unsupported, _ in derivatives("auto")[0]:
        with pytest.raises(NotImplementedError, match=r'pass impl="reference" to the function, or to alt.patch_clip'):
            unsupported()


def test_the_reference_is_the_same_patch(patched):
    """Same tokens, same outputs, and the choice is kept by copies and shown."""
    ours, weights, losses = patched()
    plain, _, reference = patched("reference")
    batch = images(2, size=(16, 16))
    torch.testing.assert_close(reference(weights, batch), losses(weights, batch), rtol=1e-10, atol=1e-10)
    assert "impl='reference'" in repr(plain)
    assert "impl" not in repr(ours)
    restored = alt.get_handle(torch.nn.Sequential(plain.tower))
    assert "impl='reference'" in repr(restored)
    with pytest.raises(ValueError, match="impl must be 'auto' or 'reference', got 'cuda'"):
        alt.patch_clip(tower(**SMALL), 3, impl="cuda")


@pytest.mark.slow  # tracing and decomposing
def test_export_to_core_aten(patched):
    """A graph without ops of ours, for exporters: the same bits, and for any batch."""
    handle, _, _ = patched("reference")
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(handle.tower, (images(3, size=(16, 16)),), dynamic_shapes=({0: batch},))
    program = program.run_decompositions()
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert len(targets) > 10
    assert not [t for t in targets if not t.startswith(("aten.", "<built-in", "sym_size", "_operator"))]
    for count in (3, 5):
        torch.testing.assert_close(
            program.module()(images(count, size=(16, 16))), handle.tower(images(count, size=(16, 16)))
        )


def test_torch_fx_is_refused_in_one_sentence(patched):
    handle, _, _ = patched()
    with pytest.raises(TypeError, match=r"torch\.fx cannot trace a patched tower.*use torch\.export"):
        torch.fx.symbolic_trace(handle.tower)
    handle.remove()
    assert torch.fx.symbolic_trace(handle.tower) is not None
