"""From pixels to a tower's input and back."""

from __future__ import annotations

import torch

from alt.data.pixels import denormalise, normalise


def test_back_to_the_same_pixels() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]
    assert torch.equal(denormalise(normalise(frames)), frames)
    own = ((0.5, 0.4, 0.3), [0.2, 0.3, 0.4])
    assert torch.equal(denormalise(normalise(frames, *own), *own), frames)
    assert torch.equal(denormalise(normalise(frames).double()), frames)


def test_another_towers_statistics() -> None:
    white = torch.full((2, 3, 1, 1), 255, dtype=torch.uint8)
    expected = torch.tensor([(1 - 0.5) / 0.2, (1 - 0.4) / 0.3, (1 - 0.3) / 0.4]).view(3, 1, 1).expand(2, 3, 1, 1)
    torch.testing.assert_close(normalise(white, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), expected)


def test_values_out_of_range_are_clipped() -> None:
    assert denormalise(torch.full((3, 1, 1), 9.0)).flatten().tolist() == [255] * 3
    assert denormalise(torch.full((3, 1, 1), -9.0)).flatten().tolist() == [0] * 3
