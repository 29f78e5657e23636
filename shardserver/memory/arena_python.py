"""The arena in plain Python: the specification of `arena.pyx`. Layout and ownership: docs/formats/ring.md, "Arena".

Strategy: binary buddies of 256 bytes and up, trimmed. A request takes the lowest free block of the smallest order that
holds it, and what it does not need of that block is given back at once as smaller buddies, so at most an eighth of
a request of 2 KiB and more is lost to rounding. What is free is known outside of the memory, so nobody can damage it
by writing into a block. Both implementations choose the same positions.

Rejected: power-of-two blocks untrimmed (a third of the arena lost on average), free lists inside the free
blocks (a peer's or our own stray write would break the allocator).

A block lives as long as anybody looks at it, so its memory is never written by two. Here that is a ctypes array.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shardserver.errors import ArenaFullError, CorruptionError

UNIT_BYTES, PAGE_BYTES = 256, 4096
MAX_ARENA_BYTES = 64 << 30
# A block's length is a multiple of this part of the power of two at or below it.
PARTS_OF_POWER = 8


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """bytes: for blocks, without the board. used_bytes: with what was rounded up. largest_free_bytes: fits at once."""

    bytes: int
    used_bytes: int
    blocks: int
    largest_free_bytes: int


def check_arena(size: int, first: int) -> int:
    """The units of an arena of `size` bytes whose first `first` are the board. Raises ValueError."""
    if size % PAGE_BYTES or first % PAGE_BYTES or not 0 <= first < size <= MAX_ARENA_BYTES:
        raise ValueError(f"an arena of {size} bytes from {first} on: pages of {PAGE_BYTES}, at most {MAX_ARENA_BYTES}")
    return (size - first) // UNIT_BYTES


def units_of(size: int) -> int:
    """How many units a block of `size` bytes takes."""
    step = max(UNIT_BYTES, (1 << size.bit_length() - 1) // PARTS_OF_POWER)
    return -(-size // step) * step // UNIT_BYTES


class Buddies:
    """Which units are free. A block of order k has 2^k units and begins at a multiple of as many."""

    def __init__(self, units: int) -> None:
        self._counts = [units >> order for order in range(units.bit_length())]
        self.free: list[set[int]] = [set() for _ in self._counts]
        self.give_back(0, units)

    def take(self, units: int) -> int:
        """The first of `units` adjacent units; -1: there is no such block."""
        order = (units - 1).bit_length()
        found = next((k for k in range(order, len(self.free)) if self.free[k]), None)
        if found is None:
            return -1
        number = min(self.free[found])
        self.free[found].remove(number)
        unit = number << found
        self._trim(unit + units, unit + (1 << found))
        return unit

    def _trim(self, position: int, end: int) -> None:
        """Give back [position, end), where end is that of the block that position lies in: nothing to join with."""
        while position < end:
            order = (position & -position).bit_length() - 1
            self.free[order].add(position >> order)
            position += 1 << order

    def give_back(self, position: int, units: int) -> None:
        """Free what `take` gave, in its power-of-two pieces."""
        while units:
            order = units.bit_length() - 1
            self._join(order, position >> order)
            position, units = position + (1 << order), units - (1 << order)

    def _join(self, order: int, number: int) -> None:
        while number ^ 1 < self._counts[order] and number ^ 1 in self.free[order]:
            self.free[order].remove(number ^ 1)
            order, number = order + 1, number >> 1
        self.free[order].add(number)

    def largest(self) -> int:
        """Units of the largest free block."""
        return max((1 << order for order, free in enumerate(self.free) if free), default=0)


class _View(ctypes.Structure):
    """Py_buffer of CPython's C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_char * 256),
    )


def _address_of(buffer: Any) -> tuple[int, int]:
    """(address, length) of a contiguous buffer, also of a read-only one."""
    view = _View()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    found = view.buf or 0, view.len
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return found


class _Bytes:
    """What an array of bytes has beside them. A subclass, as only that can carry attributes and weak references."""

    position: int
    room_bytes: int


