"""Region pictures against plans and pictures with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alt.visualize import draw_regions, merge_sheet, outline_regions, region_map
from alt.visualize.regions import DARK, LIGHT
from alt_kernels import bipartite_soft_matching, source_map


def test_region_map_puts_patches_where_they_are_in_the_photograph() -> None:
    """Row-major, class token dropped: patch (y, x) is token 1 + y w + x; the grid is not square on purpose."""
    source = torch.tensor([0, 5, 5, 1, 2, 5, 3], dtype=torch.int32)
    assert region_map(source, (2, 3)).tolist() == [[5, 5, 1], [2, 5, 3]]
    assert region_map(source.numpy()[1:], (3, 2), num_protected=0).tolist() == [[5, 5], [1, 2], [5, 3]]


def test_matching_of_a_two_coloured_picture_never_joins_the_colours() -> None:
    """A picture whose left 3 columns of patches are red and the others blue, merged by its own colours for 3 rounds."""
    height, width = 4, 6
    colour = torch.zeros(height, width, 3)
    colour[:, :3, 0] = 1
    colour[:, 3:, 2] = 1
    tokens = torch.cat([torch.ones(1, 1, 3), colour.reshape(1, -1, 3)], dim=1)
    plans = []
    for r in (8, 6, 4):
        plan = bipartite_soft_matching(tokens, r)
        first = plan.indices.long().gather(1, plan.offsets[:, :-1].long())  # every region is of one colour
        tokens = tokens.gather(1, first.unsqueeze(-1).expand(-1, -1, 3))
        plans.append(plan)
    regions = region_map(source_map(plans)[0], (height, width))
    left, right = set(regions[:, :3].ravel()), set(regions[:, 3:].ravel())
    assert not left & right
    assert len(left | right) == height * width - 18
    image = np.rint(colour.numpy() * 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    assert np.array_equal(draw_regions(image, regions, borders=False), image)


def test_regions_are_filled_with_their_mean_and_outlined() -> None:
    regions = np.array([[0, 1], [0, 2]])
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4] = (100, 0, 10)  # region 0 has two halves
    image[4:, :4] = (200, 0, 30)
    image[:4, 4:] = (250, 250, 250)
    image[4:, 4:] = (0, 0, 40)
    filled = draw_regions(image, regions, borders=False)
    assert (filled[:, :4] == (150, 0, 20)).all()
    assert (filled[:4, 4:] == 250).all()
    assert (filled[4:, 4:] == (0, 0, 40)).all()

    drawn = draw_regions(image, regions)
    edge = (drawn != filled).any(-1)
    expected = np.zeros((8, 8), bool)
    expected[:, 3:5] = True  # beside region 0; not inside it, and not between the single patches 1 and 2
    assert np.array_equal(edge, expected)
    assert (drawn[:, 3] == DARK).all()
    assert (drawn[:, 4] == LIGHT).all()
    outlined = outline_regions(image, regions)
    assert np.array_equal(outlined[~expected], image[~expected])
    assert np.array_equal(outlined[expected], drawn[expected])


def test_pieces_of_a_region_that_do_not_touch_share_the_mean() -> None:
    image = np.zeros((2, 6, 3), np.uint8)
    image[:, :2], image[:, 2:4], image[:, 4:] = 10, 90, 30
    filled = draw_regions(image, np.array([[7, 3, 7]]), borders=False)
    assert (filled[:, :2] == 20).all()
    assert (filled[:, 4:] == 20).all()
    assert (filled[:, 2:4] == 90).all()


def test_input_is_not_changed_and_the_mean_is_kept() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (56, 70, 3), dtype=np.uint8)
    before = image.copy()
    regions = rng.integers(0, 9, (5, 7))  # cells of 11.2 x 10 pixels
    filled = draw_regions(image, regions, borders=False)
    outline_regions(image, regions)
    assert np.array_equal(image, before)
    assert np.abs(filled.mean((0, 1)) - image.mean((0, 1))).max() <= 0.5
    assert len(np.unique(filled.reshape(-1, 3), axis=0)) == len(np.unique(regions))


def test_sheet_has_a_panel_for_every_map_in_order() -> None:
    image = np.full((32, 64, 3), 200, np.uint8)
    image[:, 32:] = 40
    maps = [np.arange(16).reshape(4, 4), np.zeros((4, 4), int)]
    maps[0][0, 1] = 0
    sheet = np.asarray(merge_sheet(image, maps, ["one", "two"], title="t", columns=4, panel=64))
    left, top, step = 12, 44, 64 + 12
    panels = [sheet[top : top + 32, left + i * step : left + i * step + 64] for i in range(4)]
    assert np.array_equal(panels[0], image)
    assert np.array_equal(panels[1], draw_regions(image, maps[0]))
    assert (panels[2] == 120).all()  # one region: the mean, no outline
    assert np.array_equal(panels[3], outline_regions(image, maps[1]))
    assert merge_sheet(image, maps, ["one", "two"], columns=2, panel=64).height > sheet.shape[0]
    assert merge_sheet(image, maps, ["one", "two"], panel=128).width > sheet.shape[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: region_map(torch.zeros(10, dtype=torch.int32), (3, 4)), r"source must have 1 \+ 3 x 4 = 13 entries"),
        (lambda: region_map(torch.zeros(2, 13, dtype=torch.int32), (3, 4)), r"got shape \(2, 13\)"),
        (lambda: region_map(torch.zeros(13), (3, 4)), "source must hold integers"),
        (lambda: draw_regions(np.zeros((4, 4, 3)), np.zeros((2, 2), int)), r"image must be uint8 \[H, W, 3\]"),
        (lambda: draw_regions(np.zeros((4, 4), np.uint8), np.zeros((2, 2), int)), "image must be uint8"),
        (lambda: draw_regions(np.zeros((4, 4, 3), np.uint8), np.zeros((5, 2), int)), r"regions must be \[h, w\]"),
        (lambda: merge_sheet(np.zeros((4, 4, 3), np.uint8), [], []), "captions must have one line"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
