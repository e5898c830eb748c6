"""Processes: how many there are, which is this one, and what Lightning is told about them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from alt.errors import UserError

if TYPE_CHECKING:
    from .config import TrainerSection


def is_first_process() -> bool:
    """Whether this is the process that writes: of torchrun's by RANK, of Lightning's own by LOCAL_RANK, NODE_RANK."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def cluster(settings: TrainerSection) -> tuple[int, int]:
    """(devices of a machine, machines): torchrun's where it started us, else those of the settings.

    Without either: all GPUs, or one CPU process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return local, world // local
    gpus = torch.cuda.device_count() if settings.accelerator != "cpu" else 0
    if settings.accelerator == "gpu" and gpus == 0:
        raise UserError("trainer.accelerator is gpu, but this machine has none that PyTorch can use.")
    devices = settings.devices if settings.devices is not None else max(1, gpus)
    if gpus and devices > gpus:
        raise UserError(f"trainer.devices is {devices}, but this machine has {gpus}.")
    return devices, settings.nodes


def make_strategy(settings: TrainerSection, devices: int, nodes: int) -> Any:
    """Lightning's strategy: one process plainly, several by DDP (or FSDP where asked)."""
    if devices * nodes == 1:
        return "auto"
    from lightning.pytorch.strategies import DDPStrategy

    if settings.strategy == "fsdp":
        from .fsdp import make_sharded

        return make_sharded(devices * nodes)
    return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
