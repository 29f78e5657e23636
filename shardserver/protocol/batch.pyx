# cython: language_level=3
"""Batches in wire layout: verify, stamp, check what is stored, slice. Format: messages.md 1-2.

Every read of an untrusted length goes through `frame_end`, which proves that the frame lies in the buffer.
The same in plain Python, to read and to compare with: batch_python.py.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from shardserver.protocol.little_endian cimport read_u32, read_u64, write_u32, write_u64
from shardserver.protocol.wide_xxh3 cimport has_wide_xxh3, wide_xxh3

from collections import namedtuple

cdef extern from "xxhash.h" nogil:
    ctypedef struct XXH3_state_t:
        pass
    uint64_t XXH3_64bits(const void *data, size_t length)
    void XXH3_INITSTATE(XXH3_state_t *state)
    int XXH3_64bits_reset(XXH3_state_t *state)
    int XXH3_64bits_update(XXH3_state_t *state, const void *data, size_t length)
    uint64_t XXH3_64bits_digest(const XXH3_state_t *state)

cdef extern from *:
    """
    static inline void batch_prefetch(const uint8_t *data, size_t position) { __builtin_prefetch(data + position); }
    """
    void batch_prefetch(const uint8_t *data, size_t position) noexcept nogil

DEF HEADER = 256
DEF FRAME = 48
DEF GATHERED = 64
DEF AHEAD = 8
DEF NARROW = 240  # up to here XXH3 has no use for vectors
DEF BAD_STRUCTURE = 3
DEF BAD_MESSAGE = 4027
DEF BAD_BATCH = 4039

BATCH_HEADER_BYTES = HEADER
FRAME_HEADER_BYTES = FRAME

BatchHeader = namedtuple(
    "BatchHeader",
    "partition_id base_offset base_timestamp origin_timestamp batch_length batch_checksum message_count",
)

cdef const uint8_t[204] ZEROS
cdef bint HAS_WIDE = has_wide_xxh3()


cdef uint64_t xxh3(const uint8_t *data, size_t length) noexcept nogil:
    return wide_xxh3(data, length) if HAS_WIDE and length > NARROW else XXH3_64bits(data, length)


cdef inline size_t frame_end(const uint8_t *data, size_t position, size_t end) noexcept nogil:
    """Where the frame at position ends; 0 when it does not lie in [position, end)."""
    cdef uint64_t length
    if end - position < FRAME:
        return 0
    length = <uint64_t>FRAME + read_u32(data + position + 32) + read_u32(data + position + 36)
    if length > end - position:
        return 0
    return position + length


cdef struct BatchChecksum:  # under way; the frames' checksums are gathered, as each update costs more than 8 bytes do
    XXH3_state_t state
    uint64_t gathered[GATHERED]
    size_t count


cdef inline void begin_checksum(BatchChecksum *sums, const uint8_t *data) noexcept nogil:
    """Over header 0..40 and 48..52; each frame's stored checksum follows."""
    XXH3_INITSTATE(&sums.state)
    XXH3_64bits_reset(&sums.state)
    XXH3_64bits_update(&sums.state, data, 40)
    XXH3_64bits_update(&sums.state, data + 48, 4)
    sums.count = 0


cdef inline void add_checksum(BatchChecksum *sums, uint64_t frame) noexcept nogil:
    sums.gathered[sums.count] = frame
    sums.count += 1
    if sums.count == GATHERED:
        XXH3_64bits_update(&sums.state, sums.gathered, GATHERED * 8)
        sums.count = 0


cdef inline uint64_t end_checksum(BatchChecksum *sums) noexcept nogil:
    XXH3_64bits_update(&sums.state, sums.gathered, sums.count * 8)
    return XXH3_64bits_digest(&sums.state)


cdef uint64_t batch_checksum(const uint8_t *data, size_t end) noexcept nogil:
    """Up to the first frame that does not lie in data."""
    cdef BatchChecksum sums
    cdef size_t position = HEADER, stop
    begin_checksum(&sums, data)
    while position < end:
        stop = frame_end(data, position, end)
        if stop == 0:
            break
        # A frame says where the next one is, so each would wait for memory in turn: frames are often of one size.
        batch_prefetch(data, stop + AHEAD * (stop - position))
        add_checksum(&sums, read_u64(data + position))
        position = stop
    return end_checksum(&sums)


cdef int walk(const uint8_t *data, size_t end, uint32_t count, BatchChecksum *sums) noexcept nogil:
    """Structure and message checksums of `count` frames that fill [HEADER, end), with deltas 0, 1, 2 …

    sums: begun; has all of them afterwards, unless the structure is bad.
    """
    cdef size_t position = HEADER, stop
    cdef uint32_t index = 0
    cdef int code = 0
    cdef uint64_t stored
    while position < end:
        stop = frame_end(data, position, end)
        if stop == 0 or index == count or read_u64(data + position + 40) != 0:
            return BAD_STRUCTURE
        if read_u32(data + position + 24) != index:
            return BAD_STRUCTURE
        stored = read_u64(data + position)
        add_checksum(sums, stored)
        if code == 0 and xxh3(data + position + 8, stop - position - 8) != stored:
            code = BAD_MESSAGE
        position = stop
        index += 1
    return code if index == count else BAD_STRUCTURE


