"""Every family without gradients, in other layouts of memory, with one image, and in low precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import alt
from tests.patch.compare import bit_equal, flat, images, max_difference

from .all_families import FAMILIES, REMOVED
from .families import Family, build
from .padded_families import PADDED

pytestmark = pytest.mark.slow

each = pytest.mark.parametrize("name", FAMILIES)


@each
def test_inference_mode_and_channels_last(name: str) -> None:
    family: Family = FAMILIES[name]
    model, batch = build(family), images(2)
    with alt.patch_model(model, REMOVED):
        expected = family.run(model, batch)
        with torch.inference_mode():
            assert bit_equal(family.run(model, batch), expected)
            last = batch.contiguous(memory_format=torch.channels_last)
            assert max_difference(family.run(model, last), expected) < 1e-12  # the convolution sums in another order
            twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
            assert max_difference(family.run(twin, last), expected) < 1e-12


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PADDED])
def test_one_image_is_a_row_of_the_batch(name: str) -> None:
    family: Family = FAMILIES[name]
    model, batch = build(family), images(3)
    with alt.patch_model(model, REMOVED):
        together = family.run(model, batch)
        for i in range(3):
            alone = family.run(model, batch[i : i + 1])
            assert max_difference(alone, [part[i : i + 1] for part in flat(together)]) < 1e-12


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_as_near_to_the_truth_as_the_host(name: str, dtype: torch.dtype) -> None:
    """Over so many images that the errors of a classifier of two labels are as many as to be compared."""
    family: Family = FAMILIES[name]
    model = build(family, dtype)
    exact = copy.deepcopy(model).double()
    batches = images(64, dtype).split(2)

    def outputs(model: nn.Module) -> list[Tensor]:
        return [part for batch in batches for part in flat(family.run(model, batch.to(next(model.parameters()).dtype)))]

    with torch.no_grad():
        truth, expected = outputs(exact), outputs(model)
        with alt.patch_model(model, 0) as handle:
            found = outputs(model)
            assert [part.dtype for part in found] == [part.dtype for part in expected]
            assert error_of(found, truth) < 1.3 * error_of(expected, truth)
            handle.r = REMOVED
            merged = outputs(model)
            assert [part.shape for part in merged] == [part.shape for part in expected]
            assert all(bool(part.isfinite().all()) for part in merged)


def error_of(output: list[Tensor], truth: list[Tensor]) -> float:
    """The root of the mean square over all outputs."""
    errors = [(a.double() - b).flatten() for a, b in zip(output, truth, strict=True)]
    return torch.cat(errors).square().mean().sqrt().item()
