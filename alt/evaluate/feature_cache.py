"""Tokens of test clips, kept in a folder: a frozen tower encodes the clips of an evaluation once.

What comes after the tower (adapter, head, class texts, a probe) reads the kept tokens, and gives the same bits as
without the cache. Augmented clips are never kept, because they are others in every epoch.

An entry holds the tokens of one batch: the last bits of a clip's tokens depend on the batch that it is computed in. It
is known by what decides them (:mod:`alt.evaluate.encoder_identity`), the precision, the views, and the identities of
the batch's clips in their order.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from alt.data.cache_folder import GIB, CacheFolder
from alt.data.clip_identity import Identity, identify
from alt.data.clip_views import ClipViews
from alt.data.clips import ClipFiles
from alt.models.video_model import Tokens, VideoModel

from .encoder_identity import describe_encoder, describe_views

__all__ = ["EncodedBatch", "FeatureCache"]

_MAGIC = b"ALTTOK01"
_HEAD = struct.Struct("<8sII")  # magic, checksum of what follows, length of its description


class EncodedBatch(NamedTuple):
    """parts: tokens of the views of all videos, in order. views: of a video. labels: of the videos, ``[B]`` or
    ``[B, C]``."""

    parts: list[Tokens]
    views: int
    labels: Tensor


class FeatureCache:
    """Tokens of batches of test clips.

    Args:
        folder: of the entries, is created. gib: that it may hold, in GiB.

    Raises:
        UserError: the folder cannot be written, or holds other files.
    """

    def __init__(self, folder: str | Path, gib: int) -> None:
        self.entries = CacheFolder(folder, gib * GIB, "data.feature_cache")
        self._taken = self._encoded = self._damaged = 0

    def describe(self) -> list[str]:
        """Returns lines on the videos encoded so far."""
        if not self._taken + self._encoded:
            return []
        lines = [
            f"The tokens of {self._taken} videos came from the cache, those of {self._encoded} were computed; "
            f"{self.entries.describe()}"
        ]
        if self._damaged:
            lines.append(f"{self._damaged} damaged entries of the cache were computed again")
        return lines

    def encode_batches(
        self, model: VideoModel, dataset: Dataset[Any], place: torch.device, *, batch: int, workers: int, precision: str
    ) -> Iterator[EncodedBatch]:
        """Yields the tokens of all videos in their order, as ``model.encode`` gives them.

        Args:
            model: in evaluation mode, on ``place``.
            dataset: :class:`~alt.data.clip_views.ClipViews` of list files, or a subset of them.
            batch: videos per batch, and the largest number of views per pass. workers: processes that read clips.
            precision: "fp32", or "bf16" for autocast.

        Raises:
            TypeError: it is another dataset. UserError: the tower has hooks.
        """
        clips, numbers = _list_clips(dataset)
        assert isinstance(clips.source, ClipFiles)
        made = f"{describe_encoder(model, place)} {describe_views(clips)} {precision} {batch}"
        rows = [range(start, min(start + batch, len(numbers))) for start in range(0, len(numbers), batch)]
        found = [_Batch(clips.source, [numbers[row] for row in part], made) for part in rows]
        kept = [one.name is not None and (self.entries.folder / one.name).is_file() for one in found]
        missing: Any = [part for part, there in zip(rows, kept, strict=True) if not there]
        workers = workers if missing else 0
        loader = iter(DataLoader(dataset, batch_sampler=missing, num_workers=workers, generator=torch.Generator()))
        for part, one, there in zip(rows, found, kept, strict=True):
            labels = (clips.labels if clips.targets is None else clips.targets)[one.numbers]
            encoded = self._take(one.name, labels, place) if one.name is not None and there else None
            if encoded is not None:
                self._taken += len(part)
                yield encoded
                continue
            self._encoded += len(part)
            read = default_collate([dataset[row] for row in part]) if there else next(loader)
            encoded = _encode(model, read, place, batch, precision)
            if one.name is not None and one.is_current():
                self._keep(one.name, encoded)
            yield encoded

    def _take(self, name: str, labels: Tensor, place: torch.device) -> EncodedBatch | None:
        try:
            data = (self.entries.folder / name).read_bytes()
            return _unpack(data, labels, place)
        except OSError:
            return None
        except ValueError:
            self._damaged += 1
            self.entries.drop(name)
            return None

    def _keep(self, name: str, encoded: EncodedBatch) -> None:
        about, data = _pack(encoded)
        head = _HEAD.pack(_MAGIC, zlib.crc32(data, zlib.crc32(about)), len(about))
        self.entries.put(name, [head, about, data])


class _Batch:
    """Clips of one batch. name: of its entry; None if one of the clips cannot be told from another content of it."""

    def __init__(self, source: ClipFiles, numbers: list[int], made: str) -> None:
        self.source, self.numbers = source, numbers
        self._identities = [identify(source.entries[number].path) for number in numbers]
        self.name: str | None = None
        clips = [
            (identity.clip, identity.state, source.entries[number].frames, source.entries[number].span)
            for identity, number in zip(self._identities, numbers, strict=True)
            if identity is not None and identity.settled
        ]
        if len(clips) == len(numbers):
            digest = hashlib.sha256(f"{made} {clips}".encode()).hexdigest()
            self.name = f"{digest[:2]}/{digest[2:34]}"

    def is_current(self) -> bool:
        """Returns whether the clips are as they were, and none was damaged, so that another one was read for it."""
        replaced = set(self.source.replaced)
        pairs: Iterator[tuple[int, Identity | None]] = zip(self.numbers, self._identities, strict=True)
        return all(
            identity is not None and number not in replaced and identity.is_current(self.source.entries[number].path)
            for number, identity in pairs
        )


def _encode(model: VideoModel, read: Any, place: torch.device, at_once: int, precision: str) -> EncodedBatch:
    clips, labels = read
    views = clips[:, None] if clips.dim() == 5 else clips
    with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        parts = [model.encode(part) for part in views.to(place).flatten(0, 1).split(at_once)]
    return EncodedBatch(parts, views.shape[1], labels)


def _pack(encoded: EncodedBatch) -> tuple[bytes, bytes]:
    """Returns the description of an entry and its tensors."""
    tensors, strides = {}, {}
    for number, part in enumerate(encoded.parts):
        for field, tensor in part._asdict().items():
            if tensor is not None:
                tensors[f"{number}.{field}"] = tensor.detach().cpu().contiguous()
                strides[f"{number}.{field}"] = tensor.stride()
    about = {"parts": len(encoded.parts), "views": encoded.views, "strides": strides}
    return json.dumps(about).encode(), safetensors.torch.save(tensors)


def _unpack(data: bytes, labels: Tensor, place: torch.device) -> EncodedBatch:
    """Returns a batch; raises ValueError for damaged bytes."""
    if len(data) < _HEAD.size:
        raise ValueError("it is broken off")
    magic, checksum, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(memoryview(data)[_HEAD.size :]) != checksum:
        raise ValueError("it is damaged")
    begin = _HEAD.size + length
    about = json.loads(data[_HEAD.size : begin])
    tensors = safetensors.torch.load(data[begin:])

    def restore(name: str) -> Tensor | None:
        return None if name not in tensors else _restore(tensors[name], about["strides"][name], place)

    parts = [Tokens(*(restore(f"{number}.{field}") for field in Tokens._fields)) for number in range(about["parts"])]  # type: ignore[arg-type]
    return EncodedBatch(parts, about["views"], labels)


def _restore(tensor: Tensor, strides: Sequence[int], place: torch.device) -> Tensor:
    """Returns a tensor that lies in memory as it was computed: kernels may round others in another way."""
    if 0 in strides:
        return tensor.clone().to(place)
    return torch.empty_strided(tensor.shape, tuple(strides), dtype=tensor.dtype, device=place).copy_(tensor)


def _list_clips(dataset: Dataset[Any]) -> tuple[ClipViews, list[int]]:
    """Returns the test clips of a dataset, and the numbers of those in it."""
    if isinstance(dataset, Subset):
        clips, numbers = _list_clips(dataset.dataset)
        return clips, [numbers[row] for row in dataset.indices]
    if isinstance(dataset, ClipViews) and isinstance(dataset.source, ClipFiles):
        return dataset, list(range(len(dataset)))
    raise TypeError(f"dataset: expected ClipViews of list files where features are kept, got {type(dataset).__name__}")
