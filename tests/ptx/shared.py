"""Shared memory of the programs that run side by side: bytes, who touched them since which barrier, copies under way.

Time is counted in synchronisations. A read of what another warp wrote since the last barrier of the program is a
hazard, and so is a write over what another warp has read or written since; within a warp the same goes for threads and
``bar.warp.sync``. Every thread of an instruction runs at once here, so that values alone would show none of them.
A copy by cp.async holds its destination from its start until the wait that covers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .instructions import SHARED_BASE, UnknownInstruction
from .memory import AccessError

if TYPE_CHECKING:
    from .machine import Machine

Array = NDArray[Any]
THREAD_BITS = 10  # a stamp is time << 10 | thread
THREADS = (1 << THREAD_BITS) - 1


class Shared:
    def __init__(self, machine: Machine, size: int, granule: int) -> None:
        self.machine, self.size, self.granule = machine, size, granule
        self.stride = -(-size // 16) * 16
        total = self.stride * machine.count
        self.bytes = np.full(total, 0xFF, np.uint8)  # NaN in every float format
        cells = total // granule
        self.wrote, self.read, self.many, self.flight = (np.zeros(cells, np.int64) for _ in range(4))
        self.copied = np.zeros(cells, bool)  # the last write was by cp.async
        self.held = np.zeros(cells, np.int32)  # matrix products under way that read it
        self.time = 1
        self.fenced = np.full(machine.lanes, THREADS, np.int64)  # by fence.proxy.async; never written is all of it
        self.program_sync = np.zeros(machine.lanes, np.int64)  # stamps after it are of this interval
        self.warp_sync = np.zeros(machine.lanes, np.int64)

    def advance(self, lanes: Any, whole_program: bool) -> None:
        self.time += 1
        stamp = (self.time << THREAD_BITS) - 1
        self.warp_sync[lanes] = stamp
        if whole_program:
            self.program_sync[lanes] = stamp

    def fence(self, lanes: Any) -> None:
        self.time += 1
        self.fenced[lanes] = (self.time << THREAD_BITS) - 1

    def places(self, number: int, lanes: Array, at: Array, width: int) -> Array:
        """Returns the byte positions of a checked access of ``width`` bytes per thread."""
        offset = at.astype(np.int64) - SHARED_BASE
        if (bad := offset % width).any():
            self.machine.fail(
                AccessError, number, lanes[np.flatnonzero(bad)[0]], f"misaligned in shared memory: {width}"
            )
        if (bad := (offset < 0) | (offset + width > self.size)).any():
            lane = np.flatnonzero(bad)[0]
            text = f"out of bounds in shared memory: {width} bytes at {int(offset[lane])} of {self.size}"
            self.machine.fail(AccessError, number, lanes[lane], text)
        return offset + self.machine.program_of[lanes] * self.stride

    def cells(self, places: Array, width: int) -> Array:
        return places[:, None] // self.granule + np.arange(max(1, width // self.granule))

    def _conflict(self, stamps: Array, lanes: Array) -> tuple[Array, Array]:
        """Returns stamps of another warp in this interval, and of another thread since the warp's last sync."""
        thread, mine = stamps & THREADS, self.machine.thread_of[lanes][:, None]
        other = thread >> 5 != mine >> 5
        across = other & (stamps > self.program_sync[lanes][:, None])
        within = ~other & (thread != mine) & (stamps > self.warp_sync[lanes][:, None])
        return across, within

    def _report(self, number: int, what: str, lanes: Array, *found: tuple[str, Array]) -> None:
        for text, where in found:
            if where.any():
                lane = lanes[np.flatnonzero(where.any(1))[0]]
                self.machine.hazard(number, f"{what} {text}", int(lane))

    def note_read(self, number: int, lanes: Array, cells: Array) -> None:
        across, within = self._conflict(self.wrote[cells], lanes)
        self._report(
            number, "read of", lanes, ("what another warp wrote without a barrier", across),
            ("what another thread of the warp wrote without a bar.warp.sync", within),
            ("the destination of a copy under way", self.flight[cells] != 0),
        )  # fmt: skip
        warp = self.machine.thread_of[lanes][:, None] >> 5
        stamp = (self.time << THREAD_BITS | self.machine.thread_of[lanes])[:, None]
        before = self.read[cells]
        several = ((before & THREADS) >> 5 != warp) & (before > self.program_sync[lanes][:, None])
        self.read[cells] = stamp
        several |= (self.read[cells] & THREADS) >> 5 != warp  # another warp in this same instruction
        self.many[cells[several]] = self.time << THREAD_BITS

    def check_write(self, number: int, lanes: Array, cells: Array, what: str = "write over") -> None:
        wrote, wrote_within = self._conflict(self.wrote[cells], lanes)
        read, read_within = self._conflict(self.read[cells], lanes)
        read |= self.many[cells] > self.program_sync[lanes][:, None]
        self._report(
            number, what, lanes, ("what another warp wrote without a barrier", wrote),
            ("what another warp read without a barrier", read),
            ("what another thread of the warp wrote or read without a bar.warp.sync", wrote_within | read_within),
            ("the destination of a copy under way", self.flight[cells] != 0),
            ("what a matrix product under way reads", self.held[cells] != 0),
        )  # fmt: skip

    def note_write(self, lanes: Array, cells: Array, copied: bool = False) -> None:
        self.copied[cells] = copied
        self.wrote[cells] = (self.time << THREAD_BITS | self.machine.thread_of[lanes])[:, None]

    def load(self, number: int, lanes: Array, at: Array, width: int, count: int) -> Array:
        places = self.places(number, lanes, at, width * count)
        self.note_read(number, lanes, self.cells(places, width * count))
        return self.bytes.view(f"u{width}")[places[:, None] // width + np.arange(count)]

    def store(self, number: int, lanes: Array, at: Array, values: Array) -> None:
        width, count = values.dtype.itemsize, values.shape[1]
        places = self.places(number, lanes, at, width * count)
        cells = self.cells(places, width * count)
        self.check_write(number, lanes, cells)
        self.note_write(lanes, cells)
        memory, index = self.bytes.view(f"u{width}"), places[:, None] // width + np.arange(count)
        memory[index] = values
        if (different := memory[index] != values).any():
            self._report(number, "write", lanes, ("of several values to one place at once", different))


class Copies:
    """cp.async: groups are counted for every thread; data arrives at the wait."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.lanes, np.int64)
        self.under_way: list[tuple[int, Array, Array, Array, Array]] = []  # instruction, lanes, places, data, group

    def start(self, number: int, to: Array, at: Array, size: int, given: Array, where: Array | None) -> None:
        machine = self.machine
        lanes = machine.active(where)
        if not len(lanes):
            return
        shared = machine.shared
        places = shared.places(number, lanes, machine.spread(to)[lanes], size)
        data = np.zeros((len(lanes), size // 4), np.uint32)
        source, given = machine.spread(at)[lanes], machine.spread(given)[lanes]
        full = given == size
        if (given[~full] != 0).any():
            raise UnknownInstruction(f"{machine.where(number)}: a copy of a part of {size} bytes")
        if full.any():
            data[full] = machine.global_load(number, lanes[full], source[full], size)
        cells = shared.cells(places, size)
        shared.check_write(number, lanes, cells, "copy over")
        shared.flight[cells] = number + 1
        self.under_way.append((number, lanes, places, data, self.committed[lanes].copy()))

    def commit(self, where: Array | None) -> None:
        self.committed[self.machine.active(where)] += 1

    def wait(self, number: int, left: int, where: Array | None) -> None:
        """Until all groups but the ``left`` latest have arrived."""
        waiting = np.zeros(self.machine.lanes, bool)
        waiting[self.machine.active(where)] = True
        shared, rest = self.machine.shared, []
        for copy, lanes, places, data, group in self.under_way:
            done = waiting[lanes] & (group < self.committed[lanes] - left)
            if done.any():
                width = 4 * data.shape[1]
                cells = shared.cells(places[done], width)
                shared.flight[cells] = 0
                shared.note_write(lanes[done], cells, copied=True)
                shared.bytes.view(np.uint32)[places[done][:, None] // 4 + np.arange(data.shape[1])] = data[done]
            if not done.all():
                rest.append((copy, lanes[~done], places[~done], data[~done], group[~done]))
        self.under_way = rest
