"""One model of every host in two processes: DDP, and FSDP2 by block, against the same model in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import alt
from tests.patch.compare import flat, images, loss_of, max_difference, parameter_gradients
from tests.train import jobs

from .all_families import FAMILIES, REMOVED
from .backbone_families import BACKBONES
from .families import build
from .padded_families import PADDED, naflex
from .torch_families import SEQUENCES, tokens_of

ONE_OF_EACH = (
    *("MetaClip2Model", "AltCLIPModel", "ChineseCLIPModel", "CLIPSegModel", "DeiTModel", "IJepaModel", "ViTMSNModel"),
    *BACKBONES,
    "CLIPVisionModel",
    "SiglipVisionModel",
    "Siglip2VisionModel",
    "ViTModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "timm token",
    "timm SigLIP",
    "timm EVA",
    "timm DINOv3",
    "openai VisionTransformer",
    "torchvision linear head",
    "torch pre-norm",
    "torch post-norm",
)


def call(name: str, model: nn.Module, batch: Tensor) -> list[Tensor]:
    """Through the tower's own call alone, where DDP and FSDP2 have their hooks."""
    if name in PADDED:
        return flat(model(**naflex(batch)))
    return flat(model(tokens_of(batch) if name in SEQUENCES else batch))


def patched(name: str) -> tuple[Any, alt.patch.PatchHandle]:
    model = FAMILIES[name].tower(build(FAMILIES[name], torch.float32))
    return model, alt.patch_model(model, REMOVED)


def check(name: str) -> None:
    """In each of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    halves = images(4, torch.float32).split(2)
    mine = halves[dist.get_rank()]
    alone, _ = patched(name)
    parts = [parameter_gradients(alone, loss_of(call(name, alone, half))) for half in halves]
    expected = {key: (parts[0][key] + parts[1][key]) / 2 for key in parts[0]}
    output = call(name, alone, mine)

    model, handle = patched(name)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # mask tokens take no part
    found = call(name, wrapped, mine)
    loss_of(found).backward()
    assert max_difference(found, output) < 1e-6
    same_gradients({key: p.grad for key, p in model.named_parameters()}, expected)
    assert alt.get_handle(wrapped).r == handle.r == REMOVED

    model, handle = patched(name)
    mesh = init_device_mesh("cpu", (2,))
    for block in handle.host.blocks(handle.tower):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = call(name, model, mine)
    loss_of(found).backward()
    assert max_difference(found, output) < 1e-6
    gradients = {key: p.grad for key, p in model.named_parameters()}
    same_gradients({key: None if g is None else g.full_tensor() for key, g in gradients.items()}, expected)
    with pytest.raises(RuntimeError, match=r"cannot remove the patch: .* was sharded"):
        handle.remove()
    dist.barrier()
    dist.destroy_process_group()


def same_gradients(found: dict[str, Tensor | None], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        value = found[name]
        value = torch.zeros_like(gradient) if value is None else value
        assert max_difference(value, gradient) < 1e-5 * (1 + gradient.abs().max()), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_two_processes(name: str) -> None:
    jobs.together(2, check, name)
