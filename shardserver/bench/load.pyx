# cython: language_level=3
"""The load: one epoll loop over all connections of a process, no Python per request.

Closed loop: each connection keeps `depth` requests in flight; a latency runs from the moment at which the loop saw the
slot free. A server that stalls is asked less often, and the waits of those it was not asked are *not* counted.

Open loop: request i of the process is due at start + i x interval, on connection i modulo their number, whatever became
of those before it. A latency runs from then to the recv that completed the reply, so a stall of the server, a
connection with all its slots taken and a loop that is late are all charged. At most drain_ns after the last was due the
loop gives up: what has not been begun by then is charged as if answered at that moment, and counted `unsent`.

One send a connection and wake-up. Batches are stamped (batches.pxd), replies parsed as a stream: their first 280
bytes are looked at, the rest is received and dropped.
"""

from libc.errno cimport EAGAIN, EINTR, ENOSYS, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport timespec
from posix.unistd cimport close

from collections import namedtuple

from shardserver.bench.batches cimport (
    BATCH_HEADER, COVERED, FIRST, MESSAGE_HEADER, SMALL_PAYLOAD, Batch, batch_hash, stamp,
)
from shardserver.bench.hdr cimport COUNTS, count_index
from shardserver.bench.wire cimport *

from shardserver.errors import ProtocolError

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    enum: PR_SET_TIMERSLACK

DEF EPOLL_PWAIT2 = 441          # its number on every architecture
DEF EVENTS = 256
DEF EMPTY_POLL_PAUSE_NS = 1_000_000

cdef uint64_t SILENCE_NS = 30_000_000_000  # what the SDKs wait for a reply
cdef uint64_t NEVER = 0xFFFFFFFFFFFFFFFF

DEF FINE = 0
DEF CLOSED = 1
DEF SILENT = 2
DEF BAD_REPLY = 3
DEF FAILED = 4

COUNTS_LENGTH = COUNTS
PROGRESS_LENGTH = 3
MOST_NS = NEVER

_REASONS = {
    CLOSED: "the server closed a connection",
    SILENT: "no reply for 30 s",
    BAD_REPLY: "a reply that breaks the framing or is not the one due",
}

LoadConnection = namedtuple(
    "LoadConnection",
    "socket sends number frame depth partition_at offset_at first_partition partitions first_offset request_limit",
    module=__name__,
)
LoadCounts = namedtuple(
    "LoadCounts",
    "answered refused first_status messages empty unsent window_answered window_messages window_payload_bytes "
    "window_batch_bytes first_due_ns last_answer_ns",
    module=__name__,
)

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


cdef void build(Load *load, Link *link, uint64_t due) noexcept nogil:
    """Put the next request of a link into its slot."""
    cdef Slot *slot = &link.slots[link.begun % link.depth]
    cdef uint8_t *head = link.heads + (link.begun % link.depth) * link.head_room
    cdef uint32_t own = draw(load, link.partitions) if link.partitions > 1 else 0
    cdef Batch *batch
    slot.due, slot.partition = due, link.first_partition + own
    slot.head_bytes, slot.rest_bytes = link.frame_bytes, 0
    memcpy(head, link.frame, link.frame_bytes)
    write_u64(head + AT_REQUEST_SENT, link.begun + 1)
    write_u32(head + link.partition_at, slot.partition)
    if link.sends:
        slot.batch = draw(load, load.batch_count) if load.batch_count > 1 else 0
        batch = &load.batches[slot.batch]
        slot.checksum = stamp(batch, head + link.frame_bytes, link.number, link.begun + 1)
        slot.head_bytes += batch.head_bytes
        slot.rest, slot.rest_bytes = batch.data + batch.head_bytes, batch.length - batch.head_bytes
        write_u32(head + AT_SIZE, <uint32_t>(slot.head_bytes + slot.rest_bytes))
    else:
        write_u64(head + link.offset_at, link.offsets[own])
        if not link.follow:
            link.offsets[own] += load.messages_per_batch
            if link.offsets[own] >= load.log_messages:
                link.offsets[own] = 0
    if load.tallies[link.sends].first_due == 0:
        load.tallies[link.sends].first_due = due
    link.begun += 1
    load.begun += 1


cdef inline bint is_over(Load *load, Link *link) noexcept nogil:
    """The link has made its requests; one that follows ends with the sends."""
    return link.begun >= link.limit or (link.follow and load.tallies[1].answered == load.sends_due)


