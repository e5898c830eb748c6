"""The actions of a world, divided into seen and transferred ones.

A *cell* is (object, time-reversal pair of motions). A class of the motion family is one half of a cell whose other
half is in the same list, so only the order of frames distinguishes them. A compositional class is a cell's half alone,
or an object with a motion that is its own reversal. An appearance class is (object, scene) with a random motion. Cells
and (object, scene) pairs are used once: no transferred class shares one with a seen class, but every atom is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .counter import generator
from .vocabulary import MOTIONS, OBJECTS, OPAQUE, SCENES
from .world_config import WorldConfig

FAMILIES = ("appearance", "motion", "compositional")


@dataclass(frozen=True)
class ActionClass:
    """One action. Atoms are indices; ``None`` means that a clip of the class draws it at random."""

    name: str
    family: str  # appearance, motion, compositional, or "motion-only" for the instance-agnostic labels
    motion: int | None
    object: int | None
    scene: int | None  # given for appearance classes: part of what the class is
    preferred_part: int | None
    preferred_scene: int | None
    group: str  # seen, transfer-a, transfer-b, ssv2
    phrase: str  # the name in plain atoms: equals ``name`` unless that is a synonym or opaque
    naming: str  # plain, synonym or opaque


def _spread(first: int, second: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Returns all pairs (i < first, j < second); a run of ``first`` pairs has each i once and spreads j evenly."""
    order, other = rng.permutation(first), rng.permutation(second)
    return [(int(order[i]), int(other[(i + block) % second])) for block in range(second) for i in range(first)]


def family_counts(total: int) -> dict[str, int]:
    """Returns classes per family: a third appearance, two fifths motion (an even number), the rest compositional."""
    motion = 2 * round(0.2 * total)
    appearance = round(total / 3)
    return {"appearance": appearance, "motion": motion, "compositional": total - appearance - motion}


def build_classes(config: WorldConfig) -> list[ActionClass]:
    """Returns seen classes, then those of transfer-a, then of transfer-b; names are unique."""
    rng = generator(config.seed, "classes")
    pairs = min(config.motions, 8) // 2
    cells = iter(_spread(config.objects, pairs, rng))
    singles = iter(_spread(config.objects, config.motions - 2 * pairs, rng)) if config.motions > 8 else iter(())
    places = iter(_spread(config.objects, config.scenes, rng))
    opaque = iter(rng.permutation(len(OPAQUE)))
    classes: list[ActionClass] = []

    def preferred() -> tuple[int, int]:
        return int(rng.integers(config.parts)), int(rng.integers(config.scenes))

    def add(group: str, family: str, motion: int | None, thing: int, scene: int | None, liked: tuple[int, int]) -> None:
        if motion is None:
            assert scene is not None
            phrase = f"using {OBJECTS[thing].name} in {SCENES[scene].name}"
        else:
            phrase = f"{MOTIONS[motion].name} {OBJECTS[thing].name}"
        name, naming, draw = phrase, "plain", rng.random()
        if family != "motion" and draw < config.opaque_rate:
            number = next(opaque, None)
            if number is not None:
                name, naming = OPAQUE[int(number)], "opaque"
        elif motion is not None and draw > 1 - config.synonym_rate:
            name, naming = f"{MOTIONS[motion].synonym} {OBJECTS[thing].name}", "synonym"
        place = liked[1] if scene is None else scene
        classes.append(ActionClass(name, family, motion, thing, scene, liked[0], place, group, phrase, naming))

    sizes = {
        "seen": config.seen_classes,
        "transfer-a": config.transfer_classes,
        "transfer-b": config.transfer_classes,
    }
    try:
        for group, total in sizes.items():
            counts = family_counts(total)
            for _ in range(counts["motion"] // 2):
                thing, pair = next(cells)
                liked = preferred()  # shared by both halves, or it would distinguish them
                add(group, "motion", 2 * pair, thing, None, liked)
                add(group, "motion", 2 * pair + 1, thing, None, liked)
            for number in range(counts["compositional"]):
                single = next(singles, None) if number % 2 else None
                if single is None:
                    thing, pair = next(cells)
                    motion = 2 * pair + int(rng.integers(2))
                else:
                    thing, motion = single[0], 2 * pairs + single[1]
                add(group, "compositional", motion, thing, None, preferred())
            for _ in range(counts["appearance"]):
                thing, scene = next(places)
                add(group, "appearance", None, thing, scene, preferred())
    except StopIteration:
        raise ValueError(
            f"seen_classes, transfer_classes: {config.seen_classes} + 2 x {config.transfer_classes} classes are more "
            f"than {config.objects} objects, {config.motions} motions and {config.scenes} scenes can make"
        ) from None
    return classes


def motion_only_classes(config: WorldConfig) -> list[ActionClass]:
    """Returns classes that name only the motion ("lifting something"), with any object, part and scene."""
    return [
        ActionClass(
            f"{m.name} something", "motion-only", i, None, None, None, None, "ssv2", f"{m.name} something", "plain"
        )
        for i, m in enumerate(MOTIONS[: config.motions])
    ]
