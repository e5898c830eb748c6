"""Augmentation of clips, with one draw for all frames of a clip, and mixing of a batch.

Every draw is a function of (seed, epoch, sample number), never of the order in which loaders reach a sample. So a run
that was killed and resumed sees the same pictures. ``ClipAugment.draw`` returns the draws as plain numbers and
``apply`` uses them, so the augmentation of a clip can be recorded and repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Draws(NamedTuple):
    """The augmentation drawn for one clip."""

    crop: tuple[int, int, int, int]  # top, left, height, width
    flip: bool
    jitter: tuple[tuple[int, ...], tuple[float, float, float, float]] | None  # order; brightness, contrast, sat., hue
    gray: bool


def _check_probabilities(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: a probability in [0, 1], got {value}")


@dataclass(frozen=True)
class ClipAugment:
    """Multi-scale crop, flip, colour jitter and grayscale, drawn once per clip.

    Clips are ``[T, 3, H, W]``, uint8 or in [0, 1]. The crop is TSN's MultiScaleCrop: sides ``s * min(H, W)`` with s of
    ``scales``, at one of 13 fixed places, resized to ``size``. Height and width are at most ``max_distort`` steps of
    the list apart. ``flip`` mirrors left and right: switch it off where a label depends on direction, as in
    EntityWorld.
    """

    size: int
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    max_distort: int = 1
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1 pixel, got {self.size}")
        if not self.scales or not all(0 < s <= 1 for s in self.scales):
            raise ValueError(f"scales: expected numbers in (0, 1], got {self.scales}")
        _check_probabilities(flip=self.flip, jitter=self.jitter, gray=self.gray)
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue: expected a share of a turn in [0, 0.5], got {self.hue}")

    @classmethod
    def embedded(cls, size: int, **changes: float) -> ClipAugment:
        """Returns the augmentation for EntityWorld: mild crops, no flip and no colour change.

        Labels there depend on left and right, and objects are told apart by colour.
        """
        mild = {
            "flip": 0.0,
            "jitter": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.1,
            "hue": 0.0,
            "gray": 0.0,
        }
        return cls(size, scales=(1.0, 0.917), **{**mild, **changes})  # type: ignore[arg-type]

    def draw(self, height: int, width: int, generator: torch.Generator) -> Draws:
        """Returns all draws of one clip. The number of random numbers used does not depend on the outcome."""
        u = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
        base = min(height, width)
        sides = [int(base * s) for s in self.scales]
        pairs = [
            (h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= self.max_distort
        ]  # fmt: skip
        crop_h, crop_w = pairs[int(u[0] * len(pairs))]
        places = _fixed_places(height, width, crop_h, crop_w)
        top, left = places[int(u[1] * len(places))]
        jitter = None
        if u[2] < self.jitter:
            order = torch.argsort(torch.tensor(u[3:7])).tolist()

            def factor(strength: float, draw: float) -> float:
                return max(0.0, 1.0 - strength) + draw * (1.0 + strength - max(0.0, 1.0 - strength))

            jitter = (
                tuple(order),
                (
                    factor(self.brightness, u[7]),
                    factor(self.contrast, u[8]),
                    factor(self.saturation, u[9]),
                    self.hue * (2 * u[10] - 1),
                ),
            )
        flip, gray = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        return Draws((top, left, crop_h, crop_w), flip < self.flip, jitter, gray < self.gray)

    def apply(self, clip: Tensor, draws: Draws) -> Tensor:
        """Returns the augmented clip ``[T, 3, size, size]`` in its own dtype; all frames are treated alike."""
        from torchvision.transforms.v2 import functional as F

        clip = F.resized_crop(clip, *draws.crop, [self.size, self.size], antialias=True)
        if draws.flip:
            clip = F.horizontal_flip(clip)
        if draws.jitter is not None:
            order, (brightness, contrast, saturation, hue) = draws.jitter
            steps = (
                lambda c: F.adjust_brightness(c, brightness),
                lambda c: _contrast(c, contrast),
                lambda c: F.adjust_saturation(c, saturation),
                lambda c: F.adjust_hue(c, hue) if hue else c,
            )
            for number in order:
                clip = steps[number](clip)
        if draws.gray:
            clip = F.rgb_to_grayscale(clip, num_output_channels=3)
        return clip

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        if clip.ndim != 4 or clip.shape[1] != 3:
            raise ValueError(f"clip: expected [T, 3, H, W], got {list(clip.shape)}")
        return self.apply(clip, self.draw(clip.shape[-2], clip.shape[-1], generator))


def _contrast(clip: Tensor, factor: float) -> Tensor:
    """Scales contrast about the mean grey of the whole clip: torchvision's mean per frame would flicker."""
    from torchvision.transforms.v2 import functional as F

    mean = F.rgb_to_grayscale(clip.to(torch.float32)).mean()
    mixed = factor * clip.to(torch.float32) + (1.0 - factor) * mean
    if clip.is_floating_point():
        return mixed.clamp(0.0, 1.0).to(clip.dtype)
    return mixed.round().clamp(0.0, 255.0).to(clip.dtype)