cdef void begin(Load *load, uint32_t index, uint64_t now) noexcept nogil:
    """Begin what is due on a link and finds a free slot."""
    cdef Link *link = &load.links[index]
    cdef uint64_t due = now
    if is_over(load, link):
        return
    while link.begun - link.answered < link.depth and link.begun < link.limit and link.paused_until <= now:
        if load.interval:
            due = due_at(load, link.begun * load.count + index)
            if due > now or now > load.drain:
                return
        if due >= load.until:
            return
        if load.begun == load.answered:
            load.quiet_since = now
        build(load, link, due)


cdef size_t gather(Load *load, Link *link) noexcept nogil:
    """Point vectors at what is begun and not written; gives their number."""
    cdef uint64_t number = link.written
    cdef size_t skip = link.written_part, count = 0
    cdef Slot *slot
    while number < link.begun and count + 2 <= MOST_VECTORS:
        slot = &link.slots[number % link.depth]
        if skip < slot.head_bytes:
            load.vectors[count].iov_base = link.heads + (number % link.depth) * link.head_room + skip
            load.vectors[count].iov_len = slot.head_bytes - skip
            count += 1
            skip = 0
        else:
            skip -= slot.head_bytes
        if slot.rest_bytes > skip:
            load.vectors[count].iov_base = <void *>(slot.rest + skip)
            load.vectors[count].iov_len = slot.rest_bytes - skip
            count += 1
        skip = 0
        number += 1
    return count