cdef int verify(const uint8_t *data, size_t length, uint64_t count) noexcept nogil:
    cdef int code
    cdef BatchChecksum sums
    if length < HEADER or read_u64(data + 32) != length or read_u32(data + 48) != count or count == 0:
        return BAD_STRUCTURE
    if memcmp(data + 52, ZEROS, 204) != 0:
        return BAD_STRUCTURE
    begin_checksum(&sums, data)
    code = walk(data, length, <uint32_t>count, &sums)
    if code == 0 and end_checksum(&sums) != read_u64(data + 40):
        return BAD_BATCH
    return code


def verify_batch(const uint8_t[::1] batch not None, uint64_t count):
    """Check a batch from a producer (structure, message checksums, batch checksum).

    Returns: 0, or the code to answer: 3, 4027 or 4039. Never raises on the bytes' content.
    """
    cdef int code
    if batch.shape[0] < HEADER:
        return BAD_STRUCTURE
    with nogil:
        code = verify(&batch[0], batch.shape[0], count)
    return code


cdef void stamp(
    uint8_t *data, size_t length, uint64_t partition_id, uint64_t base_offset, uint64_t base_timestamp
) noexcept nogil:
    """As stamp_batch; length is at least 256."""
    write_u64(data, partition_id)
    write_u64(data + 8, base_offset)
    write_u64(data + 16, base_timestamp)
    write_u64(data + 40, batch_checksum(data, length))


def stamp_batch(uint8_t[::1] batch not None, uint64_t partition_id, uint64_t base_offset, uint64_t base_timestamp):
    """Put the server's three fields into the header of a verified batch, in place, and its new checksum.

    Raises ValueError when there are fewer than 256 bytes.
    """
    if batch.shape[0] < HEADER:
        raise ValueError(f"a batch header of {HEADER} bytes, got {batch.shape[0]}")
    stamp(&batch[0], batch.shape[0], partition_id, base_offset, base_timestamp)


def check_stored_batch(const uint8_t[::1] view not None, uint64_t limit):
    """Length of the valid stored batch at view[0] (all checksums good), at most `limit`; 0 when there is none."""
    cdef uint64_t length
    cdef int code
    if view.shape[0] < HEADER:
        return 0
    length = read_u64(&view[32])
    if length < HEADER or length > limit or length > <uint64_t>view.shape[0]:
        return 0
    with nogil:
        code = verify(&view[0], length, read_u32(&view[48]))
    return length if code == 0 else 0


def damaged_batch_extent(const uint8_t[::1] view not None):
    """Length of the batch at view[0] whose header and framing are proved by the batch checksum, whatever its messages
    hold; 0 when they are not. For stepping over a batch that check_stored_batch refuses.
    """
    cdef const uint8_t *data
    cdef uint64_t length
    cdef int code
    cdef BatchChecksum sums
    if view.shape[0] < HEADER:
        return 0
    data = &view[0]
    length = read_u64(data + 32)
    if length < HEADER or length > <uint64_t>view.shape[0] or memcmp(data + 52, ZEROS, 204) != 0:
        return 0
    if read_u32(data + 48) == 0:  # it would cover no offset, and whoever steps over it not move
        return 0
    with nogil:
        begin_checksum(&sums, data)
        code = walk(data, length, read_u32(data + 48), &sums)
        if code == 0 or code == BAD_MESSAGE:
            code = 0 if end_checksum(&sums) == read_u64(data + 40) else BAD_BATCH
    return length if code == 0 else 0


def read_batch_header(const uint8_t[::1] view not None):
    """The header's fields. Raises ValueError when there are fewer than 256 bytes."""
    if view.shape[0] < HEADER:
        raise ValueError(f"a batch header of {HEADER} bytes, got {view.shape[0]}")
    return BatchHeader(
        read_u64(&view[0]), read_u64(&view[8]), read_u64(&view[16]), read_u64(&view[24]),
        read_u64(&view[32]), read_u64(&view[40]), read_u32(&view[48]),
    )


def slice_batch(const uint8_t[::1] batch not None, uint32_t first_delta, uint32_t last_delta):
    """A copy of a valid batch with its messages first_delta..last_delta only, header rewritten (messages.md 2.2).

    Raises ValueError when there are fewer than 256 bytes, or a frame reaches past the batch.
    """
    cdef const uint8_t *data
    cdef size_t position = HEADER, end = batch.shape[0], start = 0, stop = 0, following
    cdef uint32_t delta, count = 0
    cdef uint8_t *out
    if batch.shape[0] < HEADER:
        raise ValueError(f"a batch header of {HEADER} bytes, got {batch.shape[0]}")
    data = &batch[0]
    while position < end:
        following = frame_end(data, position, end)
        if following == 0:
            raise ValueError("a frame reaches past its batch")
        delta = read_u32(data + position + 24)
        if first_delta <= delta <= last_delta:
            if count == 0:
                start = position
            count += 1
            stop = following
        position = following
    result = PyBytes_FromStringAndSize(NULL, HEADER + (stop - start))
    out = <uint8_t *>PyBytes_AS_STRING(result)
    memcpy(out, data, HEADER)
    memcpy(out + HEADER, data + start, stop - start)
    write_u64(out + 32, HEADER + (stop - start))
    write_u32(out + 48, count)
    write_u64(out + 40, batch_checksum(out, HEADER + (stop - start)))
    return result
