"""Parameters sharded over processes (FSDP2), block by block, by Lightning's ModelParallelStrategy."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn


def make_sharded(processes: int) -> ModelParallelStrategy:
    """All processes shard, none replicates; checkpoints are whole files, as those of one process."""
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard(model: nn.Module, mesh: Any) -> None:
    """Every block of the tower and of the adapter by itself, then what is left."""
    from torch.distributed.fsdp import fully_shard

    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if any(p.requires_grad for p in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
