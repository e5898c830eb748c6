"""``alt.visualize.show_regions``: the merged regions of a picture, for any host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import alt
from alt.visualize import show_regions, tower_regions
from tests.hosts.families import FAMILIES, build, timm_tower


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to the drawing: picture, region maps, captions."""
    calls: list[Any] = []
    draw = tower_regions.merge_sheet

    def record(*arguments: Any, **options: Any) -> Image.Image:
        calls.append(arguments)
        return draw(*arguments, **options)

    monkeypatch.setattr(tower_regions, "merge_sheet", record)
    return calls


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipVisionModel", "Dinov2WithRegistersModel", "timm avg"])
def test_it_draws_the_regions_of_the_model(name: str, drawn: list[Any]) -> None:
    """Two patches share a number exactly where the tower's own trace says that they share a token."""
    family = FAMILIES[name]
    model = build(family, torch.float32).train()
    picture = np.random.default_rng(3).integers(0, 256, (40, 64, 3), np.uint8)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    handle = alt.patch_model(model, (4, 3), protect=mask, trace_source=True)
    sheet = show_regions(picture, handle, title="regions", panel=64)
    assert isinstance(sheet, Image.Image)
    assert model.training
    (seen, maps, captions) = drawn[0]
    assert seen.shape == (32, 32, 3)
    # The middle 40 x 40 pixels, resized; at its border the filter sees the pixels beyond.
    fitted = np.asarray(Image.fromarray(picture[:, 12:52]).resize((32, 32), Image.Resampling.BICUBIC), float)
    assert np.abs(seen - fitted)[2:-2, 2:-2].max() <= 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in handle.host.mean_std(handle.tower))
    x = (torch.from_numpy(seen).permute(2, 0, 1) / 255 - mean) / std
    model.eval()
    family.tower(model)(x[None])
    for source, regions in zip(handle.sources, maps, strict=True):
        assert regions.ravel().tolist() == source[0, family.protected :].tolist()
    assert captions == [f"after block {i}: {n + family.protected} tokens" for i, n in ((1, 12), (2, 9))]
    assert (maps[-1] == maps[-1][0, 0]).sum() == 1  # the protected patch


def test_a_tensor_of_another_size_is_taken_as_it_is(drawn: list[Any]) -> None:
    handle = alt.patch_model(timm_tower(dynamic_img_size=True), 3)
    show_regions(torch.randn(3, 24, 48), handle, panel=48)
    assert [regions.shape for regions in drawn[0][1]] == [(3, 6), (3, 6)]


@pytest.mark.parametrize(
    ("image", "error", "got"),
    [
        ("cat.png", TypeError, "str"),
        (np.zeros((8, 8), np.uint8), ValueError, r"uint8 of shape \[8, 8\]"),
        (np.zeros((8, 8, 3)), ValueError, r"float64 of shape \[8, 8, 3\]"),
        (torch.zeros(2, 3, 8, 8), ValueError, r"float32 of shape \[2, 3, 8, 8\]"),
    ],
)
def test_bad_pictures_are_one_sentence(image: Any, error: type[Exception], got: str) -> None:
    handle = alt.patch_model(timm_tower(), 3)
    with pytest.raises(error, match=f"image must be a PIL image, .* got {got}"):
        show_regions(image, handle)
    with pytest.raises(TypeError, match=r"handle must be what alt\.patch_model returns, got Patched"):
        show_regions(image, handle.tower)  # type: ignore[arg-type]
