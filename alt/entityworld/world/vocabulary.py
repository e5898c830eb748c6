"""The words of the world: objects, body parts, scenes and motions, their descriptions, synonyms and distractors."""

from __future__ import annotations

from typing import NamedTuple


class Entity(NamedTuple):
    """One entry of the text corpus. ``rendered`` is False for distractors, which no picture ever shows."""

    unit: str
    description: str
    category: str  # object, body_part, scene or motion
    rendered: bool


class ObjectAtom(NamedTuple):
    name: str
    shape: str
    colour: str
    description: str


class PartAtom(NamedTuple):
    name: str
    description: str


class SceneAtom(NamedTuple):
    name: str
    pattern: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    description: str


class MotionAtom(NamedTuple):
    name: str
    path: str
    reverse: bool  # runs the path backwards
    synonym: str
    description: str


COLOURS = {
    "red": (0.95, 0.15, 0.15),
    "yellow": (0.98, 0.88, 0.10),
    "green": (0.10, 0.85, 0.20),
    "cyan": (0.10, 0.90, 0.95),
    "blue": (0.25, 0.35, 1.00),
    "magenta": (0.95, 0.20, 0.90),
    "orange": (1.00, 0.55, 0.05),
    "white": (0.98, 0.98, 0.98),
}


def _object(name: str, shape: str, colour: str, looks: str) -> ObjectAtom:
    return ObjectAtom(name, shape, colour, f"a {colour} thing, {looks}")


