"""Trains a small head on features or tokens that a frozen tower computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alt.data.seeds import derive_seed

from .config import OptimSection
from .optim import build_optimizer, build_schedule, parameter_groups
from .sampler import batches


class HeadRecipe(NamedTuple):
    """AdamW with betas (0.9, 0.98), linear warm-up from 0 and a cosine to ``lr * min_ratio``.

    Args:
        lr: largest learning rate. steps: of the optimiser, ``warmup_steps`` of them below ``lr``.
        batch_size: samples per step, at most all of them.
        weight_decay: of matrices; vectors and position embeddings have none.
        clip_norm: largest norm of the gradient, None: any.
    """

    lr: float
    steps: int
    warmup_steps: int
    batch_size: int
    weight_decay: float = 1e-3
    min_ratio: float = 0.01
    clip_norm: float | None = None


def fit_head(
    head: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], samples: int, recipe: HeadRecipe, *, seed: int
) -> float:
    """Trains the parameters of ``head`` that require a gradient; equal inputs and seeds give equal weights.

    Args:
        head: the module to train; its mode is kept.
        loss: called with (rows int64 ``[B]``, a seed as an int64 scalar) at every step; returns the mean loss.
        samples: number of samples from which ``rows`` choose.
        recipe: of the optimiser and its schedule.
        seed: of the order of the samples and of the seeds that ``loss`` gets.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        ValueError: there is nothing to train, or there are no samples or no steps.
    """
    if samples < 1 or recipe.steps < 1:
        raise ValueError(f"expected at least one sample and one step, got {samples} and {recipe.steps}")
    optim = OptimSection(lr=recipe.lr, new_multiplier=1.0, weight_decay=recipe.weight_decay)
    groups = parameter_groups(head, optim, is_backbone=lambda name: False)
    if not groups:
        raise ValueError(f"head: {type(head).__name__} has nothing to train, no parameter requires a gradient")
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = build_optimizer(groups, optim)
    schedule = build_schedule(optimizer, recipe.steps, recipe.warmup_steps, recipe.min_ratio)
    losses = []
    for step, (rows, _) in zip(
        range(recipe.steps), batches(samples, min(recipe.batch_size, samples), seed), strict=False
    ):
        found = loss(rows, torch.tensor(derive_seed("noise", seed=seed, step=step)))
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        if step >= recipe.steps - max(1, recipe.steps // 10):
            losses.append(found.detach())
    return float(torch.stack(losses).mean())
