"""The configuration of a world: sizes, counts, rates. Worlds of equal configuration are equal picture for picture."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

MAX_OBJECTS, MAX_PARTS, MAX_SCENES, MAX_MOTIONS = 32, 8, 16, 16
MAX_DISTRACTORS = 6


@dataclass(frozen=True)
class Style:
    """Differences between the pictures of two data sets that show the same atoms."""

    name: str
    rho: float  # chance that a clip shows the preferred part (and, independently, the preferred scene) of its class
    hue: float  # rotation of every colour, in turns
    scale: float  # factor on the size of objects and parts
    contrast: float  # factor on the contrast of the scene's texture


@dataclass(frozen=True)
class WorldConfig:
    """Configuration of an entity world.

    Counts are of atoms (the first so many of the vocabulary) and classes; lengths are fractions of the canvas's side.
    ``motions`` counts whole time-reversal pairs first (8), then motions that are their own reversal.
    """

    seed: int = 0
    size: int = 24
    frames: int = 4
    objects: int = 12
    parts: int = 4
    scenes: int = 6
    motions: int = 8
    seen_classes: int = 60
    transfer_classes: int = 20
    train_per_class: int = 40
    test_per_class: int = 10
    transfer_train_per_class: int = 20
    transfer_test_per_class: int = 10
    object_radius: float = 0.19
    part_radius: float = 0.15
    amplitude: float = 0.6
    distractors: tuple[int, int] = (2, 4)
    distractor_radius: float = 0.11
    distractor_alpha: float = 0.45
    noise: float = 0.06
    colour_jitter: float = 0.12
    texture: float = 0.5
    occluder_rate: float = 0.25
    rho: float = 0.5
    transfer_rho: float = 0.2
    palette_shift: float = 0.04
    size_shift: float = 0.12
    opaque_rate: float = 0.1
    synonym_rate: float = 0.15
    object_caption_rate: float = 0.10
    motion_caption_rate: float = 0.075

    def __post_init__(self) -> None:
        limits = {"objects": MAX_OBJECTS, "parts": MAX_PARTS, "scenes": MAX_SCENES, "motions": MAX_MOTIONS}
        for name, most in limits.items():
            if not 2 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: from 2 to {most} are in the vocabulary, got {getattr(self, name)}")
        if self.motions < 8 and self.motions % 2:
            raise ValueError(f"motions: an even number below 8, as they come in pairs, got {self.motions}")
        if self.size < 8 or self.frames < 1:
            raise ValueError(f"size and frames: at least 8 pixels and 1 frame, got {self.size} and {self.frames}")
        low, high = self.distractors
        if not 0 <= low <= high <= MAX_DISTRACTORS:
            raise ValueError(f"distractors: a range within 0 to {MAX_DISTRACTORS}, got {self.distractors}")
        for name in ("train_per_class", "test_per_class", "transfer_train_per_class", "transfer_test_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, got {getattr(self, name)}")
        for field in fields(self):
            if field.name.endswith(("rate", "rho")) and not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"{field.name}: a probability in [0, 1], got {getattr(self, field.name)}")

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
