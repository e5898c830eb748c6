"""The training steps. All randomness of a step is a function of (seed, step, part of the step, process)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from alt.data.seeds import derive_seed
from alt.validation import plain

from .config import OptimSection, TrainConfig
from .objective import ClipBatch, Objective, SoftCrossEntropy
from .optim import build_optimizer, build_schedule, parameter_groups, scale_rates
from .processes import shard


class Learner(LightningModule):
    """AdamW on parameter groups, warm-up and cosine, and a loss that must stay finite.

    A subclass gives the parameter ``groups`` and the ``loss`` of a batch.

    Args:
        optim: of AdamW. total_steps, warmup_steps, min_ratio: of the schedule.
    """

    def __init__(self, optim: OptimSection, total_steps: int, warmup_steps: int, min_ratio: float) -> None:
        super().__init__()
        self.optim, self.min_ratio = optim, min_ratio
        self.total_steps, self.warmup_steps = total_steps, warmup_steps

    def groups(self) -> list[dict[str, Any]]:
        """Returns AdamW's parameter groups; one with a key ``start`` does not learn before that step."""
        raise NotImplementedError

    def loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, to be minimised."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch, batch_idx)
        if not torch.isfinite(loss.detach()):
            raise FloatingPointError(f"The loss became {loss.item()} at step {self.global_step}.")
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.groups(), self.optim)
        schedule = build_schedule(optimizer, self.total_steps, self.warmup_steps, self.min_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}


class VideoLearner(Learner):
    """A video model on clips with labels.

    Args:
        model: a ``VideoModel`` whose classes are set.
        config: the run.
        steps_per_epoch: optimiser steps per epoch, for a schedule and checkpoints that count epochs.
        objective: what a step minimises; None: soft cross-entropy with the labels.

    Attributes:
        record: plain values that checkpoints carry beside the configuration and the classes.
        checkpoint_every: steps between checkpoints: those of the settings, or an epoch, at most the whole run.

    A batch is a :class:`ClipBatch`, or its first two fields.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, steps_per_epoch: int = 1, objective: Objective | None = None
    ) -> None:
        super().__init__(config.optim, *config.schedule.length(steps_per_epoch), config.schedule.min_ratio)
        self.model = model
        self.config = config
        self.record: dict[str, Any] = {}
        self.checkpoint_every = min(config.trainer.checkpoint_every or steps_per_epoch, self.total_steps)
        if config.task == "linear-probe":
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        count = len(self.classes)
        self.objective = SoftCrossEntropy(count, config.augmentation) if objective is None else objective
        top5 = min(5, count)
        self.top1 = MulticlassAccuracy(count, top_k=1, average="micro", ignore_index=-1)
        self.top5 = MulticlassAccuracy(count, top_k=top5, average="micro", ignore_index=-1)

    @property
    def classes(self) -> list[str]:
        return list(self.model.classes)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> VideoLearner:
        super().train(mode)
        if self.config.task == "linear-probe":  # a frozen model neither draws noise nor learns statistics
            self.model.eval()
        return self

    def step_seed(self, part: int) -> int:
        """Returns the seed of everything random in one part of the current step on this process."""
        rank = self.global_rank if self._trainer is not None else 0
        step = self.global_step if self._trainer is not None else 0
        return derive_seed("step", seed=self.config.seed, step=step, part=part, rank=rank)

    def loss(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        seed = self.step_seed(batch_idx % self.config.trainer.accumulate)
        torch.manual_seed(seed)  # for drop-path and the like, if the model has any
        found = self.objective(self.model, ClipBatch(*batch), seed)
        if found.hits is not None:
            self.log("train_top1", found.hits, batch_size=len(batch[0]))
        return found.loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        clips, labels = batch[:2]
        logits = self.model(clips).logits.float()
        real = int((labels >= 0).sum())
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / max(1, real)
        self.log("val_loss", loss, on_epoch=True, batch_size=real, sync_dist=True)
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.log("val_top1", self.top1, on_epoch=True, prog_bar=True)
        self.log("val_top5", self.top5, on_epoch=True)

    def configure_model(self) -> None:
        mesh = getattr(self, "device_mesh", None)  # Lightning sets it where parameters are sharded
        if mesh is not None and self.config.trainer.strategy == "fsdp":
            shard(self.model, mesh["data_parallel"])

    def groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.config.optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["alt"] = {"config": plain(self.config), "classes": self.classes, **self.record}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ratio = self.optim.lr / checkpoint["alt"]["config"]["optim"]["lr"]
        if ratio != 1.0:  # else not even the last bit changes
            scale_rates(checkpoint["optimizer_states"], checkpoint["lr_schedulers"], ratio)