cdef int write_some(Load *load, uint32_t index) noexcept nogil:
    """One send of what waits; asks for writability when something is left."""
    cdef Link *link = &load.links[index]
    cdef msghdr message
    cdef epoll_event event
    cdef ssize_t done
    cdef size_t length
    cdef bint left
    if link.written < link.begun:
        memset(&message, 0, sizeof(message))
        message.msg_iov = load.vectors
        message.msg_iovlen = gather(load, link)
        done = sendmsg(link.socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if done < 0 and errno != EAGAIN and errno != EINTR:
            return FAILED
        link.written_part += <size_t>max(done, <ssize_t>0)
        while link.written < link.begun:
            length = link.slots[link.written % link.depth].head_bytes + link.slots[link.written % link.depth].rest_bytes
            if link.written_part < length:
                break
            link.written_part -= length
            link.written += 1
    left = link.written < link.begun
    if left != link.waits_writable:
        link.waits_writable = left
        event.events = EPOLLIN | (EPOLLOUT if left else 0)
        event.data.u32 = index
        if epoll_ctl(load.epoll, EPOLL_CTL_MOD, link.socket, &event) != 0:
            return FAILED
    return FINE


cdef int finish_poll(Load *load, Link *link, Slot *slot, uint32_t *count) noexcept nogil:
    if link.want < POLL_HEAD:
        return BAD_REPLY
    count[0] = read_u32(link.seen + AT_POLL_COUNT)
    if link.follow:
        link.offsets[slot.partition - link.first_partition] += count[0]
        if count[0] == 0:
            link.paused_until = load.quiet_since + EMPTY_POLL_PAUSE_NS
            load.any_paused = True
    return FINE


cdef int finish_send(Load *load, Link *link, Slot *slot) noexcept nogil:
    """Take the acknowledgement into the partition's sums."""
    cdef Batch *batch = &load.batches[slot.batch]
    if link.want < SEND_REPLY or slot.partition >= load.partition_limit:
        return BAD_REPLY
    load.acked_messages[slot.partition] += batch.count
    load.acked_hash[slot.partition] += batch_hash(batch, slot.checksum, read_u64(link.seen + AT_BASE_OFFSET))
    return FINE


cdef void count_window(Load *load, Link *link, Slot *slot, Tally *tally, uint32_t count) noexcept nogil:
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


cdef int finish(Load *load, Link *link, uint64_t now) noexcept nogil:
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


cdef int take(Load *load, Link *link, const uint8_t *data, size_t length, uint64_t now) noexcept nogil:
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


cdef int read_some(Load *load, Link *link) noexcept nogil:
    cdef ssize_t got = recv(link.socket, load.received, RECEIVE_BYTES, MSG_DONTWAIT)
    if got == 0:
        return CLOSED
    if got < 0:
        return FINE if errno == EAGAIN or errno == EINTR else FAILED
    return take(load, link, load.received, <size_t>got, clock_ns())


cdef void charge_unsent(Load *load, uint64_t now) noexcept nogil:
    """What was due and was never begun has waited until now at least."""
    cdef uint32_t index
    cdef uint64_t number, due
    cdef Link *link
    for index in range(load.count):
        link = &load.links[index]
        for number in range(link.begun, link.limit):
            due = due_at(load, number * load.count + index)
            if due >= load.until:
                break
            load.tallies[link.sends].unsent += 1
            if due >= load.measure_from:
                load.tallies[link.sends].latencies[count_index(now - due)] += 1


cdef int begin_due(Load *load, uint64_t now) noexcept nogil:
    """Open loop: begin what has become due since the last look."""
    cdef uint32_t index
    cdef int outcome
    while due_at(load, load.scheduled) <= now and due_at(load, load.scheduled) < load.until:
        index = <uint32_t>(load.scheduled % load.count)
        load.scheduled += 1
        begin(load, index, now)
        outcome = write_some(load, index)
        if outcome != FINE:
            return outcome
    return FINE


cdef int begin_all(Load *load, uint64_t now) noexcept nogil:
    """Begin what may begin on every link; notes whether one is paused still."""
    cdef uint32_t index
    cdef int outcome
    load.any_paused = False
    for index in range(load.count):
        begin(load, index, now)
        outcome = write_some(load, index)
        if outcome != FINE:
            return outcome
        load.any_paused |= load.links[index].paused_until > now
    return FINE


cdef bint has_ended(Load *load, uint64_t now) noexcept nogil:
    """Nothing is in flight and nothing more will begin."""
    cdef uint32_t index
    cdef Link *link
    if load.begun != load.answered:
        return False
    if now >= (load.drain if load.interval else load.until):
        return True
    for index in range(load.count):
        link = &load.links[index]
        if not is_over(load, link) and (
            not load.interval or due_at(load, link.begun * load.count + index) < load.until
        ):
            return False
    return True


cdef uint64_t wake_at(Load *load, uint64_t now) noexcept nogil:
    """When to look again if no reply comes."""
    cdef uint64_t moment = load.quiet_since + SILENCE_NS if load.begun != load.answered else NEVER
    if load.any_paused:
        moment = min(moment, now + EMPTY_POLL_PAUSE_NS)
    if load.interval:
        if due_at(load, load.scheduled) < load.until:
            moment = min(moment, due_at(load, load.scheduled))
        else:
            moment = min(moment, max(load.drain, now + EMPTY_POLL_PAUSE_NS))
    return min(moment, now + SILENCE_NS)


cdef int wait(Load *load, epoll_event *events, uint64_t moment, uint64_t now) noexcept nogil:
    """epoll to the nanosecond; to the millisecond on kernels before 5.11."""
    cdef timespec timeout
    cdef uint64_t left = moment - now if moment > now else 0
    cdef long count
    if not load.coarse:
        timeout.tv_sec, timeout.tv_nsec = <long>(left // 1_000_000_000), <long>(left % 1_000_000_000)
        count = syscall(EPOLL_PWAIT2, load.epoll, events, EVENTS, &timeout, NULL, 0)
        if count >= 0 or errno != ENOSYS:
            return <int>count
        load.coarse = True
    return epoll_wait(load.epoll, events, EVENTS, <int>((left + 999_999) // 1_000_000))


cdef int serve(Load *load, uint32_t index, uint32_t events) noexcept nogil:
    """One wake-up of one link: read, begin, one send."""
    cdef int outcome
    if events & ~<uint32_t>EPOLLOUT:
        outcome = read_some(load, &load.links[index])
        if outcome != FINE:
            return outcome
        begin(load, index, clock_ns())
    return write_some(load, index)


cdef int run(Load *load) noexcept nogil:
    """Until the load is over and every request begun has been answered."""
    cdef epoll_event[EVENTS] events
    cdef uint64_t now = clock_ns()
    cdef int count, place, outcome
    load.quiet_since = now
    if not load.interval:
        outcome = begin_all(load, now)
        if outcome != FINE:
            return outcome
    while True:
        now = clock_ns()
        outcome = FINE
        if load.interval:
            outcome = begin_due(load, now)
        if outcome == FINE and load.any_paused:
            outcome = begin_all(load, now)
        if outcome != FINE:
            return outcome
        if has_ended(load, now):
            break
        if load.begun != load.answered and now > load.quiet_since + SILENCE_NS:
            return SILENT
        count = wait(load, events, wake_at(load, now), now)
        if count < 0 and errno != EINTR:
            return FAILED
        for place in range(count):
            outcome = serve(load, events[place].data.u32, events[place].events)
            if outcome != FINE:
                return outcome
    if load.interval:
        charge_unsent(load, now)
    return FINE


cdef int allocate_link(Link *link, size_t first_bytes) except -1:
    link.head_room = link.frame_bytes + first_bytes
    link.slots = <Slot *>calloc(link.depth, sizeof(Slot))
    link.heads = <uint8_t *>malloc(link.depth * link.head_room)
    link.offsets = <uint64_t *>calloc(link.partitions, 8)
    if not (link.slots and link.heads and link.offsets):
        raise MemoryError()
    return 0


cdef int fill_link(Link *link, given, size_t first_bytes, bint follow) except -1:
    cdef const uint8_t[::1] frame = given.frame
    cdef uint32_t number
    if len(given.frame) < HEADER or given.depth < 1 or given.partitions < 1 or (not given.sends and given.depth != 1 and follow):
        raise ValueError("a frame of 256 bytes or more, a depth (1 with follow), a partition")
    if given.partition_at + 4 > len(given.frame) or (not given.sends and given.offset_at + 8 > len(given.frame)):
        raise ValueError("partition_at and offset_at lie in the frame")
    link.socket, link.sends, link.number, link.depth = given.socket, given.sends, given.number, given.depth
    link.frame, link.frame_bytes = &frame[0], frame.shape[0]
    link.partition_at, link.offset_at = given.partition_at, given.offset_at
    link.first_partition, link.partitions = given.first_partition, given.partitions
    link.limit, link.want, link.follow = given.request_limit, HEADER, follow and not given.sends
    allocate_link(link, first_bytes if given.sends else 0)
    for number in range(link.partitions):
        link.offsets[number] = given.first_offset
    return 0


cdef int fill_batch(Batch *batch, const uint8_t[::1] data) except -1:
    """data: a valid batch as encode_batch builds it."""
    cdef size_t position = BATCH_HEADER
    cdef uint32_t index
    batch.data, batch.length, batch.count = &data[0], data.shape[0], read_u32(&data[48])
    batch.first_payload_bytes = read_u32(&data[BATCH_HEADER + 36])
    batch.head_bytes = FIRST + (batch.first_payload_bytes if batch.first_payload_bytes <= SMALL_PAYLOAD else 0)
    batch.payload_bytes = batch.length - BATCH_HEADER - MESSAGE_HEADER * <size_t>batch.count
    batch.covered = <uint8_t *>malloc(COVERED + 8 * <size_t>batch.count)
    if batch.covered == NULL:
        raise MemoryError()
    memcpy(batch.covered, &data[0], 40)
    memcpy(batch.covered + 40, &data[48], 4)
    for index in range(batch.count):
        memcpy(batch.covered + COVERED + 8 * <size_t>index, &data[position], 8)
        position += MESSAGE_HEADER + read_u32(&data[position + 36])
    return 0


cdef int allocate(Load *load) except -1:
    load.links = <Link *>calloc(load.count, sizeof(Link))
    load.batches = <Batch *>calloc(load.batch_count + 1, sizeof(Batch))
    load.received = <uint8_t *>malloc(RECEIVE_BYTES)
    load.vectors = <iovec *>calloc(MOST_VECTORS, sizeof(iovec))
    if not (load.links and load.batches and load.received and load.vectors):
        raise MemoryError()
    load.epoll = epoll_create1(EPOLL_CLOEXEC)
    if load.epoll < 0:
        raise OSError(errno, "no epoll for the load")
    return 0


cdef int register(Load *load) except -1:
    cdef epoll_event event
    cdef uint32_t index
    for index in range(load.count):
        event.events = EPOLLIN
        event.data.u32 = index
        if epoll_ctl(load.epoll, EPOLL_CTL_ADD, load.links[index].socket, &event) != 0:
            raise OSError(errno, "a connection cannot be waited for")
    return 0


cdef void release(Load *load) noexcept:
    cdef uint32_t index
    for index in range(load.count if load.links != NULL else 0):
        free(load.links[index].slots)
        free(load.links[index].heads)
        free(load.links[index].offsets)
    for index in range(load.batch_count if load.batches != NULL else 0):
        free(load.batches[index].covered)
    free(load.links)
    free(load.batches)
    free(load.received)
    free(load.vectors)
    if load.epoll >= 0:
        close(load.epoll)


cdef uint64_t sends_due(connections) except? 0:
    limits = [one.request_limit for one in connections if one.sends]
    return sum(limits) if limits and max(limits) < NEVER else NEVER


cdef counts_of(const Tally *tally):
    return LoadCounts(
        tally.answered, tally.refused, tally.first_status, tally.messages, tally.empty, tally.unsent,
        tally.window_answered, tally.window_messages, tally.window_payload_bytes, tally.window_batch_bytes,
        tally.first_due, tally.last_answer,
    )


def run_load(
    connections, batches, *, uint64_t[::1] send_latencies not None, uint64_t[::1] poll_latencies not None,
    uint64_t[::1] acked_messages not None, uint64_t[::1] acked_hash not None, uint64_t[::1] progress not None,
    uint64_t start_ns, uint64_t measure_from_ns, uint64_t until_ns, uint64_t drain_ns=0, double interval_ns=0,
    uint32_t messages_per_batch, uint64_t log_messages=0, uint64_t seed=1,
):
    """Send and poll until until_ns or until every connection has made its requests; then wait for the answers.

    Args:
        connections: LoadConnection each: socket (descriptor, connected; nothing else may use it meanwhile), sends (else
            polls), number (1 or more, its own in the whole load), frame (a poll whole, a send up to its batch), depth,
            places of the partition and of a poll's offset in the frame, its partitions (more than one: drawn at random
            for each request), first_offset of polls, request_limit (MOST_NS: none).
        batches: what sends choose from at random, as encode_batch builds them, messages_per_batch in each.
        send_latencies, poll_latencies: COUNTS_LENGTH counts (hdr.pxd), ns, of requests due in [measure_from_ns, until_ns)
            and not refused.
        acked_messages, acked_hash: a place for each partition, added to (batches.pxd has the hash).
        progress: PROGRESS_LENGTH figures that another thread or process may read: answers, messages, bytes.
        start_ns, measure_from_ns, until_ns: CLOCK_MONOTONIC; until_ns MOST_NS: no end but the request limits.
        drain_ns: an open loop begins what is due no longer than this after until_ns.
        interval_ns: between requests of an open loop; 0: a closed loop.
        log_messages: polls begin again at offset 0 there; 0: they follow the end, with 1 ms of pause when it is empty,
            and end with the sends when those have a limit.

    Returns: LoadCounts of sends, LoadCounts of polls. window_*: replies that arrived in [measure_from_ns, until_ns).

    Raises:
        ProtocolError: closed or silent connection, a reply that is not valid or not the one due.
        OSError: a socket failed.
        ValueError: arguments that do not fit together.
    """
    cdef Load load
    cdef int outcome, number = 0
    cdef uint32_t index
    cdef size_t first_bytes = 0
    if len(send_latencies) < COUNTS or len(poll_latencies) < COUNTS or len(progress) < PROGRESS_LENGTH:
        raise ValueError("too little room for the figures")
    if not connections or len(acked_hash) != len(acked_messages):
        raise ValueError("no connection, or sums of different lengths")
    if any(one.sends for one in connections) and not batches:
        raise ValueError("sends without batches")
    memset(&load, 0, sizeof(load))
    load.epoll, load.count, load.batch_count = -1, len(connections), len(batches)
    load.messages_per_batch, load.log_messages, load.random = messages_per_batch, log_messages, seed or 1
    load.start, load.measure_from, load.until, load.interval = start_ns, measure_from_ns, until_ns, interval_ns
    load.drain = until_ns + drain_ns if until_ns <= NEVER - drain_ns else NEVER
    load.tallies[1].latencies, load.tallies[0].latencies = &send_latencies[0], &poll_latencies[0]
    load.partition_limit, load.progress = <uint32_t>acked_messages.shape[0], &progress[0]
    if load.partition_limit:
        load.acked_messages, load.acked_hash = &acked_messages[0], &acked_hash[0]
    try:
        allocate(&load)
        for index in range(load.batch_count):
            fill_batch(&load.batches[index], batches[index])
            if load.batches[index].count != messages_per_batch:
                raise ValueError("a batch of another message count")
            first_bytes = max(first_bytes, load.batches[index].head_bytes)
        for index in range(load.count):
            fill_link(&load.links[index], connections[index], first_bytes, log_messages == 0)
        load.sends_due = sends_due(connections)
        register(&load)
        prctl(PR_SET_TIMERSLACK, 1)
        with nogil:
            outcome = run(&load)
            number = errno
    finally:
        release(&load)
    if outcome == FAILED:
        raise OSError(number, "a socket of the load failed")
    if outcome != FINE:
        raise ProtocolError(f"{_REASONS[outcome]}, after {load.answered} answers")
    return counts_of(&load.tallies[1]), counts_of(&load.tallies[0])


def latency_index(uint64_t value_ns):
    """The place of a latency among COUNTS_LENGTH counts."""
    return count_index(value_ns)
