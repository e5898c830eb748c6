"""A corpus on disk: JSON with one entity per line, for people to read and edit, and its embeddings beside it.

Format 2 has several action labels per entity, the origin of each description, and the hash of the entities as they
were written, which shows whether somebody edited the file. Format 1 is read too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from alt.files import parse_json, read_json, read_tensors, replacing

from .entity import Entity, TextSource, hash_entities, hash_texts, parse_entity, parse_source

__all__ = ["READY", "CorpusFile", "find_corpus", "read_corpus_file", "write_corpus_file"]

FORMAT = 2
SHIPPED = Path(__file__).parent / "ready"
READY: tuple[str, ...] = tuple(sorted(file.stem for file in SHIPPED.glob("*.json")))
"""Names of the corpora that ship with the package."""


class CorpusFile(NamedTuple):
    """What a file holds. about: what made it. edited: somebody changed the entities after they were written."""

    path: Path
    entities: list[Entity]
    embeddings: Tensor | None
    encoder: TextSource | None
    about: dict[str, Any]
    edited: bool


def find_corpus(name: str | os.PathLike[str]) -> Path:
    """Returns the path of a corpus that is named by its file, or by its bare name if it ships with the package.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is neither a .json file nor one of the names.
    """
    text = os.fspath(name)
    if text in READY:
        return SHIPPED / f"{text}.json"
    path = Path(text)
    if path.suffix != ".json":
        raise ValueError(
            f"a corpus is a .json file (its embeddings lie beside it) or one of {', '.join(READY)}; got {text!r}"
        )
    if not path.exists():
        raise FileNotFoundError(f"no corpus at {path}; `alt corpus build` makes one, and {', '.join(READY)} ship")
    return path


def write_corpus_file(
    path: str | os.PathLike[str],
    entities: Sequence[Entity],
    embeddings: Tensor | None = None,
    encoder: TextSource | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Writes ``path`` (JSON) and, if embedded, a ``.safetensors`` file of the same name; returns the JSON path.

    Args:
        path: ends in .json. entities, embeddings, encoder: of a :class:`~alt.corpus.Corpus`.
        about: what made it (command, versions, label lists), for people; kept in the file.

    Raises:
        OSError: a file could not be written. The previous file is unchanged. ValueError: the name is another one.
    """
    target = Path(path)
    if target.suffix != ".json":
        raise ValueError(f"a corpus is a .json file (its embeddings lie beside it), got {target.name!r}")
    beside = target.with_suffix(".safetensors")
    if embeddings is not None:
        from safetensors.torch import save

        metadata = {"texts": hash_texts(entities)}
        if encoder is not None:
            metadata["encoder"] = json.dumps(encoder._asdict())
        data = save({"embeddings": embeddings.contiguous()}, metadata)
        with replacing(beside, "the corpus") as temporary:
            temporary.write_bytes(data)
    head = {
        "format": FORMAT,
        **({"about": about} if about else {}),
        "sha256": hash_entities(entities),
        "embeddings": None if embeddings is None else beside.name,
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    rows = [f"  {json.dumps(entity._asdict(), ensure_ascii=False)}" for entity in entities]
    text = "{\n" + ",\n".join(lines) + ',\n "entities": [\n' + ",\n".join(rows) + "\n ]\n}\n"
    with replacing(target, "the corpus") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def read_corpus_file(path: str | os.PathLike[str]) -> CorpusFile:
    """Reads a corpus by its path, or by its bare name if it ships with the package.

    Raises:
        FileNotFoundError: the JSON file or the embeddings that it names are missing.
        ValueError: the file is not a corpus, or the embeddings belong to other texts.
    """
    source = find_corpus(path)
    try:
        document = read_json(source)
        if not isinstance(document, dict):
            raise ValueError("its content is no group of fields")
        number = document.get("format", 1)
        if number not in (1, FORMAT):
            raise ValueError(f"it has format {str(number)[:40]}, and this version reads 1 and {FORMAT}")
        entities = [parse_entity(row) for row in document["entities"]]
        embedded = document["embeddings"] is not None
        edited = number == FORMAT and document["sha256"] != hash_entities(entities)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).removeprefix(f"{source}: ")
        raise ValueError(f"{source} is not a corpus file: {reason}") from None
    embeddings, encoder = _read_embeddings(source, entities) if embedded else (None, None)
    about = document.get("about")
    return CorpusFile(source, entities, embeddings, encoder, about if isinstance(about, dict) else {}, edited)


def _read_embeddings(source: Path, entities: list[Entity]) -> tuple[Tensor, TextSource | None]:
    file = source.with_suffix(".safetensors")  # whatever name the document gives
    if not file.is_file():
        raise FileNotFoundError(f"{source} names embeddings in {file.name}, which is not beside it")
    tensors, metadata = read_tensors(file)
    if metadata.get("texts") != hash_texts(entities):
        raise ValueError(
            f"the embeddings in {file} are of other texts than {source.name} lists; embed again (alt corpus embed)"
        )
    if "embeddings" not in tensors:
        raise ValueError(f"{file} holds no embeddings")
    try:
        return tensors["embeddings"], parse_source(parse_json(metadata.get("encoder", "null"), "encoder"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from None
