"""Global memory of a launch: the bytes of its tensors, and nothing else.

Every access is checked: each of its bytes belongs to an element of an argument (the gaps of a strided view do not), and
the address is a multiple of the width. Within a launch nothing synchronises programs, so that each byte may be stored
by one thread once, and not be loaded as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
ARGUMENT, LOADED, STORED = 1, 2, 4  # bits kept for every byte


class AccessError(Exception):
    """A thread touched memory that is not the kernel's, or at an address its width does not allow."""


class HazardError(Exception):
    """Race: the order of two accesses is left to chance."""


class Region:
    """The storage of one or more arguments."""

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.start, self.size = storage.data_ptr(), storage.nbytes()
        if self.start % 16:
            raise AccessError(f"a storage at {self.start:#x}: a GPU's are aligned to 256 bytes, the emulator wants 16")
        whole = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (self.size,), (1,))  # type: ignore[call-overload]
        self.bytes = whole.numpy()
        self.flags = np.zeros(self.size, np.uint8)
        self.names: list[str] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """The elements of an argument become accessible."""
        item = tensor.element_size()
        axes = [(n, s * item) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s != 0]
        shape, strides = [n for n, _ in axes] + [item], [s for _, s in axes] + [1]
        if tensor.numel():
            start = self.flags[tensor.storage_offset() * item :]
            np.lib.stride_tricks.as_strided(start, shape, strides)[...] |= ARGUMENT
        self.names.append(f"{name}{tuple(tensor.shape)} at {tensor.data_ptr():#x}")

    def view(self, width: int) -> tuple[Array, Array]:
        """Bytes and flags as numbers of ``width`` bytes."""
        kind, end = np.dtype(f"u{width}"), self.size // width * width
        return self.bytes[:end].view(kind), self.flags[:end].view(kind)


class Global:
    def __init__(self, arguments: Iterable[tuple[str, Tensor]]) -> None:
        found: dict[int, Region] = {}
        for name, tensor in arguments:
            if tensor.untyped_storage().nbytes():
                region = found.setdefault(tensor.untyped_storage().data_ptr(), Region(tensor))
                region.add(name, tensor)
        self.regions = sorted(found.values(), key=lambda r: r.start)
        self.starts = np.array([r.start for r in self.regions], np.uint64)

    def _parts(self, at: Array) -> Iterable[tuple[Region, Any]]:
        """The addresses by region; those before the first one are its."""
        which = np.maximum(np.searchsorted(self.starts, at, side="right") - 1, 0)
        if (which == which[0]).all():
            yield self.regions[which[0]], slice(None)
            return
        for number in np.unique(which):
            yield self.regions[number], np.flatnonzero(which == number)

    def _places(self, at: Array, width: int, count: int, where: str) -> Iterable[tuple[Region, Any, Array, Array]]:
        """Region, which threads, element numbers and their flags of a checked access; ``where`` for the message."""
        if (bad := at % np.uint64(width * count)).any():
            lane = int(np.flatnonzero(bad)[0])
            raise AccessError(f"misaligned: access of {width * count} bytes at {int(at[lane]):#x}; {where}", lane)
        if not self.regions:
            raise AccessError(f"out of bounds: no argument has memory; {where}", 0)
        for region, chosen in self._parts(at):
            place = (at[chosen].astype(np.int64) - region.start) // width
            place = place[:, None] + np.arange(count)
            flags = region.view(width)[1]
            inside = (place >= 0) & (place < len(flags))
            mine = np.dtype(f"u{width}").type(ARGUMENT * 0x0101010101010101 & (1 << 8 * width) - 1)
            found = flags[np.where(inside, place, 0)]
            inside &= found & mine == mine
            if not inside.all():
                lane = int(np.flatnonzero(~inside.all(1))[0])
                address = int(at[chosen][lane])
                near = ", ".join(region.names)
                lane = lane if isinstance(chosen, slice) else int(chosen[lane])
                raise AccessError(
                    f"out of bounds: {width * count} bytes at {address:#x} (nearest: {near}, {region.size} bytes of"
                    f" storage from {region.start:#x}); {where}", lane
                )  # fmt: skip
            yield region, chosen, place, found

    def load(self, at: Array, width: int, count: int, where: str) -> Array:
        """``[threads, count]`` numbers of ``width`` bytes."""
        result = np.empty((len(at), count), np.dtype(f"u{width}"))
        for region, chosen, place, found in self._places(at, width, count, where):
            values, flags = region.view(width)
            if (found & _each(STORED, width)).any():
                raise HazardError(f"load of what this launch stores: {region.names}; {where}")
            result[chosen] = values[place]
            flags[place] = found | _each(LOADED, width)
        return result

    def store(self, at: Array, values: Array, where: str) -> None:
        """``[threads, count]`` numbers."""
        width, count = values.dtype.itemsize, values.shape[1]
        for region, chosen, place, found in self._places(at, width, count, where):
            memory, flags = region.view(width)
            if (found & _each(STORED | LOADED, width)).any():
                raise HazardError(f"store to what this launch has stored or loaded: {region.names}; {where}")
            flags[place] = found | _each(STORED, width)
            memory[place] = values[chosen]
            if (memory[place] != values[chosen]).any() or len(np.unique(place)) != place.size:
                raise HazardError(f"two threads store to one place: {region.names}; {where}")


def _each(bit: int, width: int) -> Any:
    """A bit in every byte."""
    return np.dtype(f"u{width}").type(bit * (0x0101010101010101 & (1 << 8 * width) - 1))
