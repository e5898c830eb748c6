"""The text corpus of ALT: entities {unit, description} by category, and their frozen text embeddings.

A corpus is plain data. It imports neither models nor kernels: the caller passes an encoder with ``embed(texts)``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from alt.errors import refuse_unordered
from alt.files import read_json, read_tensors, replacing

__all__ = ["CATEGORIES", "Corpus", "Entity", "TextEmbedder"]

CATEGORIES = ("object", "body_part", "scene", "motion", "label")
"""Categories of entities: the paper's four, and ``label`` for corpora whose entities are action labels."""

_FORMAT = 1


class Entity(NamedTuple):
    """One entity: its name, a description, its category, and the action label that it was found in ("" if none)."""

    unit: str
    description: str
    category: str
    source: str

    @property
    def text(self) -> str:
        """Returns the text to embed: ``"{unit}: {description}"``, or the unit alone if the description is empty."""
        return f"{self.unit}: {self.description}" if self.description else self.unit


class TextEmbedder(Protocol):
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
        sources: K action labels in which the entities were found; empty if none is known.
        embeddings: ``[K, d]`` float with non-zero rows, which are normalised here; or None.

    Raises:
        ValueError: there is no entity, the sequences differ in length, a unit is empty, a category is unknown,
            the embeddings have another shape, or one of their rows is zero or not finite.
        TypeError: a text is not a str, or the embeddings are not a float tensor.
    """

    units: tuple[str, ...]
    descriptions: tuple[str, ...]
    categories: tuple[str, ...]
    sources: tuple[str, ...] = ()
    embeddings: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("units", "descriptions", "categories", "sources"):
            values = getattr(self, name)
            refuse_unordered(values, name)
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise TypeError(f"{name} must be a sequence of str, got {type(values).__name__}")
            object.__setattr__(self, name, tuple(values))
        if not self.units:
            raise ValueError("the corpus is empty: it needs at least one entity")
        if not self.sources:
            object.__setattr__(self, "sources", ("",) * len(self.units))
        for name in ("units", "descriptions", "categories", "sources"):
            values = getattr(self, name)
            wrong = next((value for value in values if not isinstance(value, str)), None)
            if wrong is not None:
                raise TypeError(f"{name} must hold str only, got {type(wrong).__name__}")
            if len(values) != len(self.units):
                raise ValueError(f"{name} must have one entry per unit, {len(self.units)}, got {len(values)}")
        if not all(unit.strip() for unit in self.units):
            raise ValueError(f"units[{[bool(unit.strip()) for unit in self.units].index(False)}] is empty")
        _check_categories(self.categories, "categories")
        if self.embeddings is not None:
            object.__setattr__(self, "embeddings", _unit_rows(self.embeddings, len(self.units)))

    @classmethod
    def from_entities(cls, entities: Iterable[Sequence[str]]) -> Corpus:
        """Returns a corpus of tuples (unit, description, category[, source])."""
        refuse_unordered(entities, "entities")
        rows = [tuple(entity) if len(entity) == 4 else (*entity, "") for entity in entities]
        units, descriptions, categories, sources = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(units, descriptions, categories, sources)

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> Corpus:
        """Returns a corpus whose entities are the labels, verbatim (the paper's choice for Something-Something v2)."""
        refuse_unordered(labels, "labels")
        if isinstance(labels, str):
            raise TypeError("labels must be a sequence of str, got one str")
        names = list(dict.fromkeys(labels))
        return cls(tuple(names), ("",) * len(names), ("label",) * len(names), tuple(names))

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Entity:
        return Entity(self.units[index], self.descriptions[index], self.categories[index], self.sources[index])

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
        _check_categories(wanted, "categories")
        rows = [i for i, category in enumerate(self.categories) if category in wanted]
        if not rows:
            raise ValueError(f"no entity of category {' or '.join(wanted)} in this corpus, which has {self.counts()}")
        return self._rows(rows)

    def expand(self, other: Corpus) -> Corpus:
        """Returns this corpus followed by the entities of ``other`` whose text is new (the rule for a new dataset).

        Rows of this corpus keep their numbers, so earlier alignments stay valid.

        Raises:
            ValueError: only one of the two is embedded, or their embeddings differ in width.
        """
        if (self.embeddings is None) != (other.embeddings is None):
            here, there = ("not embedded", "is") if self.embeddings is None else ("embedded", "is not")
            raise ValueError(f"this corpus is {here} and the one to append {there}; embed both, or neither")
        known, rows = set(self.texts), []
        for i, text in enumerate(other.texts):
            if text not in known:
                known.add(text)
                rows.append(i)
        if not rows:
            return self
        new = other._rows(rows)
        embeddings = None
        if self.embeddings is not None and new.embeddings is not None:
            if self.width != new.width:
                raise ValueError(
                    f"the corpus to append is embedded at width {new.width}, this one at width {self.width}; "
                    "embed both with one text encoder"
                )
            embeddings = torch.cat([self.embeddings, new.embeddings])
        return Corpus(
            self.units + new.units,
            self.descriptions + new.descriptions,
            self.categories + new.categories,
            self.sources + new.sources,
            embeddings,
        )

    def embed(self, text_encoder: TextEmbedder) -> Corpus:
        """Returns this corpus with its texts embedded by a frozen encoder (``embed(texts) -> [n, d]``)."""
        with torch.no_grad():
            return replace(self, embeddings=text_encoder.embed(self.texts))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes ``path`` (JSON) and, if embedded, a ``.safetensors`` file of the same name; returns the JSON path.

        Raises:
            OSError: a file could not be written. The previous file is unchanged.
        """
        target = _json_path(path)
        document = {
            "format": _FORMAT,
            "embeddings": None if self.embeddings is None else target.with_suffix(".safetensors").name,
            "entities": [entity._asdict() for entity in self],
        }
        if self.embeddings is not None:
            from safetensors.torch import save

            data = save({"embeddings": self.embeddings.contiguous()}, {"texts": self.fingerprint()})
            with replacing(target.with_suffix(".safetensors"), "the corpus") as temporary:
                temporary.write_bytes(data)
        with replacing(target, "the corpus") as temporary:
            temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Corpus:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: the JSON file or the embeddings that it names are missing.
            ValueError: the file is not a corpus, or the embeddings belong to other texts.
        """
        source = _json_path(path)
        if not source.exists():
            raise FileNotFoundError(f"no corpus at {source}")
        try:
            document = read_json(source)
            rows = [Entity(e["unit"], e["description"], e["category"], e["source"]) for e in document["entities"]]
            embedded = document["embeddings"] is not None
            corpus = cls.from_entities(rows)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{source}: ")
            raise ValueError(f"{source} is not a corpus file: {reason}") from None
        if not embedded:
            return corpus
        file = source.with_suffix(".safetensors")  # whatever name the document gives
        if not file.is_file():
            raise FileNotFoundError(f"{source} names embeddings in {file.name}, which is not beside it")
        tensors, metadata = read_tensors(file)
        if metadata.get("texts") != corpus.fingerprint():
            raise ValueError(f"the embeddings in {file} are of other texts than {source.name} lists; embed again")
        if "embeddings" not in tensors:
            raise ValueError(f"{file} holds no embeddings")
        try:
            return replace(corpus, embeddings=tensors["embeddings"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from None

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the texts in order, by which embeddings are matched to them."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()

    def _rows(self, rows: list[int]) -> Corpus:
        picked = Corpus.from_entities(self[i] for i in rows)
        return picked if self.embeddings is None else replace(picked, embeddings=self.embeddings[rows])


def _json_path(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".json":
        raise ValueError(f"a corpus is a .json file (its embeddings lie beside it), got {target.name!r}")
    return target


def _check_categories(categories: tuple[str, ...], name: str) -> None:
    wrong = next((category for category in categories if category not in CATEGORIES), None)
    if wrong is not None:
        raise ValueError(f"{name} must be of {', '.join(CATEGORIES)}, got {wrong!r}")


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
