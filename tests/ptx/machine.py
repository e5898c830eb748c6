"""Programs of one launch, side by side: registers, control flow, barriers, and what the threads of a warp share."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from . import matrix
from .arithmetic import Array
from .instructions import UnknownInstruction
from .memory import AccessError, Global, HazardError
from .shared import Copies, Shared
from .translate import Program
from .warpgroup import Warpgroups

#: What registers hold before they are written: NaN in every format, and no address.
POISON = {1: False, 8: 0xFF, 16: 0xFFFF, 32: 0x7FC0DEAD, 64: 0x7FF8DEADDEADDEAD}


class BarrierError(Exception):
    """Some threads of a program (or of a warp) wait for the others, which are elsewhere: a GPU would hang."""


class Machine:
    def __init__(
        self,
        program: Program,
        memory: Global,
        parameters: list[Array],
        grid: tuple[int, int, int],
        places: list[tuple[int, int, int]],
        shared: int,
        hazards: dict[str, None],
    ) -> None:
        self.code, self.memory, self.parameters, self.hazards = program, memory, parameters, hazards
        self.threads, self.count = program.kernel.threads, len(places)
        self.lanes = self.threads * self.count
        everyone = np.arange(self.lanes)
        self.everyone = everyone
        self.thread_of, self.program_of = everyone % self.threads, everyone // self.threads
        self.thread, self.lane = self.thread_of.astype(np.uint32), (everyone % 32).astype(np.uint32)
        self.places = places
        columns = np.array(places, np.uint32).reshape(-1, 3).T
        self.program = {axis: np.repeat(column, self.threads) for axis, column in zip("xyz", columns, strict=True)}
        self.programs = {axis: np.array([n], np.uint32) for axis, n in zip("xyz", grid, strict=True)}
        self.alive = np.ones(self.lanes, bool)
        self.shared = Shared(self, shared, program.granule)
        self.copies = Copies(self)
        self.warpgroups = Warpgroups(self)

    # Control

    def run(self) -> None:
        registers: list[Any] = [
            np.array([POISON[bits]], dtype=bool if bits == 1 else f"u{bits // 8}")
            for bits in self.code.kernel.registers.values()
        ]
        waiting: dict[int, Array | None] = {0: None}  # block -> who waits there; None: all
        while waiting:
            block = min(waiting)
            mask = waiting.pop(block)
            code = self.code.whole if mask is None else self.code.partial
            code[block](self, registers, mask)
            end = self.code.ends[block]
            if end.guard is None:
                self._go(waiting, end.taken, mask)
                continue
            taken = registers[end.guard] != end.negated
            if mask is None and taken.all():
                self._go(waiting, end.taken, None)
            elif mask is None and not taken.any():
                self._go(waiting, end.other, None)
            else:
                here = self.spread(taken) & (True if mask is None else mask)
                self._go(waiting, end.taken, here)
                self._go(waiting, end.other, ~here if mask is None else mask & ~here)
        for number, *_ in self.copies.under_way:
            self.hazard(number, "copy that nothing waits for", 0)
        for number, *_ in self.warpgroups.under_way:
            self.hazard(number, "matrix product that nothing waits for", 0)

    def _go(self, waiting: dict[int, Array | None], block: int | None, mask: Array | None) -> None:
        if mask is not None and not mask.any():
            return
        if block is None:
            self.alive[self.active(mask)] = False
            return
        if block in waiting and mask is not None:
            mask = mask | waiting[block]
        waiting[block] = None if mask is None or mask.all() else mask

    def active(self, where: Array | None) -> Array:
        """The threads that run an instruction."""
        return self.everyone if where is None else np.flatnonzero(self.spread(where))

    def spread(self, values: Array) -> Array:
        """One element a thread."""
        return values if len(values) == self.lanes else np.broadcast_to(values, self.lanes)

    # Reports

    def where(self, number: int, lane: int | None = None) -> str:
        thread = ""
        if lane is not None:
            thread = f", thread {int(self.thread_of[lane])} of program {self.places[self.program_of[lane]]}"
        return f"{self.code.kernel.name}{thread}, {self.code.kernel.body[number]}"

    def fail(self, kind: type[Exception], number: int, lane: int, text: str) -> NoReturn:
        raise kind(f"{text}; {self.where(number, lane)}")

    def hazard(self, number: int, text: str, lane: int) -> None:
        """Collected, one for each instruction and kind, so that a report shows all there are."""
        if not any(
            known.startswith(f"{text} in ") and str(self.code.kernel.body[number]) in known for known in self.hazards
        ):
            self.hazards[f"{text} in {self.where(number, lane)}"] = None

    # Memory

    def _loaded(self, lanes: Array, values: Array) -> list[Array]:
        """``[threads, count]`` to a full array for each destination."""
        if len(lanes) == self.lanes:
            return list(np.ascontiguousarray(values.T))
        poison = POISON[8 * values.dtype.itemsize]
        result = np.full((values.shape[1], self.lanes), poison, values.dtype)
        result[:, lanes] = values.T
        return list(result)

    def _checked(self, number: int, lanes: Array, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments, "")
        except AccessError as error:
            text, lane = error.args
            self.fail(AccessError, number, int(lanes[lane]), text.removesuffix("; "))
        except HazardError as error:
            self.fail(HazardError, number, int(lanes[0]), str(error).removesuffix("; "))

    def global_load(self, number: int, lanes: Array, at: Array, size: int) -> Array:
        """Returns the words that a copy reads, ``size`` bytes per thread."""
        return self._checked(number, lanes, self.memory.load, at, 4, size // 4)

    def load_global(self, number: int, at: Array, kind: Any, count: int, where: Array | None) -> list[Array]:
        lanes = self.active(where)
        if not len(lanes):
            return self._loaded(lanes, np.empty((0, count), kind))
        width = np.dtype(kind).itemsize
        values = self._checked(number, lanes, self.memory.load, self.spread(at)[lanes], width, count)
        return self._loaded(lanes, values)

    def store_global(self, number: int, at: Array, values: tuple[Array, ...], where: Array | None) -> None:
        lanes = self.active(where)
        if len(lanes):
            stacked = np.stack([self.spread(v)[lanes] for v in values], 1)
            self._checked(number, lanes, self.memory.store, self.spread(at)[lanes], stacked)

    def load_shared(self, number: int, at: Array, kind: Any, count: int, where: Array | None) -> list[Array]:
        lanes = self.active(where)
        if not len(lanes):
            return self._loaded(lanes, np.empty((0, count), kind))
        width = np.dtype(kind).itemsize
        return self._loaded(lanes, self.shared.load(number, lanes, self.spread(at)[lanes], width, count))

    def store_shared(self, number: int, at: Array, values: tuple[Array, ...], where: Array | None) -> None:
        lanes = self.active(where)
        if len(lanes):
            stacked = np.stack([self.spread(v)[lanes] for v in values], 1)
            self.shared.store(number, lanes, self.spread(at)[lanes], stacked)

    # Synchronisation

    def barrier(self, number: int, where: Array | None) -> None:
        lanes = self.active(where)
        if where is not None:
            here = self.spread(where).reshape(self.count, -1)
            there = self.alive.reshape(self.count, -1) & ~here
            if (bad := here.any(1) & there.any(1)).any():
                lane = int(np.flatnonzero(bad)[0]) * self.threads
                self.fail(BarrierError, number, lane, "a barrier that only some threads of the program reach")
        if len(lanes):
            self.shared.advance(lanes, True)

    def together(self, number: int, where: Array | None) -> Array:
        """The threads, having seen that they are whole warps."""
        if where is not None:
            warps = self.spread(where).reshape(-1, 32)
            if (bad := warps.any(1) & ~warps.all(1)).any():
                lane = int(np.flatnonzero(bad)[0]) * 32
                self.fail(BarrierError, number, lane, "an instruction of the whole warp that only some threads reach")
        return self.active(where)

    def sync_warp(self, number: int, where: Array | None) -> None:
        self.shared.advance(self.together(number, where), False)

    # Warps

    def _all_lanes(self, number: int, mask: Array) -> None:
        if (mask != np.uint32(0xFFFFFFFF)).any():
            raise UnknownInstruction(f"a part of a warp: {self.where(number)}")

    def shuffle(
        self, number: int, mode: str, a: Array, b: Array, c: Array, mask: Array, where: Array | None
    ) -> tuple[Array, Array]:
        """The register of another lane, and whether there is one; out of its segment a lane gets its own."""
        self.together(number, where)
        self._all_lanes(number, mask)
        lane, by, bound = self.lane.astype(np.int64), b.astype(np.int64) & 31, c.astype(np.int64)
        segment = (bound >> 8) & 31
        low = lane & segment
        high = low | (bound & 31 & ~segment)
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment)}[mode]
        there = source >= high if mode == "up" else source <= high
        source = np.where(there, source, lane) + (self.everyone - lane)
        return self.spread(a)[source], self.spread(there)

    def reduce(self, number: int, how: str, a: Array, mask: Array, where: Array | None) -> Array:
        self.together(number, where)
        self._all_lanes(number, mask)
        functions = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
        function = functions[how]
        result = function.reduce(self.spread(a).reshape(-1, 32), axis=1, dtype=a.dtype)
        return np.repeat(result, 32)

    def vote(self, number: int, how: str, a: Array, mask: Array, where: Array | None) -> Array:
        self.together(number, where)
        self._all_lanes(number, mask)
        bits = self.spread(a).reshape(-1, 32)
        if how == "ballot":
            return np.repeat((bits.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32), 32)
        return np.repeat({"any": bits.any(1), "all": bits.all(1)}[how], 32)

    def load_matrix(self, number: int, at: Array, count: int, trans: bool, where: Array | None) -> list[Array]:
        """ldmatrix: lanes 8 i .. 8 i + 7 give the rows, of 16 bytes, of matrix i."""
        lanes = self.together(number, where)
        giving = lanes[lanes % 32 < 8 * count]
        rows = self.shared.load(number, giving, self.spread(at)[giving], 4, 4)
        return self._loaded(lanes, matrix.deal(rows.reshape(-1, count, 8, 4), trans))

    def store_matrix(self, number: int, at: Array, values: tuple[Array, ...], trans: bool, where: Array | None) -> None:
        """stmatrix, the inverse of ldmatrix."""
        lanes = self.together(number, where)
        giving = lanes[lanes % 32 < 8 * len(values)]
        words = np.stack([self.spread(v)[lanes] for v in values], 1)
        self.shared.store(number, giving, self.spread(at)[giving], matrix.collect(words, trans))

    def mma(
        self, number: int, shape: str, kind: str, a: list[Array], b: list[Array], c: list[Array], where: Array | None
    ) -> list[Array]:
        lanes = self.together(number, where)
        parts = (np.stack([self.spread(x)[lanes] for x in o], 1).reshape(-1, 32, len(o)) for o in (a, b, c))
        return self._loaded(lanes, matrix.multiply(shape, kind, *parts))