# Neighbours differ in shape and colour; every colour is worn by several shapes, so that neither decides alone.
OBJECTS = (
    _object("ball", "disc", "red", "round and full"),
    _object("cup", "cup", "yellow", "square with an open top"),
    _object("box", "square", "green", "square and full"),
    _object("hoop", "ring", "cyan", "round with a hole"),
    _object("kite", "diamond", "magenta", "pointed on four sides"),
    _object("hammer", "tee", "blue", "a long handle under a head"),
    _object("cone", "triangle", "yellow", "pointed at the top"),
    _object("valve", "plus", "red", "two crossed bars"),
    _object("banana", "crescent", "green", "round and bent"),
    _object("stick", "bar", "magenta", "long and thin"),
    _object("hourglass", "hourglass", "cyan", "two cones point to point"),
    _object("frame", "frame", "blue", "square with a hole"),
    _object("star", "star", "orange", "four thin points"),
    _object("dumbbell", "dumbbell", "white", "two balls on a bar"),
    _object("hat", "hat", "orange", "round top on a wide bar"),
    _object("arrow", "chevron", "white", "bent in the middle"),
    _object("melon", "disc", "magenta", "round and full"),
    _object("bucket", "cup", "white", "square with an open top"),
    _object("brick", "square", "orange", "square and full"),
    _object("tyre", "ring", "red", "round with a hole"),
    _object("tile", "diamond", "white", "pointed on four sides"),
    _object("mallet", "tee", "yellow", "a long handle under a head"),
    _object("tent", "triangle", "magenta", "pointed at the top"),
    _object("gear", "plus", "cyan", "two crossed bars"),
    _object("moon", "crescent", "white", "round and bent"),
    _object("flute", "bar", "yellow", "long and thin"),
    _object("spool", "hourglass", "green", "two cones point to point"),
    _object("window", "frame", "magenta", "square with a hole"),
    _object("flower", "star", "red", "four thin points"),
    _object("bone", "dumbbell", "cyan", "two balls on a bar"),
    _object("helmet", "hat", "blue", "round top on a wide bar"),
    _object("boomerang", "chevron", "green", "bent in the middle"),
)
PARTS = (
    PartAtom("hand", "a palm with fingers that touches"),
    PartAtom("foot", "a dark shoe with a white sole"),
    PartAtom("head", "a face under dark hair"),
    PartAtom("arm", "a long sleeve that reaches in"),
    PartAtom("knee", "a bent leg in dark cloth"),
    PartAtom("mouth", "red lips around white teeth"),
    PartAtom("elbow", "a bent sleeve with a bare end"),
    PartAtom("shoulder", "a broad striped shirt"),
)
SCENES = (
    SceneAtom("kitchen", "checker", ((0.46, 0.40, 0.34), (0.26, 0.22, 0.20)), "brown tiles on the floor"),
    SceneAtom("beach", "horizon", ((0.24, 0.36, 0.50), (0.52, 0.46, 0.32)), "blue sea above yellow sand"),
    SceneAtom("forest", "columns", ((0.12, 0.26, 0.14), (0.24, 0.34, 0.18)), "dark green trunks of trees"),
    SceneAtom("street", "bricks", ((0.32, 0.32, 0.34), (0.18, 0.18, 0.20)), "grey stones and a wall"),
    SceneAtom("stage", "spotlight", ((0.46, 0.26, 0.40), (0.12, 0.06, 0.14)), "a purple light in the dark"),
    SceneAtom("field", "rows", ((0.34, 0.44, 0.18), (0.20, 0.28, 0.10)), "rows of light grass"),
    SceneAtom("office", "grid", ((0.44, 0.46, 0.50), (0.28, 0.30, 0.36)), "pale walls with a grid"),
    SceneAtom("snow", "speckle", ((0.52, 0.54, 0.58), (0.36, 0.40, 0.46)), "white ground with specks"),
    SceneAtom("desert", "dunes", ((0.54, 0.40, 0.22), (0.36, 0.26, 0.14)), "slanted orange dunes"),
    SceneAtom("pool", "checker", ((0.20, 0.42, 0.50), (0.12, 0.28, 0.38)), "blue tiles under water"),
    SceneAtom("garage", "rows", ((0.32, 0.30, 0.28), (0.16, 0.16, 0.16)), "dark shelves along a wall"),
    SceneAtom("garden", "speckle", ((0.26, 0.42, 0.22), (0.36, 0.20, 0.24)), "flowers on green ground"),
    SceneAtom("cave", "spotlight", ((0.36, 0.32, 0.24), (0.08, 0.08, 0.08)), "a dim hole in dark rock"),
    SceneAtom("temple", "columns", ((0.52, 0.48, 0.40), (0.32, 0.28, 0.26)), "pale columns in a row"),
    SceneAtom("harbour", "horizon", ((0.44, 0.46, 0.48), (0.14, 0.26, 0.32)), "grey sky above dark water"),
    SceneAtom("attic", "dunes", ((0.36, 0.26, 0.22), (0.22, 0.16, 0.14)), "slanted wooden boards"),
)
MOTIONS = (
    MotionAtom("lifting", "vertical", False, "hoisting", "from the bottom to the top"),
    MotionAtom("lowering", "vertical", True, "dropping", "from the top to the bottom"),
    MotionAtom("pushing", "horizontal", False, "shoving", "from the left to the right"),
    MotionAtom("pulling", "horizontal", True, "dragging", "from the right to the left"),
    MotionAtom("spinning", "orbit", False, "whirling", "around over the top to the right"),
    MotionAtom("unspinning", "orbit", True, "unwinding", "around over the top to the left"),
    MotionAtom("opening", "split", False, "unfolding", "two halves go apart"),
    MotionAtom("closing", "split", True, "folding", "two halves come together"),
    MotionAtom("shaking", "shake", False, "rattling", "left and right again and again"),
    MotionAtom("bouncing", "bounce", False, "dribbling", "up and down again and again"),
    MotionAtom("rocking", "rock", False, "tilting", "turned to one side and the other"),
    MotionAtom("pumping", "pulse", False, "squeezing", "small and large in turn"),
    MotionAtom("stirring", "circle", False, "swirling", "a whole turn around the middle"),
    MotionAtom("hiding", "blink", False, "flashing", "gone and back in turn"),
    MotionAtom("holding", "still", False, "keeping", "not moved at all"),
    MotionAtom("waving", "zigzag", False, "weaving", "across in a zigzag"),
)
# Opaque names of whole classes: nothing in the word tells what is shown.
OPAQUE = (
    *("brewing", "tinkering", "foraging", "mending", "grooming", "drilling", "haggling", "sketching", "tailoring"),
    *("frolicking", "auditing", "curling", "gilding", "pruning", "bartering", "milling", "rehearsing", "docking"),
    *("quilting", "fencing", "welding", "smithing", "plating", "tanning", "angling", "scouting", "tuning", "baking"),
    *("carving", "weighing", "sorting", "packing", "grading", "staging", "rigging", "surveying", "mapping", "casting"),
)
UNSEEN = {
    "object": (
        *("anchor", "violin", "candle", "ladder", "trumpet", "barrel", "mirror", "needle", "pillow", "saddle"),
        *("spoon", "wagon", "whistle", "zipper"),
    ),
    "body_part": ("tail", "wing", "beard"),
    "scene": ("harvest", "volcano", "library", "airport", "stadium", "cellar", "castle"),
    "motion": ("melting", "whispering", "dissolving", "sneezing", "sleeping", "ripening", "freezing"),
}
UNSEEN_DESCRIPTION = {
    "object": "a thing not seen here",
    "body_part": "a part of the body not seen here",
    "scene": "a place not seen here",
    "motion": "a change not seen here",
}
# The words of the sixteen hand-written templates that class names are put into, and of the captions.
_TEMPLATE_WORDS = (
    "a photo picture of action human an this is video playing kind doing look the can you recognize classification "
    "man woman using in with at and on moved thing something someone near touching no not body part place"
)


def entities(objects: int, parts: int, scenes: int, motions: int, distractor_rate: float = 0.3) -> list[Entity]:
    """All atoms with one-line descriptions, then per category ``distractor_rate`` as many that are never rendered."""
    atoms: dict[str, tuple[ObjectAtom | PartAtom | SceneAtom | MotionAtom, ...]] = {
        "object": OBJECTS[:objects],
        "body_part": PARTS[:parts],
        "scene": SCENES[:scenes],
        "motion": MOTIONS[:motions],
    }
    found = [Entity(a.name, a.description, category, True) for category, group in atoms.items() for a in group]
    for category, group in atoms.items():
        names = UNSEEN[category][: max(1, round(distractor_rate * len(group)))]
        found += [Entity(name, UNSEEN_DESCRIPTION[category], category, False) for name in names]
    return found


def template_words() -> list[str]:
    return _TEMPLATE_WORDS.split()
