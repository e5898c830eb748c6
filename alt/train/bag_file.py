"""Files of bags: for every clip without a label the name that it matches, and the texts that may describe it.

A file is JSON with one name or clip per line, for people to read and edit::

    {
     "format": 1,
     "about": {"dictionary": ["k400"], "templates": "kinetics28"},
     "names": {
      "applying cream": ["rub", "rubbing", "rubbing cream"]
     },
     "clips": [
      {"clip": "videos/a.mp4", "name": "applying cream", "similarity": 0.2713, "texts": ["cover", "covering"]}
     ]
    }

``names`` holds texts that belong to a name of the dictionary and so to all clips that match it, such as the phrases of
a language model. ``texts`` of a clip are its own, such as the verbs of its captions.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alt.files import read_json, replacing

__all__ = ["BagFile", "ClipBag", "read_bags", "write_bags"]

FORMAT = 1


class ClipBag(NamedTuple):
    """clip: its path in the list, or its number in a generated world. name: the best match. similarity: its cosine.
    texts: of this clip alone."""

    clip: str
    name: str
    similarity: float
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class BagFile:
    """clips: one bag for each. names: texts of every name. about: what made the file."""

    clips: Sequence[ClipBag]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def texts_of(self, bag: ClipBag) -> list[str]:
        """Returns the texts of a clip, those of its name first, each once. The name itself is not among them."""
        return [text for text in dict.fromkeys([*self.names.get(bag.name, ()), *bag.texts]) if text != bag.name]

    def content_hash(self) -> str:
        """Returns the SHA-256 of names, clips and texts; similarities and ``about`` do not count."""
        rows = [[bag.clip, bag.name, *self.texts_of(bag)] for bag in self.clips]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def write_bags(path: str | os.PathLike[str], bags: BagFile) -> None:
    """Writes a file of bags, whole or not at all.

    Raises:
        OSError: it could not be written. The previous file is unchanged.
    """
    names = [f"  {_dump(name)}: {_dump(list(texts))}" for name, texts in bags.names.items()]
    clips = [f"  {_dump({**bag._asdict(), 'similarity': round(bag.similarity, 6)})}" for bag in bags.clips]
    parts = [
        f' "format": {FORMAT}',
        f' "about": {_dump(dict(bags.about))}',
        ' "names": {' + "".join(["\n", ",\n".join(names), "\n "] if names else []) + "}",
        ' "clips": [\n' + ",\n".join(clips) + "\n ]",
    ]
    with replacing(Path(path), "the bags") as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_bags(path: str | os.PathLike[str]) -> BagFile:
    """Reads what :func:`write_bags` wrote.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is no file of bags; the message names the first fault.
    """
    document = read_json(path)
    try:
        if not isinstance(document, dict) or not isinstance(document.get("clips"), list):
            raise ValueError("it has no list of clips")
        if document.get("format") != FORMAT:
            raise ValueError(f"it has format {str(document.get('format'))[:40]}, and this version reads {FORMAT}")
        names = document.get("names", {})
        if not isinstance(names, dict):
            raise ValueError("names: expected texts by name")
        texts = {name: _parse_texts(rows, f"names, {name!r:.60}") for name, rows in names.items()}
        clips = [_parse_clip(row, number) for number, row in enumerate(document["clips"], 1)]
        if not clips:
            raise ValueError("it has no clips")
    except ValueError as error:
        raise ValueError(f"{path} is not a file of bags: {error}") from None
    about = document.get("about")
    return BagFile(clips, texts, about if isinstance(about, dict) else {})


def _parse_clip(row: Any, number: int) -> ClipBag:
    where = f"clip {number}"
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a group of fields, got {type(row).__name__}")
    for key in ("clip", "name"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"{where}: expected a text as its {key}, got {row.get(key)!r:.60}")
    value = row.get("similarity")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: expected a number as its similarity, got {value!r:.60}")
    return ClipBag(row["clip"], row["name"], float(value), _parse_texts(row.get("texts", []), where))


def _parse_texts(rows: Any, where: str) -> tuple[str, ...]:
    if not isinstance(rows, list) or not all(isinstance(text, str) and text.strip() for text in rows):
        raise ValueError(f"{where}: expected a list of texts, got {rows!r:.60}")
    return tuple(rows)
