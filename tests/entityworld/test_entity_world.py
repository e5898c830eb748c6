"""The world's classes, data sets, words and captions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from alt.entityworld.mini_clip import words_of
from alt.entityworld.world import World, WorldConfig, frame_captions, phrases
from alt.entityworld.world.captions import PLACES
from alt.entityworld.world.vocabulary import COLOURS, MOTIONS, OBJECTS, OPAQUE, PARTS, SCENES


@pytest.fixture(scope="module")
def world() -> World:
    return World("cpu")


def within_three_sigma(count: int, trials: int, rate: float) -> bool:
    return abs(count - trials * rate) <= 3 * math.sqrt(trials * rate * (1 - rate))


# --- classes ---


@pytest.mark.parametrize("preset", ["tiny", "cpu", "gpu"])
@pytest.mark.parametrize("seed", [0, 1])
def test_structure_of_the_classes(preset: str, seed: int) -> None:
    config = WorldConfig.preset(preset, seed=seed)
    world = World(config)
    groups = {g: [c for c in world.classes if c.group == g] for g in ("seen", "transfer-a", "transfer-b")}
    assert [len(g) for g in groups.values()] == [config.seen_classes, *[config.transfer_classes] * 2]
    assert len({c.name for c in world.classes}) == len(world.classes)
    seen = groups["seen"]
    assert {c.object for c in seen} == set(range(config.objects))
    assert {c.motion for c in seen} - {None} == set(range(config.motions))
    used: Counter[tuple] = Counter()
    for name, group in groups.items():
        made = {(c.object, c.motion) for c in group}
        for c in group:
            if c.motion is None:
                assert c.family == "appearance"
                used[("place", c.object, c.scene)] += 1
                continue
            partner = (c.object, c.motion ^ 1)
            if c.motion < 8:
                assert (partner in made) == (c.family == "motion"), c
                used[("cell", c.object, c.motion // 2, name)] |= 1
            else:
                assert c.family == "compositional"
                used[("single", c.object, c.motion)] += 1
        halves = {(c.object, c.motion): (c.preferred_part, c.preferred_scene) for c in group if c.family == "motion"}
        # what a clip shows beside its motion must not tell the two halves apart
        assert all(halves[o, m] == halves[o, m ^ 1] for o, m in halves)
    assert max(used.values()) == 1
    cells = [key[:3] for key in used if key[0] == "cell"]
    assert len(cells) == len(set(cells)), "a cell is in two groups"


def test_names(world: World) -> None:
    for seed in range(4):
        for c in World(WorldConfig.preset("cpu", seed=seed)).classes:
            if c.naming == "opaque":
                assert c.name in OPAQUE
                assert c.family != "motion"
            elif c.naming == "synonym":
                assert c.name == f"{MOTIONS[c.motion].synonym} {OBJECTS[c.object].name}"
            else:
                assert c.name == c.phrase
            assert len(set(phrases(c))) == 5


def test_more_classes_than_there_can_be() -> None:
    with pytest.raises(ValueError, match="seen_classes, transfer_classes: 200"):
        World(WorldConfig.preset("cpu", seen_classes=200))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"objects": 33}, "objects"),
        ({"motions": 5}, "motions"),
        ({"rho": 1.5}, "rho"),
        ({"distractors": (3, 2)}, "distractors"),
        ({"size": 4}, "size"),
        ({"train_per_class": 0}, "train_per_class"),
    ],
)
def test_bad_configurations_are_named(changes: dict, word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}"):
        WorldConfig.preset("cpu", **changes)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"^preset: "):
        WorldConfig.preset("huge")
    with pytest.raises(ValueError, match=r"^split: "):
        World("tiny").split("test")


# --- data sets ---


def test_sizes_and_labels(world: World) -> None:
    config = world.config
    for name in world.split_names():
        split = world.split(name)
        counts = np.bincount(split.labels.numpy(), minlength=len(split.classes))
        assert len(set(counts.tolist())) == 1, name
        for spec in split:
            action = split.classes[spec.label]
            assert world.classes[spec.class_id] == action
            assert action.motion in (None, spec.motion)
            assert action.object in (None, spec.object)
            assert action.scene in (None, spec.scene)
    assert len(world.split("seen-train")) == 60 * config.train_per_class
    assert len(world.split("seen-test")) == 60 * config.test_per_class


def test_no_clip_is_in_two_sets(world: World) -> None:
    keys = [spec.key for name in world.split_names() for spec in world.split(name)]
    assert len(keys) == len(set(keys))


def test_random_subsets_of_the_unseen_classes(world: World) -> None:
    unseen = {c.name for c in world.classes if c.group.startswith("transfer")}
    draws = [set(world.split(f"k600-{i}").class_names) for i in (1, 2, 3)]
    assert all(len(draw) == round(40 * 160 / 220) for draw in draws)
    assert all(draw < unseen for draw in draws)
    assert len({frozenset(draw) for draw in draws}) == 3


def test_instance_agnostic_labels(world: World) -> None:
    split = world.split("ssv2-train")
    assert split.class_names[0] == "lifting something"
    for label in range(len(split.classes)):
        shown = {spec.object for spec in split if spec.label == label}
        assert len(shown) >= 8


@pytest.mark.parametrize(("name", "rho"), [("seen-train", 0.5), ("transfer-a-1-train", 0.2)])
def test_parts_and_scenes_are_correlated_with_the_class(world: World, name: str, rho: float) -> None:
    split = world.split(name)
    parts = sum(spec.part == split.classes[spec.label].preferred_part for spec in split)
    assert within_three_sigma(parts, len(split), rho + (1 - rho) / world.config.parts)
    free = [spec for spec in split if split.classes[spec.label].scene is None]
    scenes = sum(spec.scene == split.classes[spec.label].preferred_scene for spec in free)
    assert within_three_sigma(scenes, len(free), rho + (1 - rho) / world.config.scenes)


def test_worlds_are_a_function_of_the_configuration() -> None:
    first, again = World("tiny"), World("tiny")
    assert first.classes == again.classes
    assert first.split("seen-train").specs == again.split("seen-train").specs
    other = World(WorldConfig.preset("tiny", seed=1))
    assert first.split("seen-train").specs != other.split("seen-train").specs
    more = World(WorldConfig.preset("tiny", train_per_class=9)).split("seen-train")
    assert more.specs[: len(first.split("seen-train"))] == first.split("seen-train").specs


# --- words ---


def test_entities(world: World) -> None:
    entities = world.entities()
    assert len({e.unit for e in entities}) == len(entities)
    for category, atoms, count in (
        ("object", OBJECTS, 12), ("body_part", PARTS, 4), ("scene", SCENES, 6), ("motion", MOTIONS, 8)
    ):  # fmt: skip
        mine = [e for e in entities if e.category == category]
        assert [e.unit for e in mine if e.rendered] == [a.name for a in atoms[:count]]
        assert sum(not e.rendered for e in mine) == max(1, round(0.3 * count))
        assert all(e.description for e in mine)
    shown = {a.name for atoms in (OBJECTS, PARTS, SCENES, MOTIONS) for a in atoms}
    assert not shown & {e.unit for e in entities if not e.rendered}


def test_objects_differ_in_shape_or_colour() -> None:
    for count in (12, 32):
        looks = [(o.shape, o.colour) for o in OBJECTS[:count]]
        assert len(set(looks)) == count
        colours = Counter(colour for _, colour in looks)
        assert set(colours) <= set(COLOURS)
        assert min(colours.values()) >= 2, "a colour alone tells an object"


def test_vocabulary_covers_every_text(world: World) -> None:
    known = set(world.vocabulary())
    assert world.vocabulary() == sorted(known)
    images = world.images(600, seed=3)
    texts = [*images.global_captions, *images.local_captions, *(c.name for c in world.classes)]
    texts += [f"{e.unit}: {e.description}" for e in world.entities()]
    texts += [text for c in world.classes for text in phrases(c)]
    missing = {word for text in texts for word in words_of(text)} - known
    assert not missing


# --- captions ---


def test_captions_say_what_is_shown_and_never_an_action(world: World) -> None:
    config, n = world.config, 4000
    images = world.images(n, seed=1)
    objects = {o.name: i for i, o in enumerate(OBJECTS[: config.objects])}
    parts = {p.name: i for i, p in enumerate(PARTS[: config.parts])}
    scenes = {s.name: i for i, s in enumerate(SCENES[: config.scenes])}
    motions = {m.name: i for i, m in enumerate(MOTIONS[: config.motions])}
    motions |= {m.synonym: i for i, m in enumerate(MOTIONS[: config.motions])}
    told: Counter[str] = Counter()
    for i in range(n):
        for kind, text in (("global", images.global_captions[i]), ("local", images.local_captions[i])):
            words = set(words_of(text.partition(":")[0]))  # a description has words of its own
            said = {
                name: [atoms[w] for w in words if w in atoms]
                for name, atoms in (("object", objects), ("part", parts), ("scene", scenes), ("motion", motions))
            }
            for name, found in said.items():
                assert found in ([], [int(getattr(images, name)[i])]), text
                told[f"{kind} {name}"] += bool(found)
            assert not (said["object"] and said["motion"]), text
            places = words & set(PLACES)
            if places:
                x0, y0, x1, y1 = (images.boxes[i] / config.size).tolist()
                dx, dy = (x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5
                ranked = sorted([(-dy, "top"), (dy, "bottom"), (-dx, "left"), (dx, "right"), (0.1, "middle")])
                assert places == {ranked[-1][1]} or ranked[-1][0] - ranked[-2][0] < 1e-6
    assert within_three_sigma(told["global object"], n, config.object_caption_rate)
    # one of the four weak forms has the motion's word and "something", all have the word itself
    assert within_three_sigma(told["global motion"], n, config.motion_caption_rate)
    assert told["local motion"] == 0
    assert told["local scene"] == 0
    assert told["local object"] > 0.7 * n
    assert told["local part"] > 0.15 * n
    assert told["global scene"] > 0.5 * n


def test_opaque_words_come_with_the_objects_of_their_classes() -> None:
    world = World(WorldConfig.preset("cpu", seed=1))
    opaque = {c.name: c.object for c in world.classes if c.naming == "opaque"}
    assert len(opaque) >= 5
    images = world.images(4000, seed=0)
    seen: Counter[str] = Counter()
    for text, thing in zip(images.local_captions, images.object.tolist(), strict=True):
        for word in words_of(text):
            if word in opaque:
                assert opaque[word] == thing
                seen[word] += 1
    assert set(seen) == set(opaque)


def test_captions_do_not_depend_on_how_many_are_made(world: World) -> None:
    few, many = world.images(20, seed=5), world.images(50, seed=5)
    assert few.global_captions == many.global_captions[:20]
    assert few.local_captions == many.local_captions[:20]
    assert few.frames.equal(many.frames[:20])
    assert world.images(20, seed=6).global_captions != few.global_captions


def test_fallible_captioner(world: World) -> None:
    n, rate = 3000, 0.3
    specs = world.split("seen-train")[: n // 2]
    keys = np.array([s.key for s in specs])
    atoms = np.array([(s.object, s.part, s.scene) for s in specs])
    texts = frame_captions(keys, atoms, world.config, rate)
    for names, column in ((OBJECTS, 0), (PARTS, 1), (SCENES, 2)):
        wrong = sum(names[a].name not in words_of(t) for a, t in zip(atoms[:, column], texts, strict=True))
        assert within_three_sigma(wrong, len(texts), rate)
    assert texts == frame_captions(keys, atoms, world.config, rate)


# --- what can be seen ---


def test_shown_names_the_atoms_first_and_the_distractors_after_them(world: World) -> None:
    split = world.split("seen-test").subset(range(30))
    shown = world.shown(split)
    for spec, found in zip(split, shown, strict=True):
        assert found["object"][0] == OBJECTS[spec.object].name
        assert 1 <= len(found["object"]) - 1 <= 4  # two to four distractors, which may be of one kind
        assert len(set(found["object"])) == len(found["object"])
        assert set(found["object"]) <= {atom.name for atom in OBJECTS[: world.config.objects]}
        assert found["body_part"] == (PARTS[spec.part].name,)
        assert found["scene"] == (SCENES[spec.scene].name,)
        assert found["motion"] == (MOTIONS[spec.motion].name,)
    alone = World(WorldConfig.preset("cpu", distractors=(0, 0)))
    assert [found["object"] for found in alone.shown(split)] == [(OBJECTS[spec.object].name,) for spec in split]
