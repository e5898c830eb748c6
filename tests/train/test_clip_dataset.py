"""Training clips of a list file: what comes out is a function of (seed, epoch, clip)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alt.data.clips import ClipError, ClipFiles, write_clips
from alt.data.pixels import normalise
from alt.errors import UserError
from alt.train.config import load_config
from alt.train.data import ClipData, ClipDataset, ClipTransform
from alt.train.sampler import SampleIndex

VIDEOS = torch.randint(0, 256, (2, 20, 3, 12, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def files(tmp_path: Path) -> ClipFiles:
    return ClipFiles(write_clips(tmp_path, VIDEOS, [1, 0], ["a", "b"], "npy"))


def dataset(files: ClipFiles, *overrides: str, seed: int = 0, frames: int = 4) -> Any:
    config = load_config("alt-b16-k400-8f", ["data.size=8", "data.resize=10", *overrides])
    return ClipDataset(
        files, torch.arange(2), frames, ClipTransform(config.data.size, config.data.resize, config.augmentation), seed
    )


def test_draws_follow_seed_epoch_and_clip(files: ClipFiles) -> None:
    data, again = dataset(files), dataset(files)
    first = [data[SampleIndex(i)][0] for i in (0, 1)]
    torch.rand(3)
    assert torch.equal(again[SampleIndex(1)][0], first[1])
    assert torch.equal(again[SampleIndex(0)][0], first[0])
    assert not torch.equal(again[SampleIndex(0, 1)][0], first[0])
    assert torch.equal(again[SampleIndex(0, 0)][0], first[0])
    assert not torch.equal(dataset(files, seed=1)[SampleIndex(0)][0], first[0])
    assert [data[SampleIndex(i)].labels for i in (0, 1, -1)] == [1, 0, -1]
    assert [data[SampleIndex(i)].numbers for i in (0, 1, -1)] == [0, 1, 0]


def test_without_augmentation_the_frames_stay_as_they_are(files: ClipFiles) -> None:
    """No flip, jitter or scale: the training clip is a crop of the frames themselves, in their order."""
    plain = "augmentation={flip: 0, crop_scales: [1], color_jitter: 0, grayscale: 0}"
    clip = dataset(files, plain, "data.size=12", frames=20)[SampleIndex(0)][0]
    options = [normalise(VIDEOS[0][..., left : left + 12]) for left in range(5)]
    assert any(torch.equal(clip, option) for option in options)


def test_one_class_is_refused_before_a_model_is_built(tmp_path: Path) -> None:
    """Kind: one class ended in another package's traceback. Missing clips are told at the same place, all at once."""
    write_clips(tmp_path, VIDEOS, [0, 0], ["a"], "npy")
    lists = [f"data.root={tmp_path}", "data.train_list=list.txt", "data.val_list=list.txt", "data.labels=labels.csv"]
    config = load_config("alt-b16-k400-8f", [*lists, "data.batch_size=2"])
    with pytest.raises(UserError, match=r"data\.labels: at least two classes are expected, got 1\."):
        ClipData(config)
    for file in (tmp_path / "clips").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"data: 2 of 2 clips in .*list\.txt are missing: .*000000\.npy, .*000001\.npy"):
        ClipData(config)


def test_an_error_in_training_names_the_clip(tmp_path: Path) -> None:
    files = ClipFiles(write_clips(tmp_path, VIDEOS, [1, 0], ["a", "b"], "npy"))
    data = dataset(files, "augmentation.crop_scales=null", "data.size=64", "data.resize=32")
    with pytest.raises(ClipError, match=r"000001\.npy: size: a crop of 64 does not fit"):
        data[SampleIndex(1)]
