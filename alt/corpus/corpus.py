"""The text corpus of ALT: entities {unit, description} by category, and their frozen text embeddings.

A corpus is plain data. It imports neither models nor kernels: the caller passes an encoder with ``embed(texts)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from alt.errors import refuse_unordered

from .corpus_file import CorpusFile, read_corpus_file, write_corpus_file
from .entity import (
    CATEGORIES,
    Entity,
    TextSource,
    as_sources,
    check_categories,
    hash_entities,
    hash_texts,
    parse_entity,
)

__all__ = ["Corpus", "TextEmbedder"]


class TextEmbedder(Protocol):
    """An encoder of texts. If it has a method ``source()``, the record is kept with the embeddings that it makes."""

    def embed(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Corpus:
    """K entities and, once embedded, the rows S ``[K, d]`` that regions choose from (ALT, section 3.2).

    A corpus is immutable: ``subset``, ``expand`` and ``embed`` return new corpora. Embeddings are data, not
    parameters: float32 rows of length 1 on the CPU, without gradient.

    Args:
        units: K names, none empty.
        descriptions: K one-line descriptions; "" for none.
        categories: K of ``CATEGORIES``.
        sources: K times the action labels in which the entity was found, one str or several; empty if none is known.
        embeddings: ``[K, d]`` float with non-zero rows, which are normalised here; or None.
        origins: K texts that say where the descriptions came from; empty if it is not known.
        encoder: the text encoder that made the embeddings; None if it is not known.

    Raises:
        ValueError: there is no entity, the sequences differ in length, a unit is empty, a category is unknown,
            the embeddings have another shape, or one of their rows is zero or not finite.
        TypeError: a text is not a str, or the embeddings are not a float tensor.
    """

    units: tuple[str, ...]
    descriptions: tuple[str, ...]
    categories: tuple[str, ...]
    sources: tuple[tuple[str, ...], ...] = ()
    embeddings: Tensor | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    encoder: TextSource | None = None

    def __post_init__(self) -> None:
        names = ("units", "descriptions", "categories", "sources", "origins")
        for name in names:
            values = getattr(self, name)
            refuse_unordered(values, name)
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise TypeError(f"{name} must be a sequence of str, got {type(values).__name__}")
            object.__setattr__(self, name, tuple(values))
        if not self.units:
            raise ValueError("the corpus is empty: it needs at least one entity")
        count = len(self.units)
        object.__setattr__(self, "sources", tuple(map(as_sources, self.sources or ((),) * count)))
        object.__setattr__(self, "origins", self.origins or ("",) * count)
        for name in names:
            values = getattr(self, name)
            wrong = next((value for value in values if name != "sources" and not isinstance(value, str)), None)
            if wrong is not None:
                raise TypeError(f"{name} must hold str only, got {type(wrong).__name__}")
            if len(values) != count:
                raise ValueError(f"{name} must have one entry per unit, {count}, got {len(values)}")
        if not all(unit.strip() for unit in self.units):
            raise ValueError(f"units[{[bool(unit.strip()) for unit in self.units].index(False)}] is empty")
        check_categories(self.categories, "categories")
        if self.embeddings is None:
            object.__setattr__(self, "encoder", None)  # of embeddings that are not here
        else:
            object.__setattr__(self, "embeddings", _unit_rows(self.embeddings, count))

    @classmethod
    def from_entities(cls, entities: Iterable[Any]) -> Corpus:
        """Returns a corpus of entities, or of tuples (unit, description, category[, source or sources[, origin]])."""
        refuse_unordered(entities, "entities")
        rows = [parse_entity(entity) for entity in entities]
        units, descriptions, categories, sources, origins = zip(*rows, strict=True) if rows else ((),) * 5
        return cls(units, descriptions, categories, sources, origins=origins)

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> Corpus:
        """Returns a corpus whose entities are the labels, verbatim (the paper's choice for Something-Something v2)."""
        refuse_unordered(labels, "labels")
        if isinstance(labels, str):
            raise TypeError("labels must be a sequence of str, got one str")
        names = list(dict.fromkeys(labels))
        return cls.from_entities((name, "", "label", name) for name in names)

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Entity:
        return Entity(
            self.units[index],
            self.descriptions[index],
            self.categories[index],
            self.sources[index],
            self.origins[index],
        )

    def __iter__(self) -> Iterator[Entity]:
        return (self[i] for i in range(len(self)))

    @property
    def texts(self) -> list[str]:
        """Returns the K texts to embed, ``"{unit}: {description}"``."""
        return [entity.text for entity in self]

    @property
    def width(self) -> int | None:
        """Returns d, the width of the embeddings, or None before the corpus is embedded."""
        return None if self.embeddings is None else self.embeddings.shape[1]

    def counts(self) -> dict[str, int]:
        """Returns the number of entities per category, for the categories that occur."""
        return {name: self.categories.count(name) for name in CATEGORIES if name in self.categories}

    def subset(self, categories: str | Iterable[str]) -> Corpus:
        """Returns the entities of some categories in their order, embeddings included.

        Raises:
            ValueError: a category is unknown, or no entity belongs to any of them.
        """
        wanted = (categories,) if isinstance(categories, str) else tuple(categories)
        check_categories(wanted, "categories")
        rows = [i for i, category in enumerate(self.categories) if category in wanted]
        if not rows:
            raise ValueError(f"no entity of category {' or '.join(wanted)} in this corpus, which has {self.counts()}")
        return self.take(rows)

    def take(self, rows: Sequence[int]) -> Corpus:
        """Returns the entities of some rows, in the order of ``rows``, embeddings included."""
        picked = Corpus.from_entities(self[i] for i in rows)
        if self.embeddings is None:
            return picked
        return replace(picked, embeddings=self.embeddings[list(rows)], encoder=self.encoder)

    def expand(self, other: Corpus) -> Corpus:
        """Returns this corpus followed by the entities of ``other`` whose text is new (the rule for a new dataset).

        Rows of this corpus keep their numbers, so earlier alignments stay valid. An entity of both gets the action
        labels of both.

        Raises:
            ValueError: only one of the two is embedded, or their text encoders differ.
        """
        if (self.embeddings is None) != (other.embeddings is None):
            here, there = ("not embedded", "is") if self.embeddings is None else ("embedded", "is not")
            raise ValueError(f"this corpus is {here} and the one to append {there}; embed both, or neither")
        if self.width != other.width:
            raise ValueError(
                f"the corpus to append is embedded at width {other.width}, this one at width {self.width}; "
                "embed both with one text encoder"
            )
        check_encoders("the corpus to append", other.encoder, "this one", self.encoder)
        place = {text: i for i, text in reversed(list(enumerate(self.texts)))}
        sources, rows = list(self.sources), []
        for i, text in enumerate(other.texts):
            if text in place:
                sources[place[text]] = as_sources(sources[place[text]] + other.sources[i])
            else:
                place[text] = len(sources)
                sources.append(other.sources[i])
                rows.append(i)
        if not rows and tuple(sources) == self.sources:
            return self
        new = [other[i] for i in rows]
        joined = Corpus.from_entities([*self, *new])
        embeddings = self.embeddings
        if embeddings is not None and other.embeddings is not None:
            embeddings = torch.cat([embeddings, other.embeddings[rows]])
        return replace(joined, sources=tuple(sources), embeddings=embeddings, encoder=self.encoder or other.encoder)

    def embed(self, text_encoder: TextEmbedder) -> Corpus:
        """Returns this corpus with its texts embedded by a frozen encoder (``embed(texts) -> [n, d]``)."""
        with torch.no_grad():
            rows = text_encoder.embed(self.texts)
        describe = getattr(text_encoder, "source", None)
        return replace(self, embeddings=rows, encoder=None if describe is None else describe())

    def save(self, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> Path:
        """Writes ``path`` (JSON) and, if embedded, a ``.safetensors`` file of the same name; returns the JSON path.

        Args:
            about: what made the corpus, for people; kept in the file.

        Raises:
            OSError: a file could not be written. The previous file is unchanged. ValueError: ``path`` is no .json.
        """
        return write_corpus_file(path, list(self), self.embeddings, self.encoder, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Corpus:
        """Reads what :meth:`save` wrote, or a corpus that ships with the package by its bare name (``READY``).

        Raises:
            FileNotFoundError: the JSON file or the embeddings that it names are missing.
            ValueError: the file is not a corpus, or the embeddings belong to other texts.
        """
        return cls.from_file(read_corpus_file(path))

    @classmethod
    def from_file(cls, file: CorpusFile) -> Corpus:
        """Returns the corpus of a file that was read. Errors as in :meth:`load`."""
        try:
            corpus = cls.from_entities(file.entities)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file.path} is not a corpus file: {error}") from None
        try:
            return replace(corpus, embeddings=file.embeddings, encoder=file.encoder)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file.path.with_suffix('.safetensors')}: {error}") from None

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the texts in order, by which embeddings are matched to them."""
        return hash_texts(self)

    def content_hash(self) -> str:
        """Returns the SHA-256 of every field of every entity, in order: two builds of one input agree in it."""
        return hash_entities(self)


def check_encoders(what: str, made_by: TextSource | None, other: str, used_by: TextSource | None) -> None:
    """Checks that embeddings come from the text encoder that they meet. An unknown encoder is not compared.

    Args:
        what, made_by: the embeddings and their encoder. other, used_by: what they meet, and its encoder.

    Raises:
        ValueError: the two have other weights. The message names both.
    """
    if made_by is None or used_by is None or not (_mark(made_by) and _mark(used_by)):
        return
    if _mark(made_by) != _mark(used_by):
        raise ValueError(
            f"{what} was embedded by {made_by}, and {other} belongs to {used_by}; embed it again with that text "
            "encoder (alt corpus embed, or Corpus.embed)"
        )


def _mark(source: TextSource) -> str:
    """Returns what tells two encoders apart: the hash of their weights, or that they are random directions."""
    return source.backbone if source.backbone == "random" else source.sha256


def _unit_rows(embeddings: Tensor, count: int) -> Tensor:
    """Checks rows and scales them to length 1; rows of length 1 are returned bit for bit."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        raise TypeError("embeddings must be a float tensor [K, d]")
    if embeddings.dim() != 2 or embeddings.shape[0] != count or embeddings.shape[1] == 0:
        raise ValueError(f"embeddings must be [{count}, d], one row per entity, got {list(embeddings.shape)}")
    rows = embeddings.detach().to("cpu", torch.float32)
    norm = rows.norm(dim=1, keepdim=True)
    wrong = (~torch.isfinite(norm) | (norm == 0)).flatten().nonzero()
    if len(wrong):
        raise ValueError(f"embeddings[{int(wrong[0])}] is zero or not finite, so it has no direction")
    return torch.where((norm - 1).abs() < 1e-6, rows, rows / norm).contiguous()
