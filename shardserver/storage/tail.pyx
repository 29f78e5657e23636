"""What a partition keeps in memory, as an array of structs. Specification: tail_python.py."""

from cpython.buffer cimport PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from shardserver.storage.tail_python import TailEntry

from shardserver.memory.arena cimport Block, part_of
from shardserver.memory.growing cimport freed, grown
from shardserver.memory.prefetch cimport prefetch_bytes

cdef enum:
    DROPPED_AHEAD = 8  # entries: about as long as memory takes to come
    HELD_BYTES = 64


cdef inline uint64_t end_of(const Entry* entry) noexcept nogil:
    return entry.base + entry.count


cdef object bytes_of(const Entry* entry):
    """A buffer of the batch, which keeps it."""
    held = <object>entry.held
    return part_of(<Block>held, entry.data, entry.size) if isinstance(held, Block) else held


cdef view(const Entry* entry):
    return TailEntry(entry.base, entry.count, entry.timestamp, bytes_of(entry), entry.sequence)


cdef class TailTotal:
    """Bytes of all tails of one shard."""


cdef class Tail:
    """Contiguous batches in order of their offsets.

    Their entries are an array, which for ten thousand partitions together is on more pages than the processor knows the
    places of: the newest are in the tail itself, and the array is touched once for some of them.
    """

    def __init__(self, TailTotal total):
        self._total = total

    def __dealloc__(self):
        while self._first < self._end:
            self._end -= 1
            Py_DECREF(<object>self.at_place(self._end).held)
        freed(self._entries, self._room * sizeof(Entry))

    def __len__(self):
        return self._end - self._first

    @property
    def first_offset(self):
        return self.at_place(self._first).base if self._first < self._end else None

    def append(self, entry):
        """A TailEntry."""
        cdef Py_buffer buffer
        cdef Entry* added
        PyObject_GetBuffer(entry.data, &buffer, PyBUF_WRITABLE)
        data, size = <uint8_t*>buffer.buf, buffer.len
        PyBuffer_Release(&buffer)  # the bytes stay where they are: a block is in its arena, and nobody resizes the others
        added = self.add(entry.base_offset, entry.count, entry.timestamp, entry.data, data, size)
        added.sequence = entry.sequence

    cdef Entry* add(
        self, uint64_t base, uint32_t count, uint64_t timestamp, object held, uint8_t* data, size_t size
    ) except NULL:
        """Good until the next change of the tail. held: keeps the bytes."""
        cdef Entry* entry
        if self._end - self._settled == NEWEST:
            self.settle()
        entry = self._newest + (self._end - self._settled)
        entry.base, entry.count, entry.timestamp, entry.sequence = base, count, timestamp, 0
        entry.data, entry.size, entry.held = data, size, <PyObject*>held
        Py_INCREF(held)
        self._end += 1
        self.bytes += size
        if self._total is not None:
            self._total.bytes += size
        return entry

    cdef inline Entry* at_place(self, size_t place) noexcept nogil:
        return self._entries + place if place < self._settled else self._newest + (place - self._settled)

    cdef int settle(self) except -1:
        """All entries are in the array then."""
        if self._settled == self._end:
            return 0
        while self._end > self._room:
            self.make_room()
        memcpy(self._entries + self._settled, self._newest, (self._end - self._settled) * sizeof(Entry))
        self._settled = self._end
        return 0

    cdef int make_room(self) except -1:
        """Close the gap of evicted entries when it is a quarter of them, else grow.

        Each entry is moved about three times in its life; memory is touched for the first time seldom, which costs more.
        """
        cdef size_t room
        cdef void* entries
        if self._first * 4 > self._end:
            if self._first < self._settled:
                memmove(self._entries, self._entries + self._first, (self._settled - self._first) * sizeof(Entry))
            else:
                memmove(self._newest, self.at_place(self._first), (self._end - self._first) * sizeof(Entry))
                self._settled = self._first
            self._settled -= self._first
            self._end -= self._first
            self._first = 0
            return 0
        room = max(2 * self._room, <size_t>4)
        entries = grown(self._entries, self._room * sizeof(Entry), room * sizeof(Entry))
        if entries == NULL:
            raise MemoryError
        self._entries, self._room = <Entry*>entries, room
        return 0

    def leave_total(self):
        """Count in the shard's total no more."""
        if self._total is not None:
            self._total.bytes -= self.bytes
            self._total = None

    cdef size_t place_of(self, uint64_t offset) noexcept nogil:
        """Of the entry that holds `offset`, or else of the first one behind it; `_end`: there is none."""
        cdef size_t low = self._first, high = self._end, middle
        while low < high:
            middle = (low + high) // 2
            if end_of(self.at_place(middle)) <= offset:
                low = middle + 1
            else:
                high = middle
        return low

    def from_offset(self, uint64_t offset):
        """Entries from the one that holds `offset` on, or from the first. To be used up before the tail changes."""
        cdef size_t place = self.place_of(offset)
        while place < self._end:
            yield view(self.at_place(place))
            place += 1

    def at(self, uint64_t offset):
        """The entry that holds `offset`, or the first; None when there is none."""
        cdef size_t place = self.place_of(offset)
        return view(self.at_place(place)) if place < self._end else None

    def bytes_from(self, uint64_t offset):
        """Of all entries that from_offset gives."""
        cdef uint64_t total = 0
        cdef size_t place
        for place in range(self.place_of(offset), self._end):
            total += self.at_place(place).size
        return total

    def cut_from(self, uint64_t offset):
        """Forget entries whose run failed: they were never acknowledged."""
        cdef Entry* last
        while self._first < self._end and self.at_place(self._end - 1).base >= offset:
            self._end -= 1
            last = self.at_place(self._end)
            self._settled = min(self._settled, self._end)
            self.bytes -= last.size
            if self._total is not None:
                self._total.bytes -= last.size
            Py_DECREF(<object>last.held)

    cdef int drop_oldest(self) except -1:
        cdef Entry* oldest = self.at_place(self._first)
        if self._first + DROPPED_AHEAD < self._settled:
            prefetch_bytes(oldest[DROPPED_AHEAD].held, HELD_BYTES)
        self._first += 1
        self.bytes -= oldest.size
        if self._total is not None:
            self._total.bytes -= oldest.size
        Py_DECREF(<object>oldest.held)
        if self._first == self._end:
            self._first = self._settled = self._end = 0
        return 0

    cdef bint has_below(self, uint64_t limit_offset) noexcept nogil:
        """Its oldest entry ends at or before limit_offset."""
        return self._first < self._end and end_of(self.at_place(self._first)) <= limit_offset

    cpdef uint64_t evict_oldest(self, uint64_t limit_offset) except? 0:
        """Drop the oldest entry if it ends at or before limit_offset (it is in a segment); gives the bytes freed."""
        cdef uint64_t freed
        if not self.has_below(limit_offset):
            return 0
        freed = self.at_place(self._first).size
        self.drop_oldest()
        return freed
