# cython: language_level=3
"""What the load keeps: its connections, their slots, its sums. Owned by run_load (load.pyx) while it runs."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shardserver.bench.batches cimport Batch
from shardserver.bench.wire cimport SEEN, iovec

cdef extern from "<stdint.h>" nogil:
    uint64_t NEVER "UINT64_MAX"

cdef enum:
    EMPTY_POLL_PAUSE_NS = 1_000_000

cdef enum Ending:
    FINE
    CLOSED
    SILENT
    BAD_REPLY
    FAILED

cdef struct Slot:
    uint64_t due
    uint64_t checksum           # of the first message
    uint32_t partition
    uint32_t batch
    size_t head_bytes
    const uint8_t *rest
    size_t rest_bytes

cdef struct Link:
    int socket
    bint sends, waits_writable, follow
    uint64_t number
    const uint8_t *frame        # a poll whole, a send up to its batch
    size_t frame_bytes, partition_at, offset_at
    uint32_t first_partition, partitions
    uint64_t *offsets           # polls: the next one of each of its partitions
    # Counters of requests that only grow; begun - answered <= depth.
    uint64_t depth, limit, begun, written, answered
    size_t written_part
    Slot *slots
    uint8_t *heads
    size_t head_room
    uint64_t paused_until
    # The reply under way.
    uint8_t seen[SEEN]
    size_t have, want, skip

cdef struct Tally:
    uint64_t answered, refused, messages, empty, unsent
    uint64_t window_answered, window_messages, window_payload_bytes, window_batch_bytes
    uint64_t first_due, last_answer
    uint32_t first_status
    uint64_t *latencies

cdef struct Load:
    int epoll
    Link *links
    uint32_t count
    Batch *batches
    uint32_t batch_count
    uint32_t messages_per_batch
    uint64_t log_messages
    uint64_t random
    # Clock, ns. interval 0: a closed loop.
    uint64_t start, measure_from, until, drain
    double interval
    uint64_t scheduled, begun, answered, quiet_since
    uint64_t sends_due          # of all links together; NEVER: no end, or none that sends
    bint any_paused, coarse
    uint8_t *received
    iovec *vectors
    # [0]: polls, [1]: sends.
    Tally tallies[2]
    # Of each partition: what was acknowledged.
    uint64_t *acked_messages
    uint64_t *acked_hash
    uint32_t partition_limit
    uint64_t *progress


cdef inline uint32_t draw(Load *load, uint32_t below) noexcept nogil:
    """xorshift64*; the tiny bias of the modulo does not matter here."""
    load.random ^= load.random >> 12
    load.random ^= load.random << 25
    load.random ^= load.random >> 27
    return <uint32_t>((load.random * <uint64_t>2685821657736338717) >> 32) % below


cdef inline uint64_t due_at(Load *load, uint64_t number) noexcept nogil:
    return load.start + <uint64_t>(<double>number * load.interval)
