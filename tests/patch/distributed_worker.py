"""Run by test_patch_distributed in two gloo processes: DDP and FSDP2 of a patched tower against one process."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from towers import images, loss_of, max_difference, parameter_gradients, tower

import alt


def build(**options):
    visual = tower(torch.float32, **options)
    return visual, alt.patch_clip(visual, 3, trace_source=True)


def expected_gradients(batch, **options):
    visual, _ = build(**options)
    halves = [parameter_gradients(visual, loss_of(visual(half))) for half in batch.chunk(2)]
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}


def check_ddp(rank, batch):
    expected = expected_gradients(batch)
    visual, _ = build()
    model = DistributedDataParallel(visual)
    for _ in range(2):
        model.zero_grad()
        loss_of(model(batch.chunk(2)[rank])).backward()
    for name, parameter in visual.named_parameters():
        assert max_difference(parameter.grad, expected[name]) < 1e-4, name
    assert alt.get_handle(model).visual is visual


def check_fsdp(rank, batch, mesh, checkpointing, **options):
    expected = expected_gradients(batch, **options)
    visual, handle = build(**options)
    plain, _ = build(**options)
    visual.set_grad_checkpointing(checkpointing)
    for block in visual.transformer.resblocks:
        fully_shard(block, mesh=mesh)
    fully_shard(visual, mesh=mesh)
    local = batch.chunk(2)[rank]
    output = visual(local)
    assert max_difference(output, plain(local)) < 1e-5
    loss_of(output).backward()
    for name, parameter in visual.named_parameters():
        assert max_difference(parameter.grad.full_tensor(), expected[name]) < 1e-4, name
    assert alt.get_handle(visual).schedule() == handle.schedule()
    raises(RuntimeError, "cannot remove the patch: the image tower was sharded", handle.remove)
    assert torch.isfinite(visual(local)).all()  # the refusal changed nothing


def check_mixed_precision(rank, batch, mesh):
    """FSDP casts the floating inputs of every block to bfloat16; the sizes must not be among them."""
    visual, handle = build()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for block in visual.transformer.resblocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(visual, mesh=mesh, mp_policy=policy)
    loss_of(visual(batch.chunk(2)[rank]).float()).backward()
    assert handle.sizes.dtype == torch.float32
    assert torch.equal(handle.sizes.sum(1), torch.full((2,), 17.0))


def check_order(mesh):
    for part in ("block", "tower", "parent"):
        visual = tower(torch.float32)
        parent = torch.nn.Sequential(visual)
        fully_shard({"block": visual.transformer.resblocks[0], "tower": visual, "parent": parent}[part], mesh=mesh)
        raises(TypeError, "patch first, then call fully_shard", lambda v=visual: alt.patch_clip(v, 3))
    visual, _ = build()
    expected = visual(images(2, torch.float32))
    fully_shard(visual.transformer.resblocks[0].attn, mesh=mesh)  # alone: its weights stay gathered after its call
    assert max_difference(visual(images(2, torch.float32)), expected) < 1e-5
    visual, _ = build()
    for part in (visual.transformer.resblocks[0].attn, visual):
        fully_shard(part, mesh=mesh)
    raises(RuntimeError, "shard whole blocks instead", lambda: visual(images(2, torch.float32)))


def raises(error, message, call):
    with pytest.raises(error, match=message):
        call()


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    batch = images(4, torch.float32)
    check_ddp(rank, batch)
    check_fsdp(rank, batch, mesh, checkpointing=False)
    check_fsdp(rank, batch, mesh, checkpointing=True, qk_norm=True, attentional_pool=True, pool_type="avg")
    check_mixed_precision(rank, batch, mesh)
    check_order(mesh)
    dist.barrier()
    dist.destroy_process_group()
    print("all checks passed")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
