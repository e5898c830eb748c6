"""Which frames and which crops of a video a model sees (sparse segment sampling, views).

Sparse sampling (TSN, Wang et al. 2016; the ALT paper's hyper-parameters): a video of F frames is divided into T equal
segments and one frame is taken of each, at random in training, the middle one in testing. Views are "frames x spatial
crops x temporal clips" in the papers' tables; the score of a video is the sum of the views' softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _check(length: int, frames: int) -> None:
    if length < 1:
        raise ValueError(f"length: a video has at least 1 frame, got {length}")
    if frames < 1:
        raise ValueError(f"frames: at least 1 frame is sampled, got {frames}")


def segment_bounds(length: int, frames: int) -> Tensor:
    """Bounds of T segments of F frames, int64 ``[T + 1]``: ``floor(t F / T)``. A segment may be empty where F < T."""
    _check(length, frames)
    return torch.arange(frames + 1, dtype=torch.int64) * length // frames


def sample_train(length: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """One random frame of every segment, int64 ``[T]``, ascending, each in ``[0, length)``.

    The draw of segment t is ``floor(F (t + U) / T)``, U uniform in [0, 1): where F is a multiple of T this is a uniform
    frame of the segment, and a video shorter than T repeats frames in order.
    """
    _check(length, frames)
    offset = torch.rand(frames, generator=generator, dtype=torch.float64)
    place = (torch.arange(frames, dtype=torch.float64) + offset) * (length / frames)
    return place.floor().to(torch.int64).clamp_(max=length - 1)  # the product may round up to F itself


def sample_test(length: int, frames: int, clips: int = 1, clip: int = 0) -> Tensor:
    """The middle frame of every segment, int64 ``[T]``: ``floor(F (t + (clip + 1/2) / clips) / T)``.

    With several temporal clips, clip k takes the k-th of the evenly spaced places of every segment, so that the clips
    of a long video share no frame; one clip takes the middle.
    """
    _check(length, frames)
    if not 0 <= clip < clips:
        raise ValueError(f"clip: in [0, {clips}), got {clip}")
    numerator = (torch.arange(frames, dtype=torch.int64) * 2 * clips + 2 * clip + 1) * length
    return numerator // (2 * clips * frames)


def take_frames(video: Tensor, frames: int, seed: int | None) -> Tensor:
    """Returns ``frames`` of a video ``[F, ...]``: a random one per segment, decided by ``seed``; None: the middle."""
    if seed is None:
        return video[sample_test(len(video), frames)]
    return video[sample_train(len(video), frames, torch.Generator().manual_seed(seed))]


def crop_offsets(height: int, width: int, size: int, crops: int = 1) -> list[tuple[int, int]]:
    """(top, left) of square crops: the centre, or both ends and the middle of the longer side."""
    if size > min(height, width):
        raise ValueError(f"size: a crop of {size} does not fit into frames of {height} x {width}")
    if crops not in (1, 3):
        raise ValueError(f"crops: 1 (centre) or 3 (along the longer side), got {crops}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    if crops == 1:
        return [(top, left)]
    if height >= width:
        return [(0, left), (top, left), (height - size, left)]
    return [(top, 0), (top, left), (top, width - size)]


def resize_short_side(clip: Tensor, size: int) -> Tensor:
    """Frames ``[..., H, W]`` (uint8 or float) with the shorter side ``size``, bilinear with antialiasing."""
    from torchvision.transforms.v2 import functional as F

    height, width = clip.shape[-2:]
    if min(height, width) == size:
        return clip
    scale = size / min(height, width)
    return F.resize(clip, [max(size, round(height * scale)), max(size, round(width * scale))], antialias=True)


def make_views(
    video: Tensor, frames: int, size: int, *, crops: int = 1, clips: int = 1, resize: int | None = None
) -> Tensor:
    """All views of a video ``[F, 3, H, W]``, clip by clip: ``[clips * crops, T, 3, size, size]``.

    The short side is first resized to ``resize``; without it to ``size`` for three crops, and to ``size * 256 / 224``
    (rounded) for the centre crop, unless the video's short side is ``size`` already.
    """
    if video.ndim != 4:
        raise ValueError(f"video: [F, 3, H, W], got {list(video.shape)}")
    if resize is None:
        resize = size if crops == 3 or min(video.shape[-2:]) == size else round(size * 256 / 224)
    found = []
    for clip in range(clips):
        picked = resize_short_side(video[sample_test(video.shape[0], frames, clips, clip)], resize)
        for top, left in crop_offsets(picked.shape[-2], picked.shape[-1], size, crops):
            found.append(picked[..., top : top + size, left : left + size])
    return torch.stack(found)
