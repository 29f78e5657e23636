"""The journal write being built: records behind room for the write's header. Format: docs/formats/journal.md.

No twin: journal_format.py has the bytes of a record in plain Python, and its vectors are compared with what stands here.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shardserver.storage.journal_format import RECORD_HEADER_BYTES, WRITE_HEADER_BYTES

cdef enum:
    WRITE_HEADER = 128
    RECORD_HEADER = 24

assert (WRITE_HEADER, RECORD_HEADER) == (WRITE_HEADER_BYTES, RECORD_HEADER_BYTES)


cdef class Staging:
    """memory: aligned for O_DIRECT, as large as the largest write. It may be changed only while no write is in flight."""

    def __init__(self, memory):
        cdef Py_buffer view
        self._memory = memoryview(memory)
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        self._data, self._size = <uint8_t*>view.buf, view.len
        PyBuffer_Release(&view)

    def begin(self, size_t room):
        """Forget what was built; room: bytes of the write, its header included."""
        self._room, self.used, self.records = min(room, self._size), WRITE_HEADER, 0

    cpdef bint fits(self, size_t payload_bytes) noexcept:
        return payload_bytes <= self._room and self.used + RECORD_HEADER + payload_bytes <= self._room

    def add(self, uint8_t kind, uint8_t flags, uint32_t shard, uint64_t uid, uint32_t term, payload):
        """Copy one record in. Raises ValueError: it does not fit."""
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.add_bytes(kind, flags, shard, uid, term, <const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int add_bytes(
        self, uint8_t kind, uint8_t flags, uint32_t shard, uint64_t uid, uint32_t term, const uint8_t* data, size_t size
    ) except -1:
        cdef uint8_t* at = self._data + self.used
        cdef uint32_t length = <uint32_t>size
        cdef uint16_t kept = <uint16_t>shard
        if not self.fits(size):
            raise ValueError(f"a record of {size} bytes behind {self.used} of {self._room}")
        memset(at, 0, RECORD_HEADER)
        at[0], at[1] = kind, flags
        memcpy(at + 2, &kept, 2)
        memcpy(at + 4, &length, 4)
        memcpy(at + 8, &uid, 8)
        memcpy(at + 16, &term, 4)
        memcpy(at + RECORD_HEADER, data, size)
        self.used += RECORD_HEADER + size
        self.records += 1
        return 0

    def finish(self, size_t length):
        """The write's bytes, padded with zeros to length; its header is the caller's."""
        if not self.used <= length <= self._size:
            raise ValueError(f"a write of {length} bytes, {self.used} are used of {self._size}")
        memset(self._data + self.used, 0, length - self.used)
        return self._memory[:length]
