"""The ring in plain Python: the specification of `ring.pyx`. Format: docs/formats/ring.md.

Good within one process only: Python has no fence, so between processes a consumer could sleep beside a full ring.
"""

from __future__ import annotations

import struct

from shardserver.errors import CorruptionError

MAGIC = b"SSRING01"
HEADER_BYTES, SLOT_BYTES, INLINE_BYTES = 256, 64, 40
_HEAD = struct.Struct("<8sI")
_U64, _U32 = struct.Struct("<Q"), struct.Struct("<I")
_SLOT = struct.Struct("<HHIQQ40s")
_TAIL, _HEAD_AT, _PARKED = 64, 128, 192

# kind, flags, length, request id, position in the sender's arena, inline bytes (40, zero-padded)
Slot = tuple[int, int, int, int, int, bytes]


def ring_bytes(slots: int) -> int:
    """Size of a ring's memory. Raises ValueError: slots is no power of two from 2 on."""
    if slots < 2 or slots & (slots - 1):
        raise ValueError(f"a ring has a power of two of slots, not {slots}")
    return HEADER_BYTES + SLOT_BYTES * slots


def make_ring(memory: memoryview, slots: int) -> None:
    """Write the header into zeroed memory of ring_bytes(slots)."""
    if len(memory) < ring_bytes(slots):
        raise ValueError(f"{len(memory)} bytes for {slots} slots")
    _HEAD.pack_into(memory, 0, MAGIC, slots)


def read_slots(memory: memoryview) -> int:
    """The number of slots of a ring. Raises CorruptionError when there is none."""
    magic, slots = _HEAD.unpack_from(memory) if len(memory) >= HEADER_BYTES else (b"", 0)
    if magic != MAGIC or slots < 2 or slots & (slots - 1) or len(memory) < HEADER_BYTES + SLOT_BYTES * slots:
        raise CorruptionError("ring", 0, "a ring of version 1")
    return int(slots)


class _End:
    """What both ends share. A view of our own, so that the memory stays mapped when the caller releases his."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self.slots = memoryview(memory), read_slots(memory)

    def _load(self, position: int) -> int:
        return int(_U64.unpack_from(self._memory, position)[0])

    def _in_use(self, head: int, tail: int) -> int:
        if not 0 <= tail - head <= self.slots:
            raise CorruptionError("ring", _TAIL, f"a tail at most {self.slots} slots above {head}, found {tail}")
        return tail - head

    def _exchange_parked(self, value: int) -> int:
        former = int(_U32.unpack_from(self._memory, _PARKED)[0])
        _U32.pack_into(self._memory, _PARKED, value)
        return former


class Producer(_End):
    """The one writer of a ring's slots and tail. What is pushed is seen by nobody before `publish`."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self._tail = self._load(_TAIL)

    def free_slots(self) -> int:
        return self.slots - self._in_use(self._load(_HEAD_AT), self._tail)

    def try_push(
        self, kind: int, flags: int, length: int, request: int, position: int, inline: bytes, is_request: bool
    ) -> bool:
        """False: full, for a request already when half of the slots are in use. Raises ValueError: inline too long."""
        if len(inline) > INLINE_BYTES:
            raise ValueError(f"{len(inline)} inline bytes, room for {INLINE_BYTES}")
        if self.free_slots() <= (self.slots // 2 if is_request else 0):
            return False
        place = HEADER_BYTES + SLOT_BYTES * (self._tail & (self.slots - 1))
        _SLOT.pack_into(self._memory, place, kind, flags, length, request, position, inline)
        self._tail += 1
        return True

    def publish(self) -> bool:
        """Show what was pushed. True: the consumer was parked, and its doorbell has to be rung."""
        _U64.pack_into(self._memory, _TAIL, self._tail)
        return bool(_U32.unpack_from(self._memory, _PARKED)[0]) and self._exchange_parked(0) == 1


class Consumer(_End):
    """The one writer of a ring's head."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self._head = self._load(_HEAD_AT)

    def waiting(self) -> int:
        return self._in_use(self._head, self._load(_TAIL))

    def take(self, limit: int) -> list[Slot]:
        """At most `limit` slots, in order; the producer may use theirs again at once."""
        taken = []
        for _ in range(min(limit, self.waiting())):
            place = HEADER_BYTES + SLOT_BYTES * (self._head & (self.slots - 1))
            taken.append(_SLOT.unpack_from(self._memory, place))
            self._head += 1
        _U64.pack_into(self._memory, _HEAD_AT, self._head)
        return taken

    def try_park(self) -> bool:
        """True: the ring is empty, and a publish from now on says that the doorbell has to be rung."""
        self._exchange_parked(1)
        if self.waiting():
            self._exchange_parked(0)
            return False
        return True

    def unpark(self) -> None:
        """Awake: no doorbell until the next try_park."""
        self._exchange_parked(0)
