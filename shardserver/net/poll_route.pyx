"""Polls of a known route that the tail in memory can answer, without Python on their way.

Specification: PartitionReader.try_read and the handler of polls; what is rare (segments, timestamps, a partition that
moves or was set aside, nothing asked for) goes there. Format: messages 4.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shardserver.errors import ShardServerError
from shardserver.protocol.batch import slice_batch

from shardserver.net.output cimport Output
from shardserver.protocol.little_endian cimport read_u32, read_u64, write_u32, write_u64
from shardserver.storage.append_log cimport AppendLog
from shardserver.storage.tail cimport Entry, bytes_of

cdef enum:
    BY_OFFSET = 1
    LAST = 4
    NEXT = 5
    HEAD = 16  # before the batches: partition, current offset, count
    SIZE = 48  # in a reply's header


cdef class PollRoute:
    """Where polls with one key (consumer, topic and partition, as their bytes) are answered, for one metadata revision.

    committed(): the consumer's committed offset, or None. commit(offset): its auto-commit. Both may raise a
    ShardServerError. max_bytes: of the batches in a reply. requests, bytes: answered since they were last asked for.
    Of a member of a group: may_poll() asks its fence each time, note_delivered(offset) tells it what was given.
    """

    def __init__(
        self, AppendLog log not None, committed, commit, uint64_t max_bytes, may_poll=None, note_delivered=None
    ):
        self._log, self._committed, self._commit, self._max_bytes = log, committed, commit, max_bytes
        self._may_poll, self._note_delivered = may_poll, note_delivered
        self.uid = log.uid

    def take_load(self):
        """(requests, bytes) since the last call."""
        taken = (self._requests, self._bytes)
        self._requests = self._bytes = 0
        return taken

    cdef bint try_answer(
        self, const uint8_t* asked, Output output, const uint8_t* header, size_t header_bytes
    ) except -1:
        """Write the whole reply; False: nothing was written, and Python has to answer.

        asked: the last POLL_TAIL bytes of the request. header: the reply's, but for its size.
        """
        cdef uint64_t start = 0, next_offset
        cdef uint32_t count = read_u32(asked + 9)
        if self._log.closed is not None or self._log.set_aside is not None or count == 0 or asked[13] > 1:
            return False
        if self._may_poll is not None and not self._may_poll():
            return False
        try:
            if not self.find_start(asked[0], read_u64(asked + 1), count, &start):
                return False
            next_offset = start
            parts = self.collect(&next_offset, count)
            if self._note_delivered is not None and next_offset > start:
                self._note_delivered(next_offset - 1)
            if asked[13] and next_offset > start:
                self._commit(next_offset - 1)
        except ShardServerError:  # the long way says why
            return False
        self.write(output, header, header_bytes, parts, <uint32_t>(next_offset - start))
        return True

    cdef bint find_start(self, uint8_t strategy, uint64_t value, uint32_t count, uint64_t* start) except -1:
        """False: it is not in memory, or there is more to it."""
        cdef uint64_t high_watermark = self._log.visible_end()
        if strategy == BY_OFFSET:
            start[0] = value
        elif strategy == LAST and high_watermark >= count:
            start[0] = high_watermark - count
        elif strategy == NEXT:
            committed = self._committed()
            if committed is None:
                return False
            start[0] = committed + 1
        else:
            return False
        if start[0] >= high_watermark:
            return strategy != LAST
        return self._log.tail._first < self._log.tail._end and self._log.tail.at_place(self._log.tail._first).base <= start[0]

    cdef list collect(self, uint64_t* next_offset, uint32_t count):
        """Batches, whole or cut, from next_offset on, which is moved behind them. The first is taken whatever its size."""
        cdef uint64_t start = next_offset[0], stop, size = 0
        cdef uint64_t end = min(start + count, self._log.visible_end())
        cdef size_t place = self._log.tail.place_of(start)
        cdef Entry* entry
        cdef list parts = []
        while next_offset[0] < end and place < self._log.tail._end:
            entry = self._log.tail.at_place(place)
            start, stop = next_offset[0], min(entry.base + entry.count, end)
            part = bytes_of(entry)
            if start > entry.base or stop < entry.base + entry.count:
                part = slice_batch(part, start - entry.base, stop - 1 - entry.base)
            size += len(part)
            if parts and size > self._max_bytes:
                break
            parts.append(part)
            self._bytes += len(part)
            next_offset[0] = stop
            place += 1
        return parts

    cdef int write(
        self, Output output, const uint8_t* header, size_t header_bytes, list parts, uint32_t count
    ) except -1:
        cdef uint64_t high_watermark = self._log.visible_end(), size = header_bytes + HEAD
        cdef uint8_t* at
        for part in parts:
            size += len(part)
        at = output.claim(header_bytes + HEAD)
        memcpy(at, header, header_bytes)
        write_u32(at + SIZE, <uint32_t>size)
        write_u32(at + header_bytes, <uint32_t>self._log._partition_id)
        write_u64(at + header_bytes + 4, high_watermark - 1 if high_watermark else 0)
        write_u32(at + header_bytes + 12, count)
        for part in parts:
            output.add(part)
        self._requests += 1
        return 0
