"""The patched trunk on the device: right in half precision, under autocast and in training; captured; compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import alt
import alt_kernels as ak

from .problems import normal

transformer = pytest.importorskip("open_clip.transformer")

R = 5


@pytest.fixture
def tower(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    found = transformer.VisionTransformer(32, 4, 48, 3, 3, 4.0, output_dim=24)  # 65 tokens, three blocks
    return found.to(device).eval()


@pytest.fixture
def images(device: torch.device) -> Tensor:
    return normal(device, 1, 3, 3, 32, 32)


def patched(tower: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    found = copy.deepcopy(tower).to(dtype)
    alt.patch_clip(found, r=R)
    return found


def on_the_cpu(tower: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return patched(tower.cpu(), torch.float64)(images.cpu().double())


def assert_same_direction(got: Tensor, want: Tensor, bound: float) -> None:
    assert torch.isfinite(got).all()
    off = 1 - F.cosine_similarity(got.double().cpu(), want.cpu(), dim=-1)
    assert float(off.max()) < bound, off


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-9), (torch.float16, 2e-2), (torch.bfloat16, 2e-2)])
def test_equal_to_float64_on_the_cpu(
    tower: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype, bound: float
) -> None:
    """In half precision rounded keys may merge another of two pairs with nearly equal scores."""
    with torch.no_grad():
        got = patched(tower, dtype)(images.to(dtype))
    assert_same_direction(got, on_the_cpu(tower, images), bound)


def test_autocast_and_training(tower: nn.Module, images: Tensor, device: torch.device) -> None:
    """A step under autocast: gradients for every parameter, in the parameters' dtype, near those without autocast."""
    exact, mixed = patched(tower).train(), patched(tower).train()
    exact(images).square().sum().backward()
    with torch.autocast(device.type, torch.bfloat16):
        loss = mixed(images).float().square().sum()
    loss.backward()
    for name, p in mixed.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == p.dtype
        assert torch.isfinite(p.grad).all(), name
    grads = [torch.cat([p.grad.flatten() for p in t.parameters()]).double() for t in (mixed, exact)]  # type: ignore[union-attr]
    assert float(F.cosine_similarity(*grads, dim=0)) > 0.9


def test_bits_repeat_through_training_steps(tower: nn.Module, images: Tensor, device: torch.device) -> None:
    """No atomics anywhere in ours: two runs of forward and backward are equal bit for bit."""
    found = []
    for _ in range(2):
        model = patched(tower).train()
        model(images).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    if device.type == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    else:  # the patch convolution's weight gradient is cuDNN's, and the class token's is a sum by index
        ours = [n for n, _ in tower.named_parameters() if "resblocks" in n]
        assert all(
            torch.equal(a, b) for n, a, b in zip(dict(tower.named_parameters()), *found, strict=True) if n in ours
        )


def test_no_value_is_read_on_the_host(tower: nn.Module, images: Tensor) -> None:
    """A synchronisation in forward or backward raises where the device can say so."""
    model = patched(tower).train()
    model(images).sum().backward()  # compile, and let libraries set themselves up
    if images.is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        model(images).sum().backward()
    finally:
        if images.is_cuda:
            torch.cuda.set_sync_debug_mode("default")


def test_compiled_whole(tower: nn.Module, images: Tensor, device: torch.device) -> None:
    """One graph over all blocks, whose N shrinks, with the eager tower's result."""
    model = patched(tower)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        got, want = compiled(images), model(images)
    assert_same_direction(got, want.double(), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_in_a_graph(tower: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward of the whole tower replay with new images, to the bit what a launch gives."""
    model = patched(tower, dtype).train()
    static = images.to(dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model(static).float().square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(static)
        output.float().square().sum().backward()
    for seed in (2, 3):
        static.copy_(normal(static.device, seed, *static.shape))
        graph.replay()
        with torch.no_grad():
            assert torch.equal(output, model(static))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.gpu
def test_graphed_callables_train(tower: nn.Module, images: Tensor) -> None:
    """As docs/small_batches.md shows it: the gradients of a graphed tower are those of a launched one."""
    launched, graphed = patched(tower).train(), patched(tower).train()
    torch.cuda.make_graphed_callables(graphed, (torch.zeros_like(images),))
    for seed in (2, 3):
        batch = normal(images.device, seed, *images.shape)
        found = []
        for model in (launched, graphed):
            model.zero_grad(set_to_none=True)
            output = model(batch)
            output.square().sum().backward()
            found.append((output.detach(), {n: p.grad for n, p in model.named_parameters()}))
        (want, gradients), (got, others) = found
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        for name, gradient in gradients.items():
            off = (others[name] - gradient).abs().max()
            assert off <= 1e-4 * (1 + gradient.abs().max()), (name, off)


@pytest.mark.gpu
def test_each_op_in_a_graph_with_a_new_seed(device: torch.device) -> None:
    """The seed is read on the device: a replay after it changed draws other noise, the one that a launch draws."""
    x, entities = normal(device, 1, 50, 64), normal(device, 2, 200, 64)
    seed = torch.tensor(1, device=device)

    def run() -> Any:
        return ak.cosine_gumbel_assign(x, entities, tau=0.5, seed=seed)

    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    chosen = []
    for value in (1, 2, 1):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(captured.index, run().index)
        chosen.append(captured.index.clone())
    assert torch.equal(chosen[0], chosen[2])
    assert not torch.equal(chosen[0], chosen[1])


@pytest.mark.gpu
def test_on_the_second_device_and_stream(device: torch.device) -> None:
    """Kernels launch where their tensors are, on the stream that is current there."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    x, y = normal(last, 1, 2, 33, 64), normal(last, 2, 2, 33, 64)
    plan = ak.bipartite_soft_matching(x, 5)
    want = ak.merge_layer_norm(x, y, plan, None, None, None).normed
    stream = torch.cuda.Stream(last)
    stream.wait_stream(torch.cuda.current_stream(last))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # what follows must wait for this, on this stream
        late = x * 1
        got = ak.merge_layer_norm(late, y, plan, None, None, None).normed
    stream.synchronize()
    assert torch.equal(got, want)


@pytest.mark.gpu
def test_a_tensor_beyond_two_billion_elements(device: torch.device) -> None:
    """Offsets of rows are 64 bits: the last image of a large batch merges as it does alone."""
    needed = 3 * 2**32 + 2**30
    if torch.cuda.mem_get_info(device)[0] < 2 * needed:
        pytest.skip("needs 28 GB of free memory")
    tokens, channels = 64, 1024
    batch = 2**31 // (tokens * channels) + 2
    x = torch.empty(batch, tokens, channels, dtype=torch.bfloat16, device=device).normal_()
    plan = ak.bipartite_soft_matching(x[:, :, :64].contiguous(), 7)
    whole = ak.weighted_merge(x, plan).x
    alone = ak.weighted_merge(x[-1:].clone(), ak.Matching(*(t[-1:].contiguous() for t in plan))).x
    assert torch.equal(whole[-1:], alone)
