"""The journal write being built: records behind room for the write's header. Format: docs/formats/journal.md.

No twin: journal_format.py has the bytes of a record in plain Python, and its vectors are compared with what stands here.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shardserver.storage import journal_format as fmt

from shardserver.protocol.batch cimport xxh3

cdef enum:
    BLOCK = 4096
    WRITE_HEADER = 128
    RECORD_HEADER = 24
    VERSION = 1


cdef packed struct WriteHeader:
    char magic[8]
    uint16_t version
    uint16_t flags
    uint32_t length
    uint64_t journal_id
    uint64_t nonce
    uint64_t sequence
    uint64_t position
    uint64_t previous_sequence
    uint64_t previous_end
    uint64_t oldest_live
    uint32_t records
    uint32_t records_bytes
    uint8_t zeros[40]
    uint64_t checksum


cdef const char* MAGIC = fmt.WRITE_MAGIC

assert (BLOCK, VERSION) == (fmt.BLOCK_BYTES, fmt.FORMAT_VERSION) and len(fmt.WRITE_MAGIC) == 8
assert (sizeof(WriteHeader), WRITE_HEADER, RECORD_HEADER) == (128, fmt.WRITE_HEADER_BYTES, fmt.RECORD_HEADER_BYTES)


cdef class Staging:
    """memory: aligned for O_DIRECT, as large as the largest write. It may be changed only while no write is in flight."""

    def __init__(self, memory):
        cdef Py_buffer view
        self._memory = memoryview(memory)
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        self._data, self._size = <uint8_t*>view.buf, view.len
        PyBuffer_Release(&view)

    cpdef begin(self, size_t room):
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

    cpdef object seal(
        self,
        uint16_t flags,
        uint64_t journal_id,
        uint64_t nonce,
        uint64_t sequence,
        uint64_t position,
        uint64_t previous_sequence,
        uint64_t previous_end,
        uint64_t oldest_live,
    ):
        """The write's bytes, whole: padded with zeros to a block, header and checksum in place.

        The fields are those of journal_format.WriteHeader; those it has beside them are known here.
        """
        cdef size_t length = (self.used + BLOCK - 1) // BLOCK * BLOCK
        cdef WriteHeader* header = <WriteHeader*>self._data
        if length > self._size:
            raise ValueError(f"a write of {length} bytes, room for {self._size}")
        memset(self._data + self.used, 0, length - self.used)
        memset(header, 0, WRITE_HEADER)
        memcpy(header.magic, MAGIC, 8)
        header.version, header.flags, header.length = VERSION, flags, <uint32_t>length
        header.journal_id, header.nonce, header.sequence, header.position = journal_id, nonce, sequence, position
        header.previous_sequence, header.previous_end = previous_sequence, previous_end
        header.oldest_live = oldest_live
        header.records, header.records_bytes = self.records, <uint32_t>(self.used - WRITE_HEADER)
        header.checksum = xxh3(self._data, length)
        return self._memory[:length]
