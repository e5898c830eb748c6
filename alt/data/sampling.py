"""Selection of frames and crops of a video: sparse segment sampling and views.

Sparse sampling (TSN, Wang et al. 2016; the ALT paper's hyper-parameters) divides a video of F frames into T equal
segments and takes one frame of each: a random one in training, the middle one in testing. The papers' tables write
views as "frames x spatial crops x temporal clips". The score of a video is the sum of its views' softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alt.files import check_decoded

from .video import Video, as_video


def _check(length: int, frames: int) -> None:
    if length < 1:
        raise ValueError(f"length: expected a video of at least 1 frame, got {length}")
    if frames < 1:
        raise ValueError(f"frames: expected at least 1 frame, got {frames}")


def segment_bounds(length: int, frames: int) -> Tensor:
    """Returns the bounds of T segments of F frames, int64 ``[T + 1]``: ``floor(t F / T)``.

    Segments may be empty if F < T.
    """
    _check(length, frames)
    return torch.arange(frames + 1, dtype=torch.int64) * length // frames


def sample_train(length: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns one random frame per segment, int64 ``[T]``, ascending, each in ``[0, length)``.

    Segment t draws ``floor(F (t + U) / T)`` with U uniform in [0, 1). If F is a multiple of T, this is a uniform frame
    of the segment. A video shorter than T repeats frames in order.
    """
    _check(length, frames)
    offset = torch.rand(frames, generator=generator, dtype=torch.float64)
    place = (torch.arange(frames, dtype=torch.float64) + offset) * (length / frames)
    return place.floor().to(torch.int64).clamp_(max=length - 1)  # the product may round up to F itself


def sample_test(length: int, frames: int, clips: int = 1, clip: int = 0) -> Tensor:
    """Returns the middle frame of every segment, int64 ``[T]``: ``floor(F (t + (clip + 1/2) / clips) / T)``.

    With several temporal clips, clip k takes the k-th of ``clips`` evenly spaced places per segment, so the clips of
    a long video share no frame.
    """
    _check(length, frames)
    if not 0 <= clip < clips:
        raise ValueError(f"clip: expected a number in [0, {clips}), got {clip}")
    numerator = (torch.arange(frames, dtype=torch.int64) * 2 * clips + 2 * clip + 1) * length
    return numerator // (2 * clips * frames)


def sample_dense(
    length: int, frames: int, stride: int, *, clips: int = 1, clip: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Returns frames ``stride`` apart, int64 ``[T]``: ``start + t stride``, t from 0.

    There are ``S = F - (T - 1) stride`` starts. With a generator one is drawn uniformly; without one it is the middle,
    or with several temporal clips the k-th of as many evenly spaced: ``floor(S (clip + 1/2) / clips)``. A video with
    fewer frames than that, so that S is below 1, is sampled sparsely.
    """
    _check(length, frames)
    if stride < 1:
        raise ValueError(f"stride: expected at least 1 frame, got {stride}")
    starts = length - (frames - 1) * stride
    if starts < 1:
        return _sample(length, frames, None, clips=clips, clip=clip, generator=generator)
    if not 0 <= clip < clips:
        raise ValueError(f"clip: expected a number in [0, {clips}), got {clip}")
    if generator is None:
        start = starts * (2 * clip + 1) // (2 * clips)
    else:
        start = int(torch.randint(starts, (), generator=generator))
    return start + stride * torch.arange(frames, dtype=torch.int64)


def _sample(
    length: int,
    frames: int,
    stride: int | None,
    *,
    clips: int = 1,
    clip: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns frames ``stride`` apart, or without it one per segment: random ones with a generator, or the middle."""
    if stride is not None:
        return sample_dense(length, frames, stride, clips=clips, clip=clip, generator=generator)
    return sample_test(length, frames, clips, clip) if generator is None else sample_train(length, frames, generator)


def take_frames(video: Video | Tensor, frames: int, seed: int | None, stride: int | None = None) -> Tensor:
    """Returns ``frames`` frames of a video. Others are not read.

    Without ``stride`` it is a random one per segment, or the middle one where ``seed`` is None; otherwise frames
    ``stride`` apart.
    """
    video = as_video(video)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return video.read(_sample(video.frames, frames, stride, generator=generator))


def crop_offsets(height: int, width: int, size: int, crops: int = 1) -> list[tuple[int, int]]:
    """Returns (top, left) of square crops: the centre, or both ends and the middle of the longer side."""
    if size > min(height, width):
        raise ValueError(f"size: a crop of {size} does not fit into frames of {height} x {width}")
    if crops not in (1, 3):
        raise ValueError(f"crops: expected 1 (centre) or 3 (along the longer side), got {crops}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    if crops == 1:
        return [(top, left)]
    if height >= width:
        return [(0, left), (top, left), (height - size, left)]
    return [(top, 0), (top, left), (top, width - size)]


def resize_short_side(clip: Tensor, size: int) -> Tensor:
    """Resizes frames ``[..., H, W]`` (uint8 or float) to a shorter side of ``size``, bilinear with antialiasing.

    Raises:
        ValueError: frames of one pixel by thousands would take more memory than :func:`alt.files.decoded_limit`.
    """
    from torchvision.transforms.v2 import functional as F

    height, width = clip.shape[-2:]
    if min(height, width) == size:
        return clip
    scale = size / min(height, width)
    high, wide = max(size, round(height * scale)), max(size, round(width * scale))
    where = f"frames of {height} x {width} with a shorter side of {size}"
    check_decoded(4 * (clip.numel() // (height * width)) * high * wide, where)  # in float32, as they are resized
    return F.resize(clip, [high, wide], antialias=True)


def make_views(
    video: Video | Tensor,
    frames: int,
    size: int,
    *,
    crops: int = 1,
    clips: int = 1,
    resize: int | None = None,
    stride: int | None = None,
) -> Tensor:
    """Returns all views of a video, clip by clip: ``[clips * crops, T, 3, size, size]``. Other frames are not read.

    The short side is first resized to ``resize``. Without it, the side becomes ``size`` for three crops and
    ``size * 256 / 224`` (rounded) for the centre crop, unless it is ``size`` already. stride: of dense sampling
    (:func:`sample_dense`), None: sparse sampling.
    """
    video = as_video(video)
    places = [_sample(video.frames, frames, stride, clips=clips, clip=clip) for clip in range(clips)]
    chosen = video.read(torch.cat(places))
    if resize is None:
        resize = size if crops == 3 or min(chosen.shape[-2:]) == size else round(size * 256 / 224)
    found = []
    for clip in chosen.split(frames):
        picked = resize_short_side(clip, resize)
        for top, left in crop_offsets(picked.shape[-2], picked.shape[-1], size, crops):
            found.append(picked[..., top : top + size, left : left + size])
    return torch.stack(found)
