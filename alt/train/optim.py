"""Parameter groups, AdamW, and the schedule of the learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from .config import OptimSection


def parameter_groups(
    model: nn.Module,
    optim: OptimSection,
    is_backbone: Callable[[str], bool] | None = None,
    no_decay: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Returns the trainable parameters in up to six groups: CLIP's own, new ones, and in few-shot runs those of the
    video adapter, each with and without decay.

    Vectors (biases, norms, class token) have no decay, nor have learned positions: those that ``no_decay()`` of a
    module returns, and those of the argument. Each group carries ``lr``, ``weight_decay``, ``params``, ``name``
    ("backbone/decay", "new/no_decay", ...) and ``members``, the names of its parameters in the order of the model.
    Every trainable parameter is in exactly one.
    """
    if is_backbone is None:
        is_backbone = model.is_backbone_parameter  # type: ignore[assignment]
    assert is_backbone is not None
    new, few_shot = optim.lr * optim.new_multiplier, optim.few_shot_multiplier
    is_adapter: Callable[[str], bool] | None = getattr(model, "is_adapter_parameter", None)
    if optim.few_shot_scope == "new" or few_shot == 1:  # a model without a video adapter has no such method
        is_adapter = None
    rates = {"backbone": optim.lr, "new": new if is_adapter else new * few_shot, "adapter": new * few_shot}
    groups: dict[str, dict[str, Any]] = {}
    for kind, lr in rates.items():
        for decay in (True, False):
            name = f"{kind}/{'decay' if decay else 'no_decay'}"
            weight_decay = optim.weight_decay if decay else 0.0
            groups[name] = {"name": name, "lr": lr, "weight_decay": weight_decay, "params": [], "members": []}
    modules: Iterator[Any] = model.modules()
    named = (module.no_decay() for module in modules if hasattr(module, "no_decay"))
    kept = {id(parameter) for parameter in itertools.chain(no_decay, *named)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "backbone" if is_backbone(name) else "adapter" if is_adapter and is_adapter(name) else "new"
            decays = parameter.ndim > 1 and id(parameter) not in kept
            group = groups[f"{kind}/{'decay' if decays else 'no_decay'}"]
            group["params"].append(parameter)
            group["members"].append(name)
    return [group for group in groups.values() if group["params"]]


def describe_groups(groups: list[dict[str, Any]]) -> Iterator[str]:
    """Yields one line per group, for the log."""
    for group in groups:
        count = sum(p.numel() for p in group["params"])
        yield (
            f"{group['name']:<18} {len(group['params']):4d} tensors {count:>12,} parameters"
            f"  lr {group['lr']:.3g}  weight decay {group['weight_decay']:.3g}"
        )


def learning_rate_factor(step: int, total: int, warmup: int, min_ratio: float = 0.01) -> float:
    """Returns the factor on the learning rate at a step: the only warm-up and cosine of this package.

    step / warmup up to the end of the warm-up, then
    m + (1 - m) (1 + cos(pi (step - warmup) / (total - warmup))) / 2: 0 at step 0, 1 at ``warmup``, m at ``total``.
    """
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * done)) / 2


def build_optimizer(groups: list[dict[str, Any]], optim: OptimSection) -> torch.optim.AdamW:
    beta1, beta2 = optim.betas
    # lists of names do not belong into the state that checkpoints carry
    plain = [{key: value for key, value in group.items() if key != "members"} for group in groups]
    return torch.optim.AdamW(plain, betas=(beta1, beta2), eps=optim.eps)


def build_schedule(
    optimizer: torch.optim.Optimizer, total: int, warmup: int, min_ratio: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns :func:`learning_rate_factor` on every group; to be stepped after every optimiser step.

    A group with a key ``start`` has the learning rate 0 before that step.
    """

    def factor_of(start: int) -> Callable[[int], float]:
        return lambda step: 0.0 if step < start else learning_rate_factor(step, total, warmup, min_ratio)

    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, [factor_of(group.get("start", 0)) for group in optimizer.param_groups]
    )


def scale_rates(optimizers: list[dict[str, Any]], schedules: list[dict[str, Any]], ratio: float) -> None:
    """Multiplies the learning rates in saved states of optimisers and their schedules, in place."""
    for optimizer in optimizers:
        for group in optimizer["param_groups"]:
            group.update({key: group[key] * ratio for key in ("lr", "initial_lr")})
    for schedule in schedules:
        schedule.update({key: [rate * ratio for rate in schedule[key]] for key in ("base_lrs", "_last_lr")})