def _fixed_places(height: int, width: int, crop_h: int, crop_w: int) -> list[tuple[int, int]]:
    """Returns 13 (top, left) offsets: a 3 x 3 grid over the free room, and the centres of its quarters."""
    down, right = (height - crop_h) / 4, (width - crop_w) / 4
    grid = [(i, j) for i in (0, 2, 4) for j in (0, 2, 4)] + [(i, j) for i in (1, 3) for j in (1, 3)]
    return [(int(i * down), int(j * right)) for i, j in grid]


# --- a batch ---


def smooth_labels(labels: Tensor, classes: int, smoothing: float = 0.1) -> Tensor:
    """Returns soft targets, float32 ``[B, C]``: ``(1 - s) onehot + s / C``. Rows sum to 1."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing}")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(f"labels: expected numbers in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
    targets = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return targets.scatter_add_(
        1, labels.view(-1, 1).to(torch.int64), torch.full((len(labels), 1), 1.0 - smoothing, device=labels.device)
    )


class MixDraw(NamedTuple):
    """The mixing drawn for a batch. ``kind``: none, mixup or cutmix. ``weight``: the share of a sample's own label."""

    kind: str
    weight: float
    box: tuple[int, int, int, int]  # top, left, bottom, right of the pasted region


@dataclass(frozen=True)
class Mix:
    """Mixes a batch with itself in reverse order, with soft labels.

    Mixup (Zhang et al. 2018): ``x' = w x + (1 - w) x[::-1]`` with w ~ Beta(a, a). CutMix (Yun et al. 2019) pastes a
    box of area 1 - w, the same in every frame; w becomes the share of the area that is left. ``probability`` is the
    chance of mixing at all, and ``switch`` the chance of CutMix where both are on.
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    probability: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a Beta parameter, or 0 for off, got {getattr(self, name)}")
        _check_probabilities(switch=self.switch, probability=self.probability)

    def draw(self, height: int, width: int, generator: torch.Generator) -> MixDraw:
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        whole = (0, 0, 0, 0)
        if u[0] >= self.probability or (self.mixup == 0 and self.cutmix == 0):
            return MixDraw("none", 1.0, whole)
        cut = self.cutmix > 0 and (self.mixup == 0 or u[1] < self.switch)
        weight = _beta(self.cutmix if cut else self.mixup, generator)
        if not cut:
            return MixDraw("mixup", weight, whole)
        side = (1.0 - weight) ** 0.5
        half_h, half_w = int(height * side) / 2, int(width * side) / 2
        middle_y, middle_x = int(u[2] * height), int(u[3] * width)
        top, bottom = max(0, int(middle_y - half_h)), min(height, int(middle_y + half_h))
        left, right = max(0, int(middle_x - half_w)), min(width, int(middle_x + half_w))
        area = (bottom - top) * (right - left)
        return MixDraw("cutmix", 1.0 - area / (height * width), (top, left, bottom, right))

    def apply(self, clips: Tensor, labels: Tensor, draw: MixDraw) -> tuple[Tensor, Tensor]:
        """Returns mixed clips ``[B, ..., H, W]`` (float) and soft targets ``[B, C]``. Inputs are not changed."""
        targets = smooth_labels(labels, self.classes, self.smoothing)
        if draw.kind == "none":
            return clips, targets
        other = clips.flip(0)
        if draw.kind == "mixup":
            mixed = clips * draw.weight + other * (1.0 - draw.weight)
        else:
            top, left, bottom, right = draw.box
            mixed = clips.clone()
            mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return mixed, targets * draw.weight + targets.flip(0) * (1.0 - draw.weight)

    def __call__(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not clips.is_floating_point():
            raise TypeError(f"clips: expected floating point for mixing, got {clips.dtype}")
        if len(clips) != len(labels):
            raise ValueError(f"labels: expected one for each of {len(clips)} clips, got {len(labels)}")
        return self.apply(clips, labels, self.draw(clips.shape[-2], clips.shape[-1], generator))


def _beta(a: float, generator: torch.Generator) -> float:
    """Draws from Beta(a, a) as a ratio of gammas: torch.distributions accepts no generator."""
    shape = torch.full((2,), a, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).tolist()
    total = first + second
    return first / total if total > 0 else 0.5
