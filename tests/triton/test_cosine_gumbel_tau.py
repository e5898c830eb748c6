"""Gradients of the Triton assignment over tau from 1e-4 to 1e4, inside the bound that docs/kernels.md derives."""

from __future__ import annotations

import pytest
import torch

from alt_kernels import testing
from alt_kernels.triton.cosine_gumbel_assign import gumbel_assignment
from alt_kernels.triton.cosine_gumbel_assign_backward import gumbel_assignment_backward

from ..ops.test_cosine_gumbel_tau import TAUS, gradients, problem


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("tau", TAUS)
def test_gradients_at_every_tau(tau: float, hard: bool, device: torch.device) -> None:
    """With the shipped tiles of float32."""
    p = problem(tau, noisy=not hard)
    x, entities, temperature, noise, grad = (t.to(device) for t in p)
    _, *saved = gumbel_assignment(x, entities, temperature, noise, None, hard)
    found = gumbel_assignment_backward(grad, x, entities, temperature, noise, None, *saved, hard, True)
    for name, actual, value, band in zip(
        ("x", "entities", "tau"), found, *gradients(p, saved[0].cpu(), hard), strict=True
    ):
        testing.assert_error_band(actual.cpu(), value, band, name=f"gradient of {name}")


@pytest.mark.parametrize(("tau", "shift"), [(1e-12, 0.0), (1e-3, 300.0), (1e-3, -300.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_tau_beyond_the_precision_of_logits_gives_no_gradient(
    dtype: torch.dtype, tau: float, shift: float, device: torch.device
) -> None:
    """The choice is certain then: no gradient through the similarity, no NaN. So are sums of nothing or infinity."""
    x, s, grad = (torch.randn(n, 16).to(device, dtype) for n in (9, 200, 9))
    temperature = torch.tensor(tau, device=device)
    _, index, normalizer = gumbel_assignment(x, s, temperature, None, None, True)
    saved = index, normalizer + shift  # as far off as the products of other tiles might be at a smaller tau
    of_x, of_s, of_tau = gumbel_assignment_backward(grad, x, s, temperature, None, None, *saved, True, True)
    assert torch.equal(of_x, torch.zeros_like(of_x))
    assert of_tau == 0
    expected = torch.zeros(200, 16, dtype=torch.float64, device=device).index_add(0, index, grad.double())
    band = testing.gamma(9, torch.float32) + testing.roundoff(dtype)
    testing.assert_error_band(of_s.cpu(), expected.cpu(), band * expected.cpu().abs() + 4e-7)


def test_the_gradient_of_a_non_finite_row_is_nan(device: torch.device) -> None:
    p = problem(0.1)
    x, entities, tau, noise, grad = (t.to(device) for t in p)
    x[2, 1] = torch.inf
    _, *saved = gumbel_assignment(x, entities, tau, noise, None, True)
    of_x, *_ = gumbel_assignment_backward(grad, x, entities, tau, noise, None, *saved, True, False)
    assert of_x[2].isnan().all()
    assert of_x[[0, 1, *range(3, 20)]].isfinite().all()
