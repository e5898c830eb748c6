"""One entity of a corpus, and the record of a text encoder: plain values, and how files write them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "CATEGORIES",
    "Entity",
    "TextSource",
    "as_sources",
    "check_categories",
    "hash_entities",
    "hash_texts",
    "parse_entity",
    "parse_source",
]

CATEGORIES = ("object", "body_part", "scene", "motion", "label")
"""Categories of entities: the paper's four, and ``label`` for corpora whose entities are action labels."""


class Entity(NamedTuple):
    """One entity.

    unit: its name. description: one line, "" for none. category: of ``CATEGORIES``. sources: the action labels that it
    was found in. origin: where the description came from, in words: "WordNet cup%1:06:00::", "model NAME, prompt
    explain", "by hand", "" if not known.
    """

    unit: str
    description: str
    category: str
    sources: tuple[str, ...] = ()
    origin: str = ""

    @property
    def text(self) -> str:
        """Returns the text to embed: ``"{unit}: {description}"``, or the unit alone if the description is empty."""
        return f"{self.unit}: {self.description}" if self.description else self.unit


class TextSource(NamedTuple):
    """How texts were embedded. Models and corpora keep it, so that other texts are embedded in the same way.

    Attributes:
        backbone: open_clip's name of the model, "mini" or "random".
        pretrained: the tag of its weights, or the name of their file without its folder; None if not known.
        sha256: of the text tower, see :meth:`alt.models.text.TextEncoder.fingerprint`; "" where there is none.
        templates: the prompts of class names; empty for texts that are no class names.
    """

    backbone: str
    pretrained: str | None
    sha256: str
    templates: tuple[str, ...] = ()

    def __str__(self) -> str:
        weights = "" if self.pretrained is None else f" with the weights {self.pretrained}"
        return f"{self.backbone}{weights}" + (f" ({self.sha256[:8]})" if self.sha256 else "")


def parse_entity(row: Any) -> Entity:
    """Returns the entity of a tuple or list (unit, description, category[, source or sources[, origin]]).

    A mapping with these keys, as in files, is also read; format 1 has ``source``, one label or "".

    Raises:
        KeyError: a mapping lacks a key. TypeError, ValueError: another kind of value, or too few or too many.
    """
    if isinstance(row, dict):
        sources = row["sources"] if "sources" in row else row["source"]
        row = (row["unit"], row["description"], row["category"], sources, row.get("origin", ""))
    if isinstance(row, str) or not isinstance(row, Sequence) or not 3 <= len(row) <= 5:
        raise ValueError("an entity is (unit, description, category[, sources[, origin]])")
    unit, description, category, *rest = row
    return Entity(unit, description, category, as_sources(rest[0] if rest else ()), rest[1] if len(rest) > 1 else "")


def as_sources(value: Any) -> tuple[str, ...]:
    """Returns the labels of one entity, given as one label, "" or several; each once, in their order."""
    labels: Iterable[Any] = (value,) if isinstance(value, str) else value
    if isinstance(labels, set | frozenset) or not isinstance(labels, Iterable):
        raise TypeError(f"sources must hold a str or a sequence of str per entity, got {type(value).__name__}")
    found = tuple(labels)
    wrong = next((label for label in found if not isinstance(label, str)), None)
    if wrong is not None:
        raise TypeError(f"sources must hold str only, got {type(wrong).__name__}")
    return tuple(dict.fromkeys(label for label in found if label))


def check_categories(categories: tuple[str, ...], name: str) -> None:
    """Raises ValueError, which names the argument, for the first category that does not exist."""
    wrong = next((category for category in categories if category not in CATEGORIES), None)
    if wrong is not None:
        raise ValueError(f"{name} must be of {', '.join(CATEGORIES)}, got {wrong!r}")


def hash_texts(entities: Iterable[Entity]) -> str:
    """Returns the SHA-256 of the texts in order, by which embeddings are matched to them."""
    return hashlib.sha256("\0".join(entity.text for entity in entities).encode()).hexdigest()


def hash_entities(entities: Iterable[Entity]) -> str:
    """Returns the SHA-256 of every field of every entity, in order."""
    text = json.dumps([list(entity) for entity in entities], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parse_source(value: Any) -> TextSource | None:
    """Returns the encoder that a file names; None stays None.

    Raises:
        ValueError: it is another kind of value.
    """
    if value is None:
        return None
    fields = TextSource._fields
    if not isinstance(value, dict) or sorted(value) != sorted(fields):
        raise ValueError(f"a text encoder is described by {', '.join(fields)}")
    source = TextSource(**{**value, "templates": tuple(value["templates"])})
    texts = [source.backbone, source.sha256, source.pretrained or "", *source.templates]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text encoder is described by texts")
    return source
