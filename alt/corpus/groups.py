"""The group of an entity, from the meaning of its unit: object, body part, scene or motion."""

from __future__ import annotations

from .wordnet import Sense, WordNet

__all__ = ["BODY_PARTS", "find_group"]

BODY_PARTS = (
    *("head", "face", "hair", "eye", "eyebrow", "ear", "nose", "mouth", "lip", "tongue", "tooth", "chin", "neck"),
    *("shoulder", "chest", "back", "waist", "hip", "arm", "elbow", "wrist", "hand", "palm", "finger", "thumb"),
    *("leg", "thigh", "knee", "calf", "ankle", "foot", "toe", "skin"),
)
"""Parts of the body that every corpus has, whatever its labels."""

# Files of lexnames(5WN).
_ACT, _BODY, _EVENT, _LOCATION, _PROCESS = 4, 8, 11, 15, 22
_SCENES = {
    *("structure", "room", "area", "way", "facility", "geological formation", "body of water", "land", "tract"),
    *("vegetation", "playing field", "course", "building", "roadway", "ground", "shop", "establishment"),
}
_NO_SCENES = {
    "instrumentality",
    "barrier",
    "obstacle",
    "support",
    "bed",
    "column",
    "arch",
    "framework",
    "ladder",
    "fire",
}


def find_group(sense: Sense, wordnet: WordNet) -> str:
    """Returns the category of a meaning.

    Verbs, acts, events and processes are motions; WordNet's parts of bodies are body parts; places, and things that one
    can be in or on (buildings, rooms, roads, fields, waters), are scenes; everything else is an object. So are persons:
    the paper's "roles" have no group of their own in its tables, and a cook or a rider is seen as an object is.
    """
    if sense.part == "v":
        return "motion"
    if sense.group == _BODY:
        return "body_part"
    above = wordnet.hypernyms(sense) | set(sense.synonyms)
    if sense.group in (_ACT, _EVENT, _PROCESS) and "fire" not in above:
        return "motion"
    if sense.group == _LOCATION or (above & _SCENES and not above & _NO_SCENES):
        return "scene"
    return "object"
