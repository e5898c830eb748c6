"""What decides a run besides its configuration: its clips, class names and corpus, as hashes in its checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from alt.corpus import Corpus
from alt.data.clip_views import Clips
from alt.data.clips import ClipFiles
from alt.errors import UserError, one_line

from .bag_file import BagFile
from .config import TrainConfig
from .data import ClipData


def describe_origin(
    config: TrainConfig, data: ClipData, bags: BagFile | None = None, dictionary: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns what a resumed run must find again, as plain values by the setting that decides it.

    Lists are hashed as their lines: paths relative to ``data.root``, labels, order. The content of clips is not read.
    ``bags``: those of clips without labels. ``dictionary``: all names, if matched ones are told from the others.

    Raises:
        UserError: the corpus cannot be read.
    """
    name, held_out = config.data.train_list, config.data.val_list or ""
    if config.data.kind == "entity_world":
        name, held_out = config.data.train_split, config.data.val_split or ""
    origin = {
        f"the clips of {name}": _describe_clips(data.train_set.clips, data.train_set.chosen, config.data.root),
        "the class names": {"count": len(data.class_names), "names": list(data.class_names)},
    }
    if data.val_set is not None:
        origin[f"the clips of {held_out}"] = _describe_clips(data.val_set.clips, data.val_set.chosen, config.data.root)
    if config.model.corpus not in (None, "labels", "world"):
        origin["the corpus"] = _describe_corpus(Path(str(config.model.corpus)))
    elif data.world is not None:
        entities = ["\0".join(map(str, entity)) for entity in data.world.entities()]
        origin["the corpus"] = {"count": len(entities), "sha256": _hash(entities)}
    if bags is not None:
        origin["the bags of texts"] = {"count": len(bags.clips), "sha256": bags.content_hash()}
    if dictionary:
        origin["the names of the dictionary"] = {"count": len(dictionary), "names": list(dictionary)}
    origin["the length of the schedule"] = {"count": data.total_steps}
    return origin


def describe_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Returns a phrase on the first part that a resumed run does not find again, or None."""
    for part, new in now.items():
        old = before.get(part)
        if not isinstance(old, dict) or old == new:
            continue
        if old.get("count") != new["count"]:
            return f"{part}: {old.get('count')} before, {new['count']} now"
        pairs = zip(old.get("names", ()), new.get("names", ()), strict=False)
        named = next((f", first {a!r}, which is now {b!r}" for a, b in pairs if a != b), "")
        return f"{part}: not the same, or in another order{named}"
    return None


def _describe_clips(clips: Clips, chosen: Tensor, root: str | None) -> dict[str, Any]:
    """A clip is its number in the list, which seeds its augmentation, its path and its label."""
    paths = clips.names_below(root) if isinstance(clips, ClipFiles) else None
    labels = clips.labels.tolist()
    lines = [f"{i}\0{labels[i]}\0{'' if paths is None else paths[i]}" for i in chosen.tolist()]
    return {"count": len(lines), "sha256": _hash(lines)}


def _describe_corpus(path: Path) -> dict[str, Any]:
    try:
        corpus = Corpus.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model: {one_line(error, 300)}.") from None
    rows = b"" if corpus.embeddings is None else corpus.embeddings.numpy().tobytes()
    return {"count": len(corpus), "sha256": _hash([corpus.fingerprint(), hashlib.sha256(rows).hexdigest()])}


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
