"""A training step of the video models with our kernels against their dense plain-torch formulations.

A step is forward, cross-entropy, backward and AdamW. Both entrants have the same weights, and the same modules where
nothing is fused. B/16 has its real width, token count, ALT's corpus (913) and adapter. By default it has 4 of its 12
blocks, so that a round takes seconds; with --alt-full it has all 12 and a clip of 8 frames. Weights are random, because
time does not depend on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rival_systems as rival
import torch
from torch import Tensor

from alt.measure import call_fresh_process

SEED = 11
#: size -> (clips per batch, frames, blocks): by default, and with --alt-full
CASES = {"mini": ((16, 4, 4), (16, 4, 4)), "B/16": ((1, 4, 4), (1, 8, 12))}
ROUNDS = {"mini": (15, 60), "B/16": (7, 15)}
RIVAL = "dense plain torch"


def case(system: str, size: str, full: bool) -> tuple[Any, Tensor, Tensor, str]:
    clips, frames, blocks = CASES[size][full]
    model = rival.build(system, size, blocks=blocks, frames=frames)
    x, labels = rival.batch(model, clips)
    shape = f"{system} {size}, {blocks} blocks, {clips} x {frames} frames, r = {model.config.r}"
    shape += f", K = {rival.CORPUS}" if system == "ALT" else ""
    return model, x, labels, f"{shape}, float32"


@pytest.mark.parametrize("size", list(CASES))
@pytest.mark.parametrize("system", list(rival.SYSTEMS))
def test_training_step(contest: Any, device: torch.device, full: bool, system: str, size: str) -> None:
    model, x, labels, shape = case(system, size, full)
    model, x, labels = model.to(device), x.to(device), labels.to(device)
    exact = gradients(system, copy.deepcopy(model).double(), x.double(), labels, dense=True)

    def gate(dense: bool) -> Callable[[object], float]:
        def largest(_: object) -> float:
            found = gradients(system, copy.deepcopy(model), x, labels, dense=dense)
            return max(float((g - w).norm() / w.norm()) for g, w in zip(found, exact, strict=True))

        return largest

    contest(
        f"{system} training step, {size}",
        stepper(copy.deepcopy(model), x, labels, dense=False),
        rivals={RIVAL: stepper(copy.deepcopy(model), x, labels, dense=True)},
        gates={"ours": gate(False), RIVAL: gate(True)},
        bound=1e-4,
        why_bound="norm of the difference over the norm, of the loss and of gradients of the tower's first block and"
        " of the system's own parts, float32 with known noise against float64; measured 2e-6",
        shape=shape,
        rounds=ROUNDS[size][full],
    )


@pytest.mark.parametrize("size", list(CASES))
@pytest.mark.parametrize("system", list(rival.SYSTEMS))
def test_peak_memory_of_a_step(benchmark: Any, device: torch.device, full: bool, system: str, size: str) -> None:
    """Measures the peak of forward and backward beyond weights and inputs, gradients included, in fresh processes."""
    script = Path(__file__).with_name("peak_memory_train.py")

    def measure(entrant: str) -> int:
        command = [str(script), entrant, system, size, "--device", device.type, *(["--full"] if full else [])]
        return int(call_fresh_process(command, timeout=600)["bytes"])

    names = {"ours": "ours"} if benchmark.disabled else {"ours": "ours", RIVAL: "rival"}
    model, _, _, shape = case(system, size, full)
    measured = {name: measure(entrant) for name, entrant in names.items()}
    benchmark.group = "peak memory of a training step"
    benchmark.extra_info |= {
        "title": f"{system} training step, {size}",
        "shape": shape,
        "step_bytes": measured,
        "gradient_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
    benchmark.pedantic(lambda: None, rounds=1)  # memory is measured, not time


def gradients(system: str, model: Any, x: Tensor, labels: Tensor, *, dense: bool) -> list[Tensor]:
    """Returns the loss with known noise, and the gradients of one weight per part, in float64."""
    noise = None if dense else rival.known_noise(model, x, SEED)
    torch.manual_seed(SEED)
    loss = rival.loss(model, x, labels, dense=dense, noise=noise)
    parts = [model.get_parameter(name) for name in (rival.FIRST_BLOCK, *rival.SYSTEMS[system][2])]
    found = torch.autograd.grad(loss, parts)
    return [tensor.detach().double() for tensor in (loss, *found)]


def stepper(model: Any, x: Tensor, labels: Tensor, *, dense: bool) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), weight_decay=1e-3)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = rival.loss(model, x, labels, dense=dense)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
