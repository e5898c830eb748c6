"""Rows of extreme length in the Triton assignment: only they are copied, and no result changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from alt_kernels import testing
from alt_kernels.triton.cosine_gumbel_assign import gumbel_assignment
from alt_kernels.triton.cosine_gumbel_assign_shared import prepare

from .test_cosine_gumbel_assign import PIECES, WAVES, WHOLE, poisoned, problem
from .test_cosine_gumbel_assign import tiles as tiles  # a fixture

# Powers of two by which a row is multiplied; the last four lead out of the range of squares that is safe.
POWERS = [0, 7, -20, 33, -110, 110, -45, 45]


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("branch", [WHOLE, PIECES, WAVES], ids=["whole", "pieces", "waves"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_extreme_rows_change_nothing(
    dtype: torch.dtype,
    branch: dict[str, int],
    hard: bool,
    tiles: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bits equal those of rows of common length, although all that is not copied holds NaN."""
    tiles(branch)
    c = problem(40, 30, 45, (dtype, dtype), "tensor")
    plain = gumbel_assignment(*c.inputs(), hard)
    power = torch.tensor(POWERS, device=c.x.device).repeat(5)[:, None]
    scaled = c._replace(x=(c.x.float() * torch.exp2(power.float())).to(dtype))
    with poisoned(monkeypatch):
        found = gumbel_assignment(*scaled.inputs(), hard)
    for a, b in zip(found, plain, strict=True):
        testing.assert_same_bits(a, b)


def test_only_extreme_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero and infinite rows stay where they are; another dtype or layout is copied whole."""
    x = torch.randn(16, 24).to(torch.bfloat16)
    x[3] *= 2.0**60
    x[9] *= 2.0**-70
    x[10] = 0
    x[11, 4] = torch.inf
    entities = torch.randn(5, 24).to(torch.bfloat16)
    with poisoned(monkeypatch):
        ready = prepare(x, entities, copy_all=False)
        wide = torch.cat([x, x], 1)[:, :24]
        whole = prepare(x, entities.float(), copy_all=False), prepare(wide, entities, copy_all=False)
    copied = ~ready.x.isnan().any(1)
    assert copied.nonzero().flatten().tolist() == [3, 9]
    assert torch.equal(ready.sx != 1, copied)
    assert torch.equal(ready.x[copied].float() * ready.sx[copied, None], x[copied].float())
    assert ready.given is x
    assert ready.rx[10] == 0
    assert ready.rx[11].isnan()
    for other in whole:
        assert other.given is other.x
        assert torch.equal(other.x.float()[:11] * other.sx[:11, None], x.float()[:11])