@lru_cache
def _array_type(size: int) -> Any:
    return type("Block", (_Bytes, ctypes.c_ubyte * size), {})


class Arena:
    """One owner allocates in it; peers map it read-only. first: bytes [0, first) are the board, never allocated."""

    def __init__(self, memory: memoryview | mmap.mmap, first: int = PAGE_BYTES) -> None:
        self._memory = memoryview(memory)
        self._first, self._bytes = first, len(self._memory)
        self._buddies = Buddies(check_arena(self._bytes, first))
        self._used_units = self._blocks = 0

    @property
    def used_bytes(self) -> int:
        return self._used_units * UNIT_BYTES

    @property
    def bytes(self) -> int:
        return self._bytes - self._first

    def allocate(self, size: int) -> Any:
        """A writable block of exactly `size` bytes, not zeroed. From 4096 bytes on it begins at a multiple of 4096.

        Raises ArenaFullError; ValueError: size below 1.
        """
        if size < 1:
            raise ValueError(f"a block of {size} bytes")
        units = units_of(size)
        unit = self._buddies.take(units)
        if unit < 0:
            raise ArenaFullError(f"no room for {size} bytes in the arena, {self.used_bytes} of {self.bytes} used")
        block = _array_type(size).from_buffer(self._memory, self._first + unit * UNIT_BYTES)
        block.position = self._first + unit * UNIT_BYTES
        block.room_bytes = units * UNIT_BYTES
        self._used_units += units
        self._blocks += 1
        weakref.finalize(block, self._give_back, unit, units).atexit = False
        return block

    def _give_back(self, unit: int, units: int) -> None:
        self._buddies.give_back(unit, units)
        self._used_units -= units
        self._blocks -= 1

    def copy(self, data: Any) -> Any:
        """A block with the bytes of a contiguous buffer. Raises as allocate; BufferError: not contiguous."""
        source = memoryview(data)
        if not source.c_contiguous:
            raise BufferError("a buffer with gaps")
        source = source.cast("B")
        block = self.allocate(len(source))
        memoryview(block).cast("B")[:] = source
        return block

    def position_of(self, buffer: Any) -> int:
        """Where a contiguous buffer lies in the arena; -1: elsewhere. Raises BufferError: not contiguous."""
        own, _ = _address_of(self._memory)
        address, length = _address_of(buffer)
        return address - own if own <= address <= own + self._bytes - length else -1

    def statistics(self) -> ArenaStatistics:
        return ArenaStatistics(self.bytes, self.used_bytes, self._blocks, self._buddies.largest() * UNIT_BYTES)


def padded(buffer: Any) -> memoryview | None:
    """A block's bytes and zeros up to a multiple of 4096, as an O_DIRECT write takes them, without a copy.

    None: it is no block, or none that begins at a multiple of 4096 and has room for the zeros. From 32 KiB on all have.
    """
    if not isinstance(buffer, _Bytes):
        return None
    address, length = _address_of(buffer)
    size = -(-length // PAGE_BYTES) * PAGE_BYTES
    if buffer.position % PAGE_BYTES or size > buffer.room_bytes:
        return None
    ctypes.memset(address + length, 0, size - length)
    whole = _array_type(size).from_address(address)
    whole.block = buffer
    return memoryview(whole).cast("B").toreadonly()


def check_slice(memory_bytes: int, position: int, length: int) -> None:
    """A peer told us where to read: nothing outside of its arena. Raises CorruptionError."""
    if not (0 <= position <= memory_bytes and 0 <= length <= memory_bytes - position):
        raise CorruptionError("arena", position, f"{length} bytes within {memory_bytes}")


def LentBuffer(memory: memoryview | mmap.mmap, position: int, length: int, loan: object) -> memoryview:
    """A read-only view of a slice of a peer's arena; `loan` is held until the last view of it is gone.

    Raises CorruptionError: the slice is not within memory.
    """
    view = memoryview(memory)
    check_slice(len(view), position, length)
    lent = _array_type(length).from_address(_address_of(view)[0] + position)
    lent.memory, lent.loan = view, loan
    return memoryview(lent).cast("B").toreadonly()
