"""The board: what a shard shows to its peers and its supervisor, in the first page of its arena.

Format: docs/formats/ring.md, "Board". Each field is an aligned u64 that the owner alone stores, in one store on x86-64
and AArch64, so that a reader sees an old or a new value and never half of one. Fields are not ordered among each other.
"""

from __future__ import annotations

import mmap

BOARD_BYTES = 4096
MAX_SHARDS = 64
_BEAT, _CONNECTIONS, _SEGMENTS_BYTES, _OLDEST_TIMESTAMP, _SYNC_FAULTS = 0, 8, 9, 10, 11  # in words of 8 bytes
_HANDED, _RECEIVED = 64, 128


class Board:
    """The owner sets, others read; setting on memory that was mapped read-only raises TypeError."""

    def __init__(self, memory: memoryview | mmap.mmap) -> None:
        self._words = memoryview(memory)[:BOARD_BYTES].cast("Q")
        # Index: a shard. Connections that the owner has handed to it, and received from it, so far.
        self.handed = self._words[_HANDED : _HANDED + MAX_SHARDS]
        self.received = self._words[_RECEIVED : _RECEIVED + MAX_SHARDS]

    @property
    def beats(self) -> int:
        """Grows while the owner's loop runs."""
        return self._words[_BEAT]

    def beat(self) -> None:
        self._words[_BEAT] += 1

    @property
    def connections(self) -> int:
        return self._words[_CONNECTIONS]

    @connections.setter
    def connections(self, count: int) -> None:
        self._words[_CONNECTIONS] = count

    @property
    def segments_bytes(self) -> int:
        return self._words[_SEGMENTS_BYTES]

    @segments_bytes.setter
    def segments_bytes(self, size: int) -> None:
        self._words[_SEGMENTS_BYTES] = size

    @property
    def oldest_timestamp(self) -> int:
        """Microseconds since the epoch; 0: the owner has no segment that may go."""
        return self._words[_OLDEST_TIMESTAMP]

    @oldest_timestamp.setter
    def oldest_timestamp(self, moment_us: int) -> None:
        self._words[_OLDEST_TIMESTAMP] = moment_us

    @property
    def sync_faults(self) -> int:
        """Synced writes of the owner that have failed."""
        return self._words[_SYNC_FAULTS]

    @sync_faults.setter
    def sync_faults(self, count: int) -> None:
        self._words[_SYNC_FAULTS] = count

    def release(self) -> None:
        """Let go of the memory, so that its map can be closed."""
        for view in (self.handed, self.received, self._words):
            view.release()
