"""MAXI's training set on EntityWorld: clips without labels, the names that match them, and a bag of texts for each.

The world's stand-ins take the place of the captioner and of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alt.data.seeds import make_numpy_generator
from alt.entityworld.mini_clip import words_of
from alt.entityworld.world import ActionClass, World, frame_captions, normalise, phrases
from alt.entityworld.world.vocabulary import MOTIONS, OBJECTS, SCENES
from alt.models.video_model import VideoModel
from alt.train.bags import BagObjective, bag_prompts, keep_share, match_texts

from .measures import name_classes
from .methods import Method
from .token_cache import TokenCache

__all__ = ["KEPT", "MatchedClips", "match_clips", "wrong_names"]

KEPT = 0.5
"""Share p of the clips that MAXI trains on: the one at which its paper compares dictionaries."""
SHARES = (1.0, 0.9, KEPT, 0.3)
TEXTS = 4  # drawn of a bag per step: most bags here have four or five


@dataclass(frozen=True)
class MatchedClips:
    """The clips of "seen-train" that are kept, and their matched names.

    rows: int64 ``[n]``, their numbers in the split, ascending. names: int64 ``[n]``, of the dictionary. dictionary,
    actions: its D names, and what they stand for. accuracies: "match p=0.9" -> percent of the clips kept with that p
    whose name is right.
    """

    rows: Tensor
    names: Tensor
    dictionary: list[str]
    actions: list[ActionClass]
    accuracies: dict[str, float]

    def bags(self, cache: TokenCache) -> BagObjective:
        """Returns MAXI's loss: five phrases for the matched name and a caption of the clip, as prompts.

        Prompts that are longer than the text tower reads are left out.
        """
        split = cache.split("seen-train").split
        specs = [split.specs[i] for i in self.rows.tolist()]
        atoms = np.array([(spec.object, spec.part, spec.scene) for spec in specs])
        captions = frame_captions(np.array([spec.key for spec in specs]), atoms, cache.world.config)
        room = cache.mini.config.context_length - 2  # the ends of a text take one place each
        ids = []
        for number, caption in zip(self.names.tolist(), captions, strict=True):
            name = self.dictionary[number]
            texts = dict.fromkeys([*phrases(self.actions[number]), caption])
            texts.pop(name, None)
            fitting = [text for text in texts if len(words_of(bag_prompts(name, [text])[0])) <= room]
            ids.append(cache.mini.tokenizer(bag_prompts(name, fitting)))
        return BagObjective(ids, self.names, size=TEXTS)


def wrong_names(world: World, count: int, seed: int) -> list[ActionClass]:
    """Returns ``count`` actions that no clip of the world shows, drawn by ``seed``: other compositions of its atoms.

    Raises:
        ValueError: the world has fewer of them.
    """
    config = world.config
    taken = {action.phrase for action in world.classes}
    things = range(config.objects)
    actions = [_action(o, motion, None) for o in things for motion in range(config.motions)]
    actions += [_action(o, None, scene) for o in things for scene in range(config.scenes)]
    spare = [action for action in actions if action.name not in taken]
    if count > len(spare):
        raise ValueError(f"count: expected at most {len(spare)} names that no clip of this world shows, got {count}")
    order = make_numpy_generator(seed, 0).permutation(len(spare))[:count]
    return [spare[i] for i in sorted(order.tolist())]


def _action(thing: int, motion: int | None, scene: int | None) -> ActionClass:
    """Returns an action of an object with a motion or in a scene; the other of the two is None."""
    name = "" if scene is None else f"using {OBJECTS[thing].name} in {SCENES[scene].name}"
    name = name if motion is None else f"{MOTIONS[motion].name} {OBJECTS[thing].name}"
    return ActionClass(name, "none", motion, thing, scene, None, scene, "none", name, "plain")


@torch.no_grad()
def match_clips(model: VideoModel, cache: TokenCache, method: Method, *, seed: int) -> MatchedClips:
    """Matches the clips of "seen-train" with a dictionary, by the model as it is, and keeps the best share.

    Args:
        model: holds its text tower; its classes are the seen ones.
        method: its ``wrong`` is the share of wrong names added to those of the seen classes. seed: draws them.
    """
    split = cache.split("seen-train").split
    actions = [*split.classes, *wrong_names(cache.world, round(method.wrong * len(split.classes)), seed)]
    dictionary = [action.name for action in actions]
    name_classes(model, cache, dictionary, method.templates)
    texts = model.eval().head.embeddings
    videos = torch.cat([model(normalise(part)).embedding for part in cache.frames("seen-train").split(64)])
    name_classes(model, cache, split.class_names, method.templates)
    model.train()
    matches = match_texts(videos, texts)
    right = matches.text == split.labels
    kept = {share: keep_share(matches.similarity, share) for share in SHARES}
    accuracies = {f"match p={share:g}": 100 * float(right[rows].float().mean()) for share, rows in kept.items()}
    rows = kept[KEPT]
    return MatchedClips(rows, matches.text[rows], dictionary, actions, accuracies)
