"""What a poll collects from the tail and from segments."""

from __future__ import annotations

from dataclasses import dataclass

from shardserver.memory.buffers import Buffer
from shardserver.protocol.batch import slice_batch


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Stored batches, whole or sliced, in order of their offsets. last_offset is -1 when there are none."""

    buffers: list[memoryview | bytes | bytearray]
    bytes: int
    count: int
    last_offset: int


class ReadBuilder:
    """Collects batches up to a count of messages, a limit in bytes and the high watermark."""

    def __init__(self, start: int, count: int, max_bytes: int, limit: int) -> None:
        self.next_offset = start
        self._end = min(start + count, limit)
        self._max_bytes = max_bytes
        self._buffers: list[memoryview | bytes | bytearray] = []
        self._bytes = 0
        self._count = 0
        self._last_offset = -1
        self._full = False

    @property
    def wants_more(self) -> bool:
        return not self._full and self.next_offset < self._end

    @property
    def count(self) -> int:
        return self._count

    def add(self, data: Buffer, base_offset: int, count: int) -> None:
        """Take what is wanted of the batch that holds next_offset. The first batch is taken whatever its size."""
        first, last = self.next_offset - base_offset, min(count, self._end - base_offset) - 1
        whole = first <= 0 and last >= count - 1
        part = memoryview(data) if whole else slice_batch(data, first, last)
        if self._buffers and self._bytes + len(part) > self._max_bytes:
            self._full = True
            return
        self._buffers.append(part)
        self._bytes += len(part)
        self._count += last - first + 1
        self._last_offset = base_offset + last
        self.next_offset = base_offset + last + 1

    def skip_to(self, offset: int, limit: int) -> None:
        """Step over damaged offsets; as many messages as before are still wanted, up to the high watermark."""
        self._end = min(self._end + offset - self.next_offset, limit)
        self.next_offset = offset

    def result(self) -> ReadResult:
        return ReadResult(self._buffers, self._bytes, self._count, self._last_offset)
