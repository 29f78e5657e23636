# cython: language_level=3
"""Reads a partition back: order, checksums, and the hash that acknowledgements were summed up to (batches.pxd)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.bench.batches cimport (
    BATCH_HEADER, MESSAGE_HEADER, XXH3_64bits, XXH3_64bits_digest, XXH3_64bits_reset, XXH3_64bits_update,
    XXH3_INITSTATE, XXH3_state_t, message_hash,
)
from shardserver.protocol.little_endian cimport read_u32, read_u64


cdef class Readback:
    """State of one partition that is read from its first offset on. fault: the first thing that is wrong, or None."""

    cdef readonly uint64_t next_offset
    cdef readonly uint64_t messages
    cdef readonly uint64_t hash
    cdef readonly object fault
    cdef dict _numbers          # connection -> number of its last batch here

    def __init__(self):
        self._numbers = {}

    def take(self, const uint8_t[::1] batches not None):
        """Take the batches of one poll reply, back to back. Gives the messages taken; after a fault always 0."""
        cdef size_t position = 0, total = batches.shape[0]
        cdef uint64_t before = self.messages, length
        while position < total and self.fault is None:
            if total - position < BATCH_HEADER:
                self.fault = f"offset {self.next_offset}: {total - position} bytes are no batch"
                break
            length = read_u64(&batches[position + 32])
            if length < BATCH_HEADER or length > total - position:
                self.fault = f"offset {self.next_offset}: a batch of {length} bytes in {total - position}"
                break
            self._batch(&batches[position], length)
            position += length
        return self.messages - before

    cdef _batch(self, const uint8_t *data, size_t length):
        cdef XXH3_state_t state
        cdef size_t position = BATCH_HEADER
        cdef uint64_t base = read_u64(data + 8), size, checksum
        cdef uint32_t count = 0
        XXH3_INITSTATE(&state)
        XXH3_64bits_reset(&state)
        XXH3_64bits_update(&state, data, 40)
        XXH3_64bits_update(&state, data + 48, 4)
        while position < length:
            size = 0
            if length - position >= MESSAGE_HEADER:
                size = <uint64_t>MESSAGE_HEADER + read_u32(data + position + 32) + read_u32(data + position + 36)
            if size == 0 or size > length - position:
                self.fault = f"offset {self.next_offset}: a message that reaches past its batch"
                return
            checksum = read_u64(data + position)
            if not self._message(data + position, base, size, checksum):
                return
            XXH3_64bits_update(&state, data + position, 8)
            position += size
            count += 1
        if count != read_u32(data + 48) or XXH3_64bits_digest(&state) != read_u64(data + 40):
            self.fault = f"offset {self.next_offset - count}: the batch's count or checksum is wrong"

    cdef bint _message(self, const uint8_t *data, uint64_t base, size_t size, uint64_t checksum) except -1:
        """False: self.fault says why."""
        cdef uint64_t offset = base + read_u32(data + 24), number = read_u64(data + 8), connection = read_u64(data + 16)
        if offset != self.next_offset:
            self.fault = f"offset {self.next_offset} is due, {offset} came"
        elif XXH3_64bits(data + 8, size - 8) != checksum:
            self.fault = f"offset {offset}: the message's checksum is wrong"
        elif connection and number <= self._numbers.get(connection, 0):
            self.fault = f"offset {offset}: batch {number} of connection {connection} behind its batch {self._numbers[connection]}"
        if self.fault is not None:
            return False
        if connection:
            self._numbers[connection] = number
        self.hash += message_hash(checksum, offset)
        self.messages += 1
        self.next_offset += 1
        return True
