# cython: language_level=3
"""What the load does to a prebuilt batch before each send, and the hash by which it is found again.

The first message of every batch sent gets an id of its own: the batch's number on its connection (low 8 bytes) and the
connection's number (high 8). Its checksum and the batch's are made new; the other messages stay as they were built. So
no two batches are equal, at the cost of one message's checksum.

The hash of a partition is the sum (modulo 2^64) over its messages of XXH3(stored message checksum, seed = offset). A sum
needs no order of arrival, so acknowledgements can come from any connection; yet a message that is lost, doubled or
at another offset changes it.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shardserver.protocol.little_endian cimport read_u64, write_u64

cdef extern from "xxhash.h" nogil:
    ctypedef struct XXH3_state_t:
        pass
    uint64_t XXH3_64bits(const void *data, size_t length)
    uint64_t XXH3_64bits_withSeed(const void *data, size_t length, uint64_t seed)
    void XXH3_INITSTATE(XXH3_state_t *state)
    int XXH3_64bits_reset(XXH3_state_t *state)
    int XXH3_64bits_update(XXH3_state_t *state, const void *data, size_t length)
    uint64_t XXH3_64bits_digest(const XXH3_state_t *state)

cdef enum:
    BATCH_HEADER = 256
    MESSAGE_HEADER = 48
    FIRST = BATCH_HEADER + MESSAGE_HEADER
    COVERED = 44                # bytes of the batch header in the batch checksum: 0..40 and 48..52
    SMALL_PAYLOAD = 4096        # a first payload up to this is copied with the head, a longer one is shared

cdef struct Batch:
    const uint8_t *data
    size_t length
    size_t head_bytes           # what is copied and stamped; the rest is sent from `data`
    size_t first_payload_bytes
    uint32_t count
    uint64_t payload_bytes      # of all messages
    uint8_t *covered            # what the batch checksum covers: COVERED bytes, then 8 for each message


cdef inline uint64_t first_checksum(const Batch *batch, const uint8_t *head) noexcept nogil:
    cdef XXH3_state_t state
    if batch.head_bytes > FIRST:
        return XXH3_64bits(head + BATCH_HEADER + 8, batch.head_bytes - BATCH_HEADER - 8)
    XXH3_INITSTATE(&state)
    XXH3_64bits_reset(&state)
    XXH3_64bits_update(&state, head + BATCH_HEADER + 8, MESSAGE_HEADER - 8)
    XXH3_64bits_update(&state, batch.data + FIRST, batch.first_payload_bytes)
    return XXH3_64bits_digest(&state)


cdef inline uint64_t stamp(Batch *batch, uint8_t *head, uint64_t connection, uint64_t number) noexcept nogil:
    """Make a sendable copy of the first head_bytes at `head`; gives the first message's checksum."""
    cdef uint64_t checksum
    memcpy(head, batch.data, batch.head_bytes)
    write_u64(head + BATCH_HEADER + 8, number)
    write_u64(head + BATCH_HEADER + 16, connection)
    checksum = first_checksum(batch, head)
    write_u64(head + BATCH_HEADER, checksum)
    write_u64(batch.covered + COVERED, checksum)
    write_u64(head + 40, XXH3_64bits(batch.covered, COVERED + 8 * <size_t>batch.count))
    return checksum


cdef inline uint64_t message_hash(uint64_t checksum, uint64_t offset) noexcept nogil:
    return XXH3_64bits_withSeed(&checksum, 8, offset)


cdef inline uint64_t batch_hash(const Batch *batch, uint64_t checksum, uint64_t base_offset) noexcept nogil:
    """Of a batch whose first message had this checksum, acknowledged at base_offset."""
    cdef uint64_t total = message_hash(checksum, base_offset)
    cdef uint32_t index
    for index in range(1, batch.count):
        total += message_hash(read_u64(batch.covered + COVERED + 8 * <size_t>index), base_offset + index)
    return total
