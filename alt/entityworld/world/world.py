"""The world itself: its classes, its data sets, its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from alt.data.pixels import normalise
from alt.entityworld.mini_clip import words_of

from .captions import PLACES, image_captions
from .classes import ActionClass, build_classes, motion_only_classes
from .counter import clip_keys, generator, uniforms
from .paths import lay_out, phases
from .render import ClipTable, Rendered, render_table
from .vocabulary import MOTIONS, OBJECTS, PARTS, SCENES, Entity, entities, template_words
from .world_config import STYLES, Style, WorldConfig


class ClipSpec(NamedTuple):
    """All that a clip is, with the world's configuration. ``label`` counts in the split's own list of classes."""

    label: int
    class_id: int  # in World.classes
    object: int
    part: int
    scene: int
    motion: int
    key: int  # of every other draw: places, sizes, distractors, noise
    style: str


class Images(NamedTuple):
    """Single pictures with captions for contrastive training."""

    frames: Tensor  # uint8 [n, 3, H, W]
    global_captions: list[str]
    local_captions: list[str]
    boxes: Tensor  # float32 [n, 4]
    object: Tensor
    part: Tensor
    scene: Tensor
    motion: Tensor


@dataclass(frozen=True)
class Split(Sequence[ClipSpec]):
    """A data set: clips in order, and the classes that their labels count."""

    name: str
    specs: tuple[ClipSpec, ...]
    classes: tuple[ActionClass, ...]
    style: Style

    @property
    def class_names(self) -> list[str]:
        return [action.name for action in self.classes]

    @property
    def labels(self) -> Tensor:
        """int64 ``[n]``."""
        return torch.tensor([spec.label for spec in self.specs], dtype=torch.int64)

    @property
    def families(self) -> list[str]:
        """The family of every class."""
        return [action.family for action in self.classes]

    def __len__(self) -> int:
        return len(self.specs)

    @overload
    def __getitem__(self, index: int) -> ClipSpec: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClipSpec]: ...
    def __getitem__(self, index: int | slice) -> ClipSpec | Sequence[ClipSpec]:
        return self.specs[index]

    def __iter__(self) -> Iterator[ClipSpec]:
        return iter(self.specs)

    def subset(self, indices: Sequence[int]) -> Split:
        """The same classes with the clips at ``indices`` only."""
        return Split(self.name, tuple(self.specs[int(i)] for i in indices), self.classes, self.style)


class World:
    """An entity world: ``World("cpu")``, ``World(WorldConfig(...))``. Everything is a function of the configuration."""

    def __init__(self, config: WorldConfig | str = "cpu") -> None:
        self.config = WorldConfig.preset(config) if isinstance(config, str) else config
        self._actions = build_classes(self.config)
        self._motion_only = motion_only_classes(self.config)
        self.classes: list[ActionClass] = [*self._actions, *self._motion_only]

    # --- words ---

    def entities(self) -> list[Entity]:
        """The text corpus: all atoms and 30 % distractors, as (unit, description, category, rendered)."""
        c = self.config
        return entities(c.objects, c.parts, c.scenes, c.motions)

    def corpus_rows(self) -> list[tuple[str, str, str]]:
        """Returns (unit, description, category) of every entity, as ``Corpus.from_entities`` takes them."""
        return [(entity.unit, entity.description, entity.category) for entity in self.entities()]

    def vocabulary(self) -> list[str]:
        """Every word of class names, captions, entities and class-name templates, sorted."""
        from .captions import phrases

        texts = [*template_words(), *PLACES]
        texts += [f"{e.unit} {e.description}" for e in self.entities()]
        texts += [m.synonym for m in MOTIONS[: self.config.motions]]
        texts += [text for action in self.classes for text in (action.name, action.phrase, *phrases(action))]
        return sorted({word for text in texts for word in words_of(text)})

    # --- data sets ---

    def split_names(self) -> list[str]:
        transfer = [f"transfer-{x}-{i}{part}" for x in "ab" for i in (1, 2, 3) for part in ("", "-train")]
        return ["seen-train", "seen-test", *transfer, "k600-1", "k600-2", "k600-3", "ssv2-train", "ssv2-test"]

    def split(self, name: str) -> Split:
        """A data set by name.

        ``seen-train``, ``seen-test``; ``transfer-a-1`` to ``transfer-b-3`` (tests) and the same with ``-train`` (what
        few-shot samples are drawn from, disjoint from every test); ``k600-1`` to ``k600-3`` (random subsets of all
        unseen classes, in the seen style); ``ssv2-train``, ``ssv2-test`` (the motion is the label, the object is any).
        """
        if name not in self.split_names():
            raise ValueError(f"split: one of {self.split_names()}, got {name!r}")
        c = self.config
        kind = name.removesuffix("-train").removesuffix("-test")
        train = name.endswith("-train")
        if kind == "seen":
            chosen, style = self._group("seen"), "seen"
            count = c.train_per_class if train else c.test_per_class
        elif kind == "ssv2":
            chosen, style = self._motion_only, "seen"
            count = c.train_per_class if train else c.test_per_class
        elif kind.startswith("k600"):
            pool = [*self._group("transfer-a"), *self._group("transfer-b")]
            keep = max(2, round(len(pool) * 160 / 220))
            order = generator(c.seed, name).permutation(len(pool))[:keep]
            chosen, style = [pool[i] for i in sorted(order)], "seen"
            count = c.transfer_test_per_class
        else:
            style = kind.rpartition("-")[0]
            chosen = self._group(style)
            count = c.transfer_train_per_class if train else c.transfer_test_per_class
        return self._draw(name, chosen, count, c.style(style))

    def _group(self, group: str) -> list[ActionClass]:
        return [action for action in self._actions if action.group == group]

    def _draw(self, name: str, chosen: list[ActionClass], count: int, style: Style) -> Split:
        """``count`` clips of every class; class i's clip j is sample ``i + j * classes``, so more clips only append."""
        c = self.config
        total = len(chosen) * count
        keys = clip_keys(c.seed, name, np.arange(total))
        draw = uniforms(keys, 8, "atoms")
        position = {action: i for i, action in enumerate(self.classes)}
        specs = []
        for i, key in enumerate(keys.tolist()):
            label = i % len(chosen)
            action, row = chosen[label], draw[i].tolist()
            part, scene = int(row[0] * c.parts), int(row[1] * c.scenes)
            if action.preferred_part is not None and row[2] < style.rho:
                part = action.preferred_part
            if action.scene is not None:
                scene = action.scene
            elif action.preferred_scene is not None and row[3] < style.rho:
                scene = action.preferred_scene
            motion = int(row[4] * c.motions) if action.motion is None else action.motion
            thing = int(row[5] * c.objects) if action.object is None else action.object
            specs.append(ClipSpec(label, position[action], thing, part, scene, motion, key, style.name))
        return Split(name, tuple(specs), tuple(chosen), style)

    # --- pictures ---

    def table(self, specs: Sequence[ClipSpec]) -> ClipTable:
        columns = [np.array([spec[i] for spec in specs], np.int64) for i in (6, 2, 3, 4, 5)]
        styles = {name: self.config.style(name) for name in STYLES}
        looks = np.array([[styles[s.style].hue, styles[s.style].scale, styles[s.style].contrast] for s in specs])
        looks = looks.reshape(len(specs), 3)
        return ClipTable(*columns, *looks.T)

    def render(
        self, specs: Sequence[ClipSpec], device: torch.device | str = "cpu", frames: int | None = None
    ) -> Rendered:
        """The clips of ``specs``: frames uint8 ``[B, T, 3, H, W]``, the target's box in every frame, the atoms."""
        frames = self.config.frames if frames is None else frames
        table = self.table(specs)
        phase = phases(table.motion, frames)
        return render_table(self.config, table, phase / max(1, frames - 1), phase, device)

    def shown(self, specs: Sequence[ClipSpec]) -> list[dict[str, tuple[str, ...]]]:
        """Returns per clip what can be seen in it: category -> entities.

        The entity of the action comes first. Objects also hold the dim distractors, in the order they are painted.
        """
        table = self.table(specs)
        start = np.zeros((len(specs), 1))
        scenery = lay_out(self.config, table.key, table.object, table.motion, table.scale, table.hue, start)
        found = []
        for spec, others, alpha in zip(specs, scenery.distractor_object, scenery.distractor_alpha, strict=True):
            dim = [OBJECTS[other].name for other in others[alpha > 0]]
            found.append(
                {
                    "object": tuple(dict.fromkeys([OBJECTS[spec.object].name, *dim])),
                    "body_part": (PARTS[spec.part].name,),
                    "scene": (SCENES[spec.scene].name,),
                    "motion": (MOTIONS[spec.motion].name,),
                }
            )
        return found

    def images(self, n: int, seed: int = 0, device: torch.device | str = "cpu") -> Images:
        """``n`` single pictures of random atoms at random phases, in the seen style, with a global and a local caption.

        Picture i of a seed is the same whatever ``n``.
        """
        c = self.config
        keys = clip_keys(c.seed, f"images-{seed}", np.arange(n))
        draw = uniforms(keys, 8, "atoms")
        atoms = [
            np.floor(draw[:, i] * k).astype(np.int64) for i, k in enumerate((c.objects, c.parts, c.scenes, c.motions))
        ]
        style = c.style("seen")
        looks = (np.full(n, value) for value in (style.hue, style.scale, style.contrast))
        phase = np.zeros((n, 1), np.int64)
        done = render_table(c, ClipTable(keys, *atoms, *looks), draw[:, 4:5], phase, device)
        boxes = done.boxes[:, 0]
        whole, local = image_captions(c, self.classes, keys, np.stack(atoms, 1), boxes.cpu().numpy())
        return Images(done.frames[:, 0], whole, local, boxes, *done[2:])


class EntityWorldDataset(torch.utils.data.Dataset):
    """A split as (clip float32 ``[T, 3, H, W]`` CLIP-normalised, label); rendered once, kept as uint8."""

    def __init__(self, world: World, split: str | Split, frames: int | None = None) -> None:
        self.world = world
        self.split = world.split(split) if isinstance(split, str) else split
        self.frames = world.render(self.split, frames=frames).frames
        self.labels = self.split.labels

    @property
    def class_names(self) -> list[str]:
        return self.split.class_names

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return normalise(self.frames[index]), int(self.labels[index])
