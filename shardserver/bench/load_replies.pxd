# cython: language_level=3
"""The load's replies: parsed as a stream, taken into the sums of their kind and partition."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shardserver.bench.batches cimport BATCH_HEADER, MESSAGE_HEADER, Batch, batch_hash
from shardserver.bench.hdr cimport count_index
from shardserver.bench.load_state cimport (
    BAD_REPLY, CLOSED, EMPTY_POLL_PAUSE_NS, FAILED, FINE, Link, Load, Slot, Tally,
)
from shardserver.bench.wire cimport *
from shardserver.protocol.little_endian cimport read_u32, read_u64


cdef inline int finish_poll(Load *load, Link *link, Slot *slot, uint32_t *count) noexcept nogil:
    if link.want < POLL_HEAD:
        return BAD_REPLY
    count[0] = read_u32(link.seen + AT_POLL_COUNT)
    if link.follow:
        link.offsets[slot.partition - link.first_partition] += count[0]
        if count[0] == 0:
            link.paused_until = load.quiet_since + EMPTY_POLL_PAUSE_NS
            load.any_paused = True
    return FINE


cdef inline int finish_send(Load *load, Link *link, Slot *slot) noexcept nogil:
    """Take the acknowledgement into the partition's sums."""
    cdef Batch *batch = &load.batches[slot.batch]
    if link.want < SEND_REPLY or slot.partition >= load.partition_limit:
        return BAD_REPLY
    load.acked_messages[slot.partition] += batch.count
    load.acked_hash[slot.partition] += batch_hash(batch, slot.checksum, read_u64(link.seen + AT_BASE_OFFSET))
    return FINE


cdef inline void count_window(Load *load, Link *link, Slot *slot, Tally *tally, uint32_t count) noexcept nogil:
    cdef uint64_t size = read_u32(link.seen + AT_SIZE), batches
    tally.window_answered += 1
    tally.window_messages += count
    if link.sends:
        tally.window_payload_bytes += load.batches[slot.batch].payload_bytes
        tally.window_batch_bytes += load.batches[slot.batch].length
    elif count and size > POLL_HEAD:
        batches = (count + load.messages_per_batch - 1) // load.messages_per_batch
        tally.window_batch_bytes += size - POLL_HEAD
        tally.window_payload_bytes += max(
            <int64_t>(size - POLL_HEAD) - <int64_t>(batches * BATCH_HEADER + <uint64_t>count * MESSAGE_HEADER), 0)


cdef inline int finish(Load *load, Link *link, uint64_t now) noexcept nogil:
    """One whole reply has arrived; its first bytes are in `seen`."""
    cdef Slot *slot = &link.slots[link.answered % link.depth]
    cdef Tally *tally = &load.tallies[link.sends]
    cdef uint32_t count = load.messages_per_batch, status = read_u32(link.seen + AT_STATUS)
    cdef int outcome
    if link.seen[AT_COMMAND] != REPLY or read_u64(link.seen + AT_REQUEST_ECHOED) != link.answered + 1:
        return BAD_REPLY
    link.answered += 1
    load.answered += 1
    load.quiet_since = tally.last_answer = now
    tally.answered += 1
    if status != 0:
        tally.refused += 1
        if tally.first_status == 0:
            tally.first_status = status
        return FINE
    outcome = finish_send(load, link, slot) if link.sends else finish_poll(load, link, slot, &count)
    if outcome != FINE:
        return outcome
    tally.empty += count == 0
    tally.messages += count
    load.progress[0] += 1
    load.progress[1] += count
    load.progress[2] += read_u32(link.seen + AT_SIZE) if not link.sends else load.batches[slot.batch].length
    if load.measure_from <= now < load.until:
        count_window(load, link, slot, tally, count)
    if load.measure_from <= slot.due < load.until:
        tally.latencies[count_index(now - slot.due)] += 1
    return FINE


cdef inline int take(Load *load, Link *link, const uint8_t *data, size_t length, uint64_t now) noexcept nogil:
    """Parse received bytes; every frame's size is checked before its bytes are counted off."""
    cdef size_t part, size
    cdef int outcome
    while length:
        if link.skip:
            part = min(link.skip, length)
            link.skip -= part
        else:
            part = min(link.want - link.have, length)
            memcpy(link.seen + link.have, data, part)
            link.have += part
            if link.have == HEADER and link.want == HEADER:
                size = read_u32(link.seen + AT_SIZE)
                if size < HEADER or size > LARGEST_FRAME or link.answered == link.begun:
                    return BAD_REPLY
                link.want = min(size, <size_t>SEEN)
            if link.have == SEEN:
                link.skip = read_u32(link.seen + AT_SIZE) - SEEN
        data += part
        length -= part
        if link.have >= HEADER and link.have == link.want and link.skip == 0:
            outcome = finish(load, link, now)
            if outcome != FINE:
                return outcome
            link.have, link.want = 0, HEADER
    return FINE


cdef inline int read_some(Load *load, Link *link) noexcept nogil:
    cdef ssize_t got = recv(link.socket, load.received, RECEIVE_BYTES, MSG_DONTWAIT)
    if got == 0:
        return CLOSED
    if got < 0:
        return FINE if errno == EAGAIN or errno == EINTR else FAILED
    return take(load, link, load.received, <size_t>got, clock_ns())
