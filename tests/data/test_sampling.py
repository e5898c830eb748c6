"""Which frames and crops are taken: bounds, order, segments, and the law of the draws."""

from __future__ import annotations

import pytest
import torch

from alt.data.sampling import (
    crop_offsets,
    make_views,
    sample_dense,
    sample_test,
    sample_train,
    segment_bounds,
    take_frames,
)


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_every_length_gives_one_frame_of_every_segment(frames: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for length in range(1, 301):
        bounds = (
            torch.arange(frames + 1, dtype=torch.float64) * length / frames
        )  # segment t is [t F / T, (t + 1) F / T)
        for index in (sample_test(length, frames), sample_train(length, frames, generator)):
            assert index.dtype == torch.int64
            assert index.shape == (frames,)
            assert int(index.min()) >= 0
            assert int(index.max()) < length
            assert bool((index.diff() >= 0).all())
            assert bool((index >= bounds[:-1].floor()).all())
            assert bool((index < bounds[1:].ceil()).all())
        if length >= frames:
            assert sample_test(length, frames).unique().numel() == frames


def test_known_indices() -> None:
    assert sample_test(16, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert sample_test(8, 8).tolist() == list(range(8))
    assert sample_test(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert sample_test(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sample_test(60, 2, clips=3, clip=0).tolist() == [5, 35]
    assert sample_test(60, 2, clips=3, clip=2).tolist() == [25, 55]
    assert segment_bounds(10, 4).tolist() == [0, 2, 5, 7, 10]


def test_clips_of_a_long_video_share_no_frame() -> None:
    for length in (96, 97, 300):
        taken = torch.cat([sample_test(length, 32, 3, clip) for clip in range(3)])
        assert taken.unique().numel() == 96


def test_training_draws_are_uniform_in_their_segment_and_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sample_train(40, 8, generator) for _ in range(2000)])
    for t in range(8):
        counts = torch.bincount(draws[:, t] - 5 * t, minlength=5)
        assert len(counts) == 5
        assert float((counts - 400).abs().max()) < 3.5 * (2000 * 0.2 * 0.8) ** 0.5  # 40 counts: 3 sigma is too narrow
    again = sample_train(300, 16, torch.Generator().manual_seed(5))
    assert torch.equal(again, sample_train(300, 16, torch.Generator().manual_seed(5)))
    assert not torch.equal(again, sample_train(300, 16, torch.Generator().manual_seed(6)))


def test_dense_frames_are_a_stride_apart() -> None:
    assert sample_dense(100, 8, 4).tolist() == [36, 40, 44, 48, 52, 56, 60, 64]  # 72 starts, the middle one
    assert sample_dense(29, 8, 4).tolist() == [0, 4, 8, 12, 16, 20, 24, 28]  # one start
    assert sample_dense(28, 8, 4).tolist() == sample_test(28, 8).tolist()  # too short
    assert [int(sample_dense(100, 8, 4, clips=4, clip=k)[0]) for k in range(4)] == [9, 27, 45, 63]
    assert sample_dense(10, 3, 1, clips=2, clip=1).tolist() == [6, 7, 8]
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([sample_dense(16, 4, 3, generator=generator) for _ in range(1400)])
    assert bool((starts.diff() == 3).all())
    counts = torch.bincount(starts[:, 0], minlength=7)
    assert len(counts) == 7
    assert float((counts - 200).abs().max()) < 4 * (1400 * (1 / 7) * (6 / 7)) ** 0.5
    short = sample_dense(9, 4, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(short, sample_train(9, 4, torch.Generator().manual_seed(3)))


def test_views_and_training_clips_take_the_dense_frames() -> None:
    video = torch.arange(40).view(40, 1, 1, 1).expand(-1, 3, 8, 8).to(torch.float32)
    views = make_views(video, 4, 8, clips=2, stride=5)
    for clip in range(2):
        assert views[clip, :, 0, 0, 0].tolist() == sample_dense(40, 4, 5, clips=2, clip=clip).tolist()
    assert take_frames(video, 4, None, 5)[:, 0, 0, 0].tolist() == [12, 17, 22, 27]
    taken = take_frames(video, 4, 7, 5)[:, 0, 0, 0]
    assert taken.diff().tolist() == [5, 5, 5]
    assert torch.equal(taken, take_frames(video, 4, 7, 5)[:, 0, 0, 0])


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    sample_train(300, 16, torch.Generator().manual_seed(5))
    assert torch.equal(before, torch.get_rng_state())


def test_crops() -> None:
    assert crop_offsets(224, 320, 224, 3) == [(0, 0), (0, 48), (0, 96)]
    assert crop_offsets(320, 224, 224, 3) == [(0, 0), (48, 0), (96, 0)]
    assert crop_offsets(256, 340, 224) == [(16, 58)]
    with pytest.raises(ValueError, match="does not fit"):
        crop_offsets(100, 300, 224)
    with pytest.raises(ValueError, match="crops: expected 1 "):
        crop_offsets(300, 300, 224, 2)


def test_views_are_the_right_pixels_in_the_right_order() -> None:
    video = torch.arange(12 * 8 * 14).view(12, 1, 8, 14).expand(-1, 3, -1, -1).to(torch.float32)
    views = make_views(video, 4, 8, crops=3, clips=2)
    assert views.shape == (6, 4, 3, 8, 8)
    for clip in range(2):
        for crop, left in enumerate((0, 3, 6)):
            expected = video[sample_test(12, 4, 2, clip)][..., left : left + 8]
            assert torch.equal(views[3 * clip + crop], expected)
    single = make_views(video, 4, 8)
    assert torch.equal(single[0], video[[1, 4, 7, 10]][..., 3:11])


def test_single_view_of_a_large_video_is_resized_first() -> None:
    video = torch.zeros(2, 3, 480, 640, dtype=torch.uint8)
    assert make_views(video, 2, 224).shape == (1, 2, 3, 224, 224)
    video[..., :64, :] = 255  # above the centre crop of 224 out of 256: rows below 480 * 16 / 256 = 30 only are cut
    view = make_views(video, 2, 224)[0, 0, 0].float().mean(1)
    assert view[0] == 255
    assert view[30] == 0  # row 64 of 480 is row 34 of 256, 18 of the crop


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: sample_test(0, 8), "length"),
        (lambda: sample_train(4, 0), "frames"),
        (lambda: sample_test(4, 2, 3, 3), "clip"),
        (lambda: sample_dense(4, 2, 0), "stride"),
        (lambda: sample_dense(9, 2, 2, clips=2, clip=2), "clip"),
        (lambda: make_views(torch.zeros(3, 8, 8), 2, 8), "video"),
    ],
)
def test_bad_arguments_are_named(call, word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}: "):
        call()
