"""The configuration of a world: sizes, counts, rates. Worlds of equal configuration are equal picture for picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from alt.validation import Count, Finite, Natural, NotNegative, Positive, Share, checked

MAX_DISTRACTORS = 6


@dataclass(frozen=True)
class Style:
    """Differences between the pictures of two data sets that show the same atoms."""

    name: str
    rho: float  # chance that a clip shows the preferred part (and, independently, the preferred scene) of its class
    hue: float  # rotation of every colour, in turns
    scale: float  # factor on the size of objects and parts
    contrast: float  # factor on the contrast of the scene's texture


@checked
class WorldConfig:
    """Configuration of an entity world.

    Counts are of atoms (the first so many of the vocabulary, which limits them) and classes. Lengths are fractions of
    the canvas's side.
    ``motions`` counts whole time-reversal pairs first (8), then motions that are their own reversal.
    """

    seed: Natural = 0
    size: Annotated[int, Strict(), Field(ge=8)] = 24
    frames: Count = 4
    objects: Annotated[int, Strict(), Field(ge=2, le=32)] = 12
    parts: Annotated[int, Strict(), Field(ge=2, le=8)] = 4
    scenes: Annotated[int, Strict(), Field(ge=2, le=16)] = 6
    motions: Annotated[int, Strict(), Field(ge=2, le=16)] = 8
    seen_classes: Count = 60
    transfer_classes: Count = 20
    train_per_class: Count = 40
    test_per_class: Count = 10
    transfer_train_per_class: Count = 20
    transfer_test_per_class: Count = 10
    object_radius: Positive = 0.19
    part_radius: Positive = 0.15
    amplitude: NotNegative = 0.6
    distractors: tuple[int, int] = (2, 4)
    distractor_radius: Positive = 0.11
    distractor_alpha: NotNegative = 0.45
    noise: NotNegative = 0.06
    colour_jitter: NotNegative = 0.12
    texture: NotNegative = 0.5
    occluder_rate: Share = 0.25
    rho: Share = 0.5
    transfer_rho: Share = 0.2
    palette_shift: Finite = 0.04
    size_shift: Finite = 0.12
    opaque_rate: Share = 0.1
    synonym_rate: Share = 0.15
    object_caption_rate: Share = 0.10
    motion_caption_rate: Share = 0.075

    @model_validator(mode="after")
    def _counts_fit(self) -> WorldConfig:
        if self.motions < 8 and self.motions % 2:
            raise ValueError(f"motions: an even number below 8, as they come in pairs, got {self.motions}")
        low, high = self.distractors
        if not 0 <= low <= high <= MAX_DISTRACTORS:
            raise ValueError(f"distractors: a range within 0 to {MAX_DISTRACTORS}, got {self.distractors}")
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> WorldConfig:
        """``cpu`` (24 px, 4 frames, 60 classes), ``gpu`` (64 px, 8 frames, 250 classes) or ``tiny`` (for tests)."""
        if name not in PRESETS:
            raise ValueError(f"preset: one of {sorted(PRESETS)}, got {name!r}")
        return replace(PRESETS[name], **changes)

    def style(self, name: str) -> Style:
        """``seen``, ``transfer-a`` or ``transfer-b``."""
        if name == "seen":
            return Style(name, self.rho, 0.0, 1.0, 1.0)
        if name == "transfer-a":
            return Style(name, self.transfer_rho, self.palette_shift, 1.0 - self.size_shift, 1.3)
        if name == "transfer-b":
            return Style(name, self.transfer_rho, -self.palette_shift, 1.0 + self.size_shift, 0.7)
        raise ValueError(f"style: one of {STYLES}, got {name!r}")


STYLES = ("seen", "transfer-a", "transfer-b")
PRESETS = {
    "cpu": WorldConfig(),
    "gpu": WorldConfig(
        size=64,
        frames=8,
        objects=32,
        parts=8,
        scenes=16,
        motions=16,
        seen_classes=250,
        transfer_classes=50,
        train_per_class=100,
        test_per_class=20,
    ),
    "tiny": WorldConfig(
        objects=5,
        parts=2,
        scenes=3,
        motions=4,
        seen_classes=10,
        transfer_classes=4,
        train_per_class=4,
        test_per_class=2,
        transfer_train_per_class=4,
        transfer_test_per_class=2,
    ),
}
