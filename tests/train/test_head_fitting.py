"""The one fitter of small heads on cached features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.train.head_fitting import HeadRecipe, fit_head
from alt.train.optim import learning_rate_factor
from alt.train.sampler import batches

RECIPE = HeadRecipe(lr=1e-2, steps=20, warmup_steps=4, batch_size=3, clip_norm=1.0)


def problem(samples: int = 8) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, generator=generator)
    head = nn.utils.skip_init(nn.Linear, 5, 2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    return head, x, (x[:, 0] > 0).long()


def fit(head: nn.Linear, x: Tensor, y: Tensor, recipe: HeadRecipe = RECIPE, seed: int = 0) -> float:
    return fit_head(head, lambda rows, _: F.cross_entropy(head(x[rows]), y[rows]), len(x), recipe, seed=seed)


def test_it_is_adamw_with_the_schedule_written_out() -> None:
    head, x, y = problem()
    other = problem()[0]
    last = fit(head, x, y)
    optimizer = torch.optim.AdamW(
        [{"params": [other.weight], "weight_decay": 1e-3}, {"params": [other.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    losses, stream = [], batches(len(x), 3, seed=0)
    for step in range(20):
        rows, _ = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * learning_rate_factor(step, 20, 4)
        loss = F.cross_entropy(other(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert torch.equal(head.weight, other.weight)
    assert torch.equal(head.bias, other.bias)
    assert last == pytest.approx(sum(losses[-2:]) / 2)


def test_the_loss_gets_every_sample_equally_often_and_another_seed_per_step() -> None:
    head, x, y = problem()
    seen: list[int] = []
    seeds: set[int] = set()

    def loss(rows: Tensor, seed: Tensor) -> Tensor:
        seen.extend(rows.tolist())
        seeds.add(int(seed))
        return F.cross_entropy(head(x[rows]), y[rows])

    fit_head(head, loss, len(x), RECIPE._replace(steps=8), seed=3)
    assert sorted(seen) == sorted(list(range(8)) * 3)
    assert len(seeds) == 8


def test_seeds_decide() -> None:
    heads = []
    for seed in (0, 0, 1):
        head, x, y = problem()
        fit(head, x, y, seed=seed)
        heads.append(head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_frozen_parameters_stay() -> None:
    head, x, y = problem()
    head.bias.requires_grad_(False)
    before = head.bias.clone()
    fit(head, x, y, RECIPE._replace(batch_size=100))  # more than there are samples: all of them
    assert torch.equal(head.bias, before)
    head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="Linear has nothing to train"):
        fit(head, x, y)
    with pytest.raises(ValueError, match="at least one sample and one step, got 8 and 0"):
        fit(*problem(), recipe=RECIPE._replace(steps=0))
