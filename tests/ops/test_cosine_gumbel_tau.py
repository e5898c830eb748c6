"""Gradients of cosine-Gumbel assignment over tau from 1e-4 to 1e4, inside the bound that docs/kernels.md derives."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import cosine_gumbel_assign, testing
from alt_kernels.reference import cosine_gumbel_assign as reference

TAUS = [1e-4, 1e-3, 1e-2, 0.1, 1.0, 100.0, 1e4]


class Problem(NamedTuple):
    x: Tensor
    entities: Tensor
    tau: Tensor
    noise: Tensor
    grad: Tensor


def problem(tau: float, rows: int = 20, count: int = 48, depth: int = 33, noisy: bool = True) -> Problem:
    """float32 inputs. Half the entities lie so close to another that their logits differ by about 1 at this tau."""
    x = torch.randn(rows, depth)
    near = torch.randn(count // 2, depth)
    entities = torch.cat([near, near + min(tau, 1.0) * torch.randn_like(near)])
    x[: rows // 2] += 2 * entities[: rows // 2]  # rows for which such a pair decides
    noise = reference.gumbel_noise(torch.tensor(3), rows, count) * noisy
    return Problem(x, entities, torch.tensor(tau), noise, torch.randn(rows, depth))


class Gradients(NamedTuple):
    """Float64 gradients and their bands, to x, entities and tau."""

    values: tuple[Tensor, Tensor, Tensor]
    bands: tuple[Tensor, Tensor, Tensor]


def gradients(p: Problem, index: Tensor, hard: bool, *, relative_to_chosen: bool = True) -> Gradients:
    """Returns the truth from all pairs of entities, which cancels nothing, and the bound of float32 arithmetic.

    ``relative_to_chosen``: dl from differences to dA of the chosen entity, as every registered backward computes it.
    """
    x, s, tau, noise, do = (t.double() for t in p)
    (rows, depth), count = x.shape, len(s)
    u = testing.roundoff(torch.float32)
    unit_x, unit_s = F.normalize(x, dim=-1), F.normalize(s, dim=-1)
    cosine = unit_x @ unit_s.T
    logits = cosine / tau + noise
    a, da = logits.softmax(-1), do @ s.T
    pairs = a[:, :, None] * a[:, None, :] * (da[:, :, None] - da[:, None, :])  # dl_k is the sum over j of pairs_kj
    dl = pairs.sum(2)
    value_path = F.one_hot(index, count).double() if hard else a

    # Inherent: the error of a logit, d products and two norms over tau, then roundings of the logit itself.
    error = (2 * depth + 8) * u / float(tau) + 8 * u * float(logits.abs().max())
    assert (logits.gather(1, index[:, None])[:, 0] >= logits.amax(1) - 2 * error).all(), "not the largest logit"
    inherent = torch.tensor(4 * error).expm1() * pairs.abs().sum(2)
    # Ours: rounding of dA, of its differences and of their sum.
    chosen = F.one_hot(index, count).bool()
    tiny = torch.finfo(torch.float32).tiny
    size = do.abs() @ s.abs().T  # of the terms of dA
    size_chosen = size.gather(1, index[:, None])
    delta = (torch.where(chosen, 0.0, a) * (size + size_chosen)).sum(1, keepdim=True)
    ours = a * (torch.where(chosen, 0.0, size + size_chosen) + delta)
    gamma = testing.gamma(depth + count + 16, torch.float32)
    rounding = gamma * ours + 2 * u * gamma * a * size_chosen
    rounding = rounding + tiny * (size + size.sum(1, keepdim=True))  # probabilities below the smallest float count as 0
    if not relative_to_chosen:  # softmax's own derivative: dA of the chosen entity minus a sum that is almost it
        rounding = rounding + gamma * a * (size + (a * size).sum(1, keepdim=True))
    wrong = inherent + torch.tensor(4 * error).exp() * rounding
    wrong = wrong + testing.gamma(2 * (depth + count) + rows + 40, torch.float32) * (dl.abs() + wrong)

    def through_norm(d: Tensor, unit: Tensor, given: Tensor) -> Tensor:
        return (d + unit.abs() * (d * unit.abs()).sum(1, keepdim=True)) / given.norm(dim=1, keepdim=True)

    def project(d: Tensor, unit: Tensor, given: Tensor) -> Tensor:
        return (d - unit * (d * unit).sum(1, keepdim=True)) / given.norm(dim=1, keepdim=True)

    values = (
        project(dl @ unit_s / tau, unit_x, x),
        project(dl.T @ unit_x / tau, unit_s, s) + value_path.T @ do,
        -(dl * cosine).sum() / tau**2,
    )
    mixed = (0.0 if hard else torch.tensor(2 * error).expm1()) + testing.gamma(rows + count + 8, torch.float32)
    bands = (
        through_norm(wrong @ unit_s.abs() / tau, unit_x, x),
        through_norm(wrong.T @ unit_x.abs() / tau, unit_s, s) + mixed * (value_path.T @ do.abs()),
        (wrong * (unit_x.abs() @ unit_s.abs().T)).sum() / tau**2,
    )
    return Gradients(values, tuple(b + 2 * u * v.abs() + tiny for b, v in zip(bands, values, strict=True)))


@pytest.mark.parametrize("noisy", [True, False], ids=["noise", "no-noise"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("tau", TAUS)
def test_gradients_at_every_tau(tau: float, hard: bool, noisy: bool, impl: str) -> None:
    p = problem(tau, noisy=noisy)
    leaves = x, entities, temperature = [t.clone().requires_grad_() for t in (p.x, p.entities, p.tau)]
    result = cosine_gumbel_assign(x, entities, tau=temperature, hard=hard, noise=p.noise, impl=impl)
    found = {impl: torch.autograd.grad(result.output, leaves, p.grad)}
    if impl == "reference":  # the registered op of every device without a kernel
        saved = result.index, result.log_normalizer
        found["op"] = reference.gumbel_assignment_backward(p.grad, *p[:3], p.noise, None, *saved, hard, True)
    for way, grads in found.items():
        truth = gradients(p, result.index, hard, relative_to_chosen=way != "reference")
        for name, actual, value, band in zip(("x", "entities", "tau"), grads, *truth, strict=True):
            testing.assert_error_band(actual.detach(), value, band, name=f"{way}: gradient of {name}")


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("tau", [1e-12, 1e-30])
def test_a_tau_beyond_the_precision_of_logits_gives_no_gradient(tau: float, hard: bool, impl: str) -> None:
    """The choice is certain then: no gradient through the similarity, no NaN, the value path alone."""
    x, s, grad = torch.randn(9, 16).requires_grad_(), torch.randn(2100, 16).requires_grad_(), torch.randn(9, 16)
    result = cosine_gumbel_assign(x, s, tau=tau, hard=hard, noise=None, impl=impl)
    of_x, of_s = torch.autograd.grad(result.output, (x, s), grad)
    assert torch.equal(of_x, torch.zeros_like(of_x))
    expected = torch.zeros_like(of_s).index_add(0, result.index, grad)
    testing.assert_error_band(of_s, expected.double(), 4 * testing.roundoff(torch.float32) * expected.double().abs())
