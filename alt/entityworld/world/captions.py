"""Captions of single pictures, and the stand-ins for a captioner and a language model.

Global captions name scene, position and part, seldom the object, and the motion weakly. Local captions name object and
part with their place. No caption names a motion together with an object, so actions, above all unseen ones, have to be
composed.
"""

from __future__ import annotations

import numpy as np

from .classes import ActionClass
from .counter import uniforms
from .vocabulary import MOTIONS, OBJECTS, PARTS, SCENES
from .world_config import WorldConfig

PLACES = ("top", "bottom", "left", "right", "middle")


def place_words(boxes: np.ndarray, size: int) -> np.ndarray:
    """Returns the place of boxes ``[n, 4]`` as an index into ``PLACES``, by the larger deviation from the middle."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / (2 * size) - 0.5
    sideways = np.abs(centre[:, 0]) > np.abs(centre[:, 1])
    found = np.where(sideways, np.where(centre[:, 0] < 0, 2, 3), np.where(centre[:, 1] < 0, 0, 1))
    return np.where(np.abs(centre).max(1) < 0.1, 4, found)


def _pick(options: tuple[str, ...], draw: float) -> str:
    return options[int(draw * len(options))]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def opaque_words(classes: list[ActionClass]) -> dict[int, list[str]]:
    """Returns object -> opaque class names that its captions may use instead of its own name."""
    found: dict[int, list[str]] = {}
    for action in classes:
        if action.naming == "opaque" and action.object is not None:
            found.setdefault(action.object, []).append(action.name)
    return found


def image_captions(
    config: WorldConfig,
    classes: list[ActionClass],
    keys: np.ndarray,
    atoms: np.ndarray,
    boxes: np.ndarray,
) -> tuple[list[str], list[str]]:
    """Returns one global and one local caption per picture. ``atoms [n, 4]``: object, part, scene, motion."""
    draws = uniforms(keys, 12, "captions")
    places = place_words(boxes, config.size)
    opaque = opaque_words(classes)
    whole, local = [], []
    for row, o, p, s, m, w in zip(draws.tolist(), *atoms.T.tolist(), places, strict=True):
        thing, part, scene, motion, place = OBJECTS[o], PARTS[p].name, SCENES[s], MOTIONS[m], PLACES[w]
        some = _article(part)
        if row[0] < config.object_caption_rate:
            text = _pick(
                (f"{_article(thing.name)} in the {scene.name}", f"{thing.name} at the {place} in {scene.name}"), row[1]
            )
        elif row[0] < config.object_caption_rate + config.motion_caption_rate:
            word = motion.name if row[2] < 0.6 else motion.synonym
            text = _pick(
                (f"{word} in the {scene.name}", f"{word} something", f"{word}: {motion.description}", word), row[1]
            )
        else:
            text = _pick(
                (
                    f"something at the {place}",
                    f"{some} at the {place}",
                    f"something at the {place} in {scene.name}",
                    f"{some} at the {place} in the {scene.name}",
                    f"something at the {place}",
                    f"a photo of the {scene.name}",
                    f"{scene.name}: {scene.description}",
                    f"{some} in the {scene.name}",
                ),
                row[1],
            )
        whole.append(text)
        name = thing.name
        if o in opaque and row[3] < 0.15:
            text = (
                f"{_pick(tuple(opaque[o]), row[4])} with {_article(name)}"
                if row[5] < 0.5
                else _pick(tuple(opaque[o]), row[4])
            )
        elif row[3] < 0.55:
            text = _pick(
                (_article(name), f"{name} at the {place}", f"{_article(name)} at the {place}", f"the {name}"), row[4]
            )
        elif row[3] < 0.75:
            text = f"{name}: {thing.description}"
        else:
            text = _pick((some, f"{some} near {_article(name)}", f"{part}: {PARTS[p].description}", part), row[4])
        local.append(text)
    return whole, local


def frame_captions(keys: np.ndarray, atoms: np.ndarray, config: WorldConfig, error_rate: float = 0.3) -> list[str]:
    """Returns captions as from a fallible captioner: object, part and scene are each wrong at the given rate.

    ``atoms [n, 3]`` holds object, part and scene.
    """
    draws = uniforms(keys, 6, "captioner")
    found = []
    for row, (o, p, s) in zip(draws, atoms, strict=True):
        said = []
        for i, (index, count) in enumerate(((o, config.objects), (p, config.parts), (s, config.scenes))):
            wrong = int(row[2 * i + 1] * (count - 1))
            said.append(wrong + (wrong >= index) if row[2 * i] < error_rate else index)
        found.append(
            f"{_article(PARTS[said[1]].name)} near {_article(OBJECTS[said[0]].name)} in the {SCENES[said[2]].name}"
        )
    return found


def phrases(action: ActionClass) -> list[str]:
    """Returns five phrases for a class, as from a language model."""
    if action.object is None:
        assert action.motion is not None
        motion = MOTIONS[action.motion]
        return [action.name, f"{motion.synonym} something", motion.name, motion.synonym, motion.description]
    thing = OBJECTS[action.object]
    if action.motion is None:
        assert action.scene is not None
        scene = SCENES[action.scene].name
        return [
            action.name,
            f"using a {thing.name} in the {scene}",
            f"{_article(thing.name)} in the {scene}",
            f"someone with a {thing.name} at the {scene}",
            f"{thing.description} in the {scene}",
        ]
    motion = MOTIONS[action.motion]
    return [
        action.name,
        f"{motion.name} a {thing.name}",
        f"{motion.synonym} a {thing.name}",
        f"{_article(thing.name)} moved {motion.description}",
        f"someone {motion.name} {thing.description}",
    ]
