"""The processes of a run: their number, the one that writes, and Lightning's strategy for sharing parameters."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from alt.errors import UserError

if TYPE_CHECKING:
    from .config import TrainerSection


def is_first_process() -> bool:
    """Returns True in the process that writes: by RANK under torchrun, by SLURM_PROCID under srun, else by Lightning's
    LOCAL_RANK and NODE_RANK."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    if choose_environment():
        return int(os.environ.get("SLURM_PROCID", 0)) == 0
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def choose_environment() -> list[SLURMEnvironment]:
    """Returns SLURM's environment if srun started us, else nothing: Lightning chooses.

    Its requeueing is off. It would go on from a file of its own, also without --resume and with another configuration.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that srun exists and is not used
        if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
            return []
    return [SLURMEnvironment(auto_requeue=False)]


def choose_processes(settings: TrainerSection) -> dict[str, Any]:
    """Returns Lightning's ``devices``, ``num_nodes`` and ``strategy``.

    Devices and nodes are torchrun's if it started us, else those of the settings, else all GPUs or one CPU process.
    One process needs no strategy. Several use DDP, or FSDP2 if the settings ask for it.

    Raises:
        UserError: the settings ask for more GPUs than there are.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    else:
        gpus = torch.cuda.device_count() if settings.accelerator != "cpu" else 0
        if settings.accelerator == "gpu" and gpus == 0:
            raise UserError("trainer.accelerator is gpu, but this machine has none that PyTorch can use.")
        devices, nodes = settings.devices if settings.devices is not None else max(1, gpus), settings.nodes
        if gpus and devices > gpus:
            raise UserError(f"trainer.devices is {devices}, but this machine has {gpus}.")
    strategy: Any = "auto"
    if devices * nodes > 1 and settings.strategy == "fsdp":
        # All processes shard, none replicates; checkpoints are whole files, as those of one process.
        strategy = ModelParallelStrategy(
            data_parallel_size=devices * nodes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    elif devices * nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
    return {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def shard(model: nn.Module, mesh: Any) -> None:
    """Shards every block of the tower and of the adapter by itself, then the rest (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if any(p.requires_grad for p in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
