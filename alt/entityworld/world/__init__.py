"""EntityWorld: procedurally generated video actions made of objects, body parts, scenes and motions.

    world = World("cpu")
    train = world.split("seen-train")          # clips as specifications
    clips = world.render(train[:8])            # frames, the target's boxes, the atoms
    pictures = world.images(12_000, seed=0)    # with global and local captions

Nothing is stored or downloaded: a picture is a function of the configuration and of the clip's number.
"""

from __future__ import annotations

from alt.data.pixels import CLIP_MEAN, CLIP_STD, normalise

from .captions import frame_captions, phrases
from .classes import FAMILIES, ActionClass
from .disk import write_to_disk
from .render import Rendered
from .vocabulary import Entity
from .world import EntityWorldDataset, Images, Split, World
from .world_config import Style, WorldConfig

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "FAMILIES",
    "ActionClass",
    "Entity",
    "EntityWorldDataset",
    "Images",
    "Rendered",
    "Split",
    "Style",
    "World",
    "WorldConfig",
    "frame_captions",
    "normalise",
    "phrases",
    "write_to_disk",
]
