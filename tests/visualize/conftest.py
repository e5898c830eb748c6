"""One small world with the shipped weights, shared by the tests of this room."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from alt.corpus import Corpus
from alt.entityworld.world import Rendered, Split, World
from alt.entityworld.world.vocabulary import OBJECTS
from alt.models import create_model
from alt.visualize import Truth


class Scene(NamedTuple):
    world: World
    corpus: Corpus
    split: Split
    clips: Rendered

    def planted(self, clip: int) -> str:
        return OBJECTS[self.split[clip].object].name

    def truth(self, clip: int) -> Truth:
        return Truth(self.split.class_names[self.split[clip].label], self.world.shown([self.split[clip]])[0])

    def model(self, name: str = "alt-mini", **options: Any) -> Any:
        if name == "alt-mini" and options.get("queries") != "random":
            options.setdefault("corpus", self.corpus)
        return create_model(name, pretrained="entity-world", classes=self.split.class_names, **options).eval()


@pytest.fixture(scope="session")
def scene() -> Scene:
    world = World("cpu")
    split = world.split("transfer-a-1").subset(range(40))
    corpus = Corpus.from_entities(world.corpus_rows())
    return Scene(world, corpus, split, world.render(split))
