"""Pictures with captions, in the files that people have.

=========== =========================================================================================================
beside      ``0001.jpg`` with ``0001.txt`` (one caption per line) or ``0001.json`` (its ``caption``), in FOLDER or one
            level below: what img2dataset writes
CSV, TSV    a header names the column of the path (``filepath``, ``file_name``, ``image``, ...) and that of the caption
            (``caption``, ``title``, ``text``, ...); one line per caption. Commas, tabs, ``|`` or ``;`` separate
JSON lines  one object per line with these names, as ``metadata.jsonl`` of the Hub's image folders
JSON        ``images`` and ``annotations`` of COCO's ``captions_val2017.json``; or ``images`` with ``sentences``, as in
            Karpathy's splits of COCO and Flickr30k, of which the pictures of ``test`` are taken
=========== =========================================================================================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alt.files import describe_error, parse_json, read_json

from .clip_lists import read_text_file
from .picture_videos import is_picture, natural_key
from .video import ClipError

__all__ = ["CAPTION_FILES", "CaptionedPictures", "find_captions", "read_captions"]

CAPTION_FILES = tuple(f"{stem}.{kind}" for stem in ("captions", "metadata") for kind in ("csv", "tsv", "jsonl", "json"))
"""Names under which a caption file in the folder itself is found."""

_PATH = ("filepath", "file_name", "filename", "file", "image", "image_name", "image_path", "img", "path")
_CAPTION = ("caption", "captions", "title", "text", "comment", "sentence", "raw")


class CaptionedPictures(NamedTuple):
    """Files of pictures, captions, and for each caption the number of its picture."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    owners: tuple[int, ...]


def find_captions(folder: Path) -> CaptionedPictures | None:
    """Returns the captions that lie in a folder, in a file of :data:`CAPTION_FILES` or beside the pictures.

    None if there are none, as in a folder with one folder of pictures per class.

    Raises:
        ClipError: a caption file is not of its format, or a picture beside others has no caption.
    """
    if not folder.is_dir():
        return None
    named = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    if named is not None:
        return read_captions(named, folder)
    homes = [folder, *sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda p: natural_key(p.name))]
    pictures = [path for home in homes for path in sorted(home.iterdir(), key=lambda p: natural_key(p.name))]
    pictures = [path for path in pictures if is_picture(path.name)]
    beside = [_find_beside(picture) for picture in pictures]
    if not any(beside):
        return None
    if not all(beside):
        raise ClipError(f"{pictures[beside.index(None)]}: a caption is expected in a .txt or .json file of this name")
    return _collect(
        (picture, text) for picture, file in zip(pictures, beside, strict=True) if file for text in _read_beside(file)
    )


def read_captions(file: Path, folder: Path) -> CaptionedPictures:
    """Reads a caption file. Its paths are relative to ``folder``.

    Raises:
        ClipError: the file is not of a format above, a line lacks a column, or a picture is not there.
    """
    suffix = file.suffix.lower()
    if suffix == ".json":
        pairs = _read_json(file)
    elif suffix == ".jsonl":
        lines = enumerate(read_text_file(file, "caption file").splitlines(), 1)
        pairs = [_pick(parse_json(line, f"{file}, line {i}"), f"{file}, line {i}") for i, line in lines if line.strip()]
    else:
        pairs = _read_table(file)
    if not pairs:
        raise ClipError(f"{file}: no captions in it")
    for name in dict.fromkeys(name for name, _ in pairs):
        if not _is_file(folder / name):
            raise ClipError(f"{file}: the picture {name[:200]!r} is not in {folder}")
    return _collect((folder / name, text) for name, text in pairs)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def _collect(pairs: Iterable[tuple[Path, str]]) -> CaptionedPictures:
    """Returns pairs of path and caption with one entry per picture."""
    numbers: dict[Path, int] = {}
    captions, owners = [], []
    for path, text in pairs:
        owners.append(numbers.setdefault(path, len(numbers)))
        captions.append(text)
    return CaptionedPictures(tuple(numbers), tuple(captions), tuple(owners))


def _find_beside(picture: Path) -> Path | None:
    return next((file for end in (".txt", ".json") if (file := picture.with_suffix(end)).is_file()), None)


def _read_beside(file: Path) -> list[str]:
    if file.suffix == ".json":
        found = read_json(file)
        texts: list[Any] = [found.get("caption")] if isinstance(found, dict) else []
    else:
        texts = [line.strip() for line in read_text_file(file, "caption").splitlines()]
    texts = [text for text in texts if isinstance(text, str) and text]
    if not texts:
        raise ClipError(f"{file}: a caption is expected, found none")
    return texts


def _read_table(file: Path) -> list[tuple[str, str]]:
    text = read_text_file(file, "caption file")
    head = text.split("\n", 1)[0]
    separator = max("\t,|;", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ClipError(f"{file}: not a readable caption file ({describe_error(error)})") from None
    names = [word.strip().lower() for word in rows[0]] if rows else []
    found = []
    for number, row in enumerate(rows[1:], 2):
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(names):
            raise ClipError(
                f"{file}, row {number}: {len(names)} columns are expected, got {len(row)}; put quotation marks around "
                f"a caption with {separator!r}"
            )
        found.append(_pick(dict(zip(names, row, strict=True)), f"{file}, row {number}"))
    return found


def _pick(row: Any, where: str) -> tuple[str, str]:
    """Returns path and caption of a row, which names its columns."""
    known = row if isinstance(row, dict) else {}
    path = next((known[name] for name in _PATH if name in known), None)
    text = next((known[name] for name in _CAPTION if name in known), None)
    if not isinstance(path, str) or not isinstance(text, str):
        names = ", ".join(map(str, known))[:80]
        raise ClipError(
            f"{where}: a path ({', '.join(_PATH)}) and a caption ({', '.join(_CAPTION)}) are expected, got {names!r}"
        )
    if not path.strip() or not text.strip():
        raise ClipError(f"{where}: a path and a caption are expected, one is empty")
    return path.strip(), text.strip()


def _read_json(file: Path) -> list[tuple[str, str]]:
    try:
        found = read_json(file)
        images = found["images"]
        return list(_coco(images, found["annotations"]) if "annotations" in found else _karpathy(images))
    except (OSError, ValueError) as error:
        raise ClipError(f"{file}: not a readable caption file ({describe_error(error)})") from None
    except (KeyError, TypeError, AttributeError):
        raise ClipError(
            f"{file}: 'images' with 'annotations' (COCO) or with 'sentences' (Karpathy's splits) are expected"
        ) from None


def _coco(images: Any, annotations: Any) -> Iterator[tuple[str, str]]:
    names = {image["id"]: str(image["file_name"]) for image in images}
    for annotation in annotations:
        yield names[annotation["image_id"]], annotation["caption"].strip()


def _karpathy(images: Any) -> Iterator[tuple[str, str]]:
    for image in images:
        if image.get("split", "test") == "test":
            name = "/".join([*filter(None, [image.get("filepath")]), image["filename"]])
            for sentence in image["sentences"]:
                yield name, sentence["raw"].strip()
