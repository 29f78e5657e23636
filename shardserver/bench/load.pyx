# cython: language_level=3
"""The load: one connection, a fixed number of requests in flight, no Python per request.

A closed loop: a request begins when a slot is free, and its latency runs from that moment (not from when the kernel took
its bytes) to the return of the recv that completed its reply. A server that stalls therefore delays later requests
too, whose wait is *not* counted; docs/bench.md says so beside every number.

Requests are one prebuilt frame: `depth` copies of its first bytes, patched, and one shared rest, gathered by writev.
Replies are parsed as a stream: header and the poll's 16 bytes are looked at, the rest is received and dropped.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport usleep

from collections import namedtuple

from shardserver.errors import ProtocolError

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *vectors, int count)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    enum: MSG_DONTWAIT

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    enum: POLLIN
    enum: POLLOUT

DEF HEADER = 256
DEF SEEN = 272                  # header and the head of a poll's reply
DEF LARGEST_FRAME = 64 << 20
DEF REPLY = 8
DEF AT_SIZE = 48
DEF AT_COMMAND = 60
DEF AT_REQUEST_SENT = 168
DEF AT_REQUEST_ECHOED = 200
DEF AT_STATUS = 216
DEF AT_POLL_COUNT = 268
DEF RECEIVE_BYTES = 1 << 20
DEF MOST_VECTORS = 1024         # IOV_MAX of Linux
DEF SILENCE_MS = 30000          # what the SDKs wait for a reply
DEF EMPTY_POLL_PAUSE_US = 1000

DEF FINE = 0
DEF CLOSED = 1
DEF SILENT = 2
DEF BAD_REPLY = 3
DEF FAILED = 4

_REASONS = {
    CLOSED: "the server closed the connection",
    SILENT: "no reply for 30 s",
    BAD_REPLY: "a reply that breaks the framing or is not the one due",
}

LoadResult = namedtuple(
    "LoadResult",
    "answered refused first_status messages empty window_answered window_messages window_bytes recorded unrecorded",
)

cdef struct Load:
    int socket
    # The request: `depth` patched copies of its head, one rest.
    uint32_t depth
    uint8_t *heads
    size_t head_bytes
    uint8_t *rest
    size_t rest_bytes
    iovec *vectors
    # Polls: where the offset lies (0: not a poll), and how it moves.
    size_t offset_at
    uint64_t offset, offset_step, offset_end
    bint follow, pause
    # Counters of requests that only grow; begun - answered <= depth.
    uint64_t begun, written, answered
    size_t written_part
    uint64_t *begun_at
    # The reply under way.
    uint8_t *received
    uint8_t seen[SEEN]
    size_t have, want, skip
    # Clock, ns: measure [measure_from, until).
    uint64_t measure_from, until
    # Results.
    uint64_t *latencies
    uint64_t capacity, recorded, unrecorded
    uint64_t messages_per_request, refused, messages, empty
    uint64_t window_answered, window_messages, window_bytes
    uint32_t first_status


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline uint32_t read_u32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint64_t read_u64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef void begin(Load *load, uint64_t now) noexcept nogil:
    """Patch as many requests as there are free slots. Numbers are 1, 2, 3 …"""
    cdef uint8_t *head
    cdef uint64_t number
    while load.begun - load.answered < load.depth:
        head = load.heads + (load.begun % load.depth) * load.head_bytes
        load.begun_at[load.begun % load.depth] = now
        number = load.begun + 1
        memcpy(head + AT_REQUEST_SENT, &number, 8)
        if load.offset_at:
            memcpy(head + load.offset_at, &load.offset, 8)
            if not load.follow:
                load.offset += load.offset_step
                if load.offset >= load.offset_end:
                    load.offset = 0
        load.begun += 1


cdef int gather(Load *load) noexcept nogil:
    """Point vectors at what is begun and not written; gives their number."""
    cdef uint64_t number = load.written
    cdef size_t skip = load.written_part
    cdef int count = 0
    while number < load.begun and count + 2 <= MOST_VECTORS:
        if skip < load.head_bytes:
            load.vectors[count].iov_base = load.heads + (number % load.depth) * load.head_bytes + skip
            load.vectors[count].iov_len = load.head_bytes - skip
            count += 1
            skip = 0
        else:
            skip -= load.head_bytes
        if load.rest_bytes:
            load.vectors[count].iov_base = load.rest + skip
            load.vectors[count].iov_len = load.rest_bytes - skip
            count += 1
        skip = 0
        number += 1
    return count


cdef int write_some(Load *load) noexcept nogil:
    cdef size_t frame = load.head_bytes + load.rest_bytes, total
    cdef ssize_t done = writev(load.socket, load.vectors, gather(load))
    if done < 0:
        return FINE if errno == EAGAIN or errno == EINTR else FAILED
    total = load.written_part + <size_t>done
    load.written += total // frame
    load.written_part = total % frame
    return FINE


cdef int finish(Load *load, uint64_t now) noexcept nogil:
    """One whole reply has arrived; its first bytes are in `seen`."""
    cdef uint64_t begun_at = load.begun_at[load.answered % load.depth]
    cdef uint64_t count = load.messages_per_request
    cdef uint32_t status = read_u32(load.seen + AT_STATUS)
    if load.seen[AT_COMMAND] != REPLY or read_u64(load.seen + AT_REQUEST_ECHOED) != load.answered + 1:
        return BAD_REPLY
    load.answered += 1
    if status != 0:
        load.refused += 1
        if load.first_status == 0:
            load.first_status = status
        return FINE
    if load.offset_at:
        if load.want < SEEN:
            return BAD_REPLY
        count = read_u32(load.seen + AT_POLL_COUNT)
        load.empty += count == 0
        load.pause = load.follow and count == 0
        if load.follow:
            load.offset += count
    load.messages += count
    if load.measure_from <= now < load.until:
        load.window_answered += 1
        load.window_messages += count
        load.window_bytes += read_u32(load.seen + AT_SIZE)
    if load.measure_from <= begun_at < load.until:
        if load.recorded < load.capacity:
            load.latencies[load.recorded] = now - begun_at
            load.recorded += 1
        else:
            load.unrecorded += 1
    return FINE


cdef int take(Load *load, const uint8_t *data, size_t length, uint64_t now) noexcept nogil:
    """Parse received bytes; every frame's size is checked before its bytes are counted off."""
    cdef size_t part, size
    cdef int outcome
    while length:
        if load.skip:
            part = min(load.skip, length)
            load.skip -= part
        else:
            part = min(load.want - load.have, length)
            memcpy(load.seen + load.have, data, part)
            load.have += part
            if load.have == HEADER and load.want == HEADER:
                size = read_u32(load.seen + AT_SIZE)
                if size < HEADER or size > LARGEST_FRAME or load.answered == load.begun:
                    return BAD_REPLY
                load.want = min(size, <size_t>SEEN)
                load.skip = size - load.want if load.want == HEADER else 0
            if load.have == SEEN:
                load.skip = read_u32(load.seen + AT_SIZE) - SEEN
        data += part
        length -= part
        if load.have >= HEADER and load.have == load.want and load.skip == 0:
            outcome = finish(load, now)
            if outcome != FINE:
                return outcome
            load.have, load.want = 0, HEADER
    return FINE


cdef int read_some(Load *load) noexcept nogil:
    cdef ssize_t got = recv(load.socket, load.received, RECEIVE_BYTES, MSG_DONTWAIT)
    if got == 0:
        return CLOSED
    if got < 0:
        return FINE if errno == EAGAIN or errno == EINTR else FAILED
    return take(load, load.received, <size_t>got, clock_ns())


cdef int run(Load *load) noexcept nogil:
    """Until the time is over and every request has been answered."""
    cdef pollfd waiting
    cdef uint64_t now
    cdef int outcome = FINE
    waiting.fd = load.socket
    while outcome == FINE:
        if load.pause:
            load.pause = False
            usleep(EMPTY_POLL_PAUSE_US)
        now = clock_ns()
        if now < load.until:
            begin(load, now)
        if load.answered == load.begun:
            return FINE
        if load.written < load.begun:
            outcome = write_some(load)
            if outcome != FINE:
                return outcome
        waiting.events = POLLIN | (POLLOUT if load.written < load.begun else 0)
        waiting.revents = 0
        if poll(&waiting, 1, SILENCE_MS) == 0:
            return SILENT
        if waiting.revents & ~POLLOUT:
            outcome = read_some(load)
    return outcome


cdef int allocate(Load *load, const uint8_t[::1] frame) except -1:
    load.heads = <uint8_t *>malloc(load.depth * load.head_bytes)
    load.rest = <uint8_t *>malloc(load.rest_bytes + 1)
    load.vectors = <iovec *>calloc(MOST_VECTORS, sizeof(iovec))
    load.begun_at = <uint64_t *>calloc(load.depth, 8)
    load.received = <uint8_t *>malloc(RECEIVE_BYTES)
    if not (load.heads and load.rest and load.vectors and load.begun_at and load.received):
        raise MemoryError()
    cdef uint32_t slot
    for slot in range(load.depth):
        memcpy(load.heads + slot * load.head_bytes, &frame[0], load.head_bytes)
    memcpy(load.rest, &frame[0] + load.head_bytes, load.rest_bytes)
    return 0


cdef void release(Load *load) noexcept:
    free(load.heads)
    free(load.rest)
    free(load.vectors)
    free(load.begun_at)
    free(load.received)


def run_load(
    int socket, const uint8_t[::1] frame not None, uint64_t[::1] latencies not None, *, uint32_t depth,
    uint64_t measure_from_ns, uint64_t until_ns, uint64_t messages_per_request=0, size_t offset_at=0,
    uint64_t offset_step=0, uint64_t offset_end=0, bint follow=False,
):
    """Keep `depth` requests in flight until until_ns, then wait for the answers that are missing.

    Args:
        socket: descriptor of a connected, nonblocking socket; nothing else may use it meanwhile.
        frame: a whole request frame; its request number is replaced by 1, 2, 3 …
        latencies: filled with ns, in order of answer, of the requests begun in [measure_from_ns, until_ns) and not
            refused; those that find no room are counted as unrecorded.
        measure_from_ns, until_ns: CLOCK_MONOTONIC.
        messages_per_request: of a send; polls read it from their reply.
        offset_at: a poll: the place of its offset (u64) in the frame. It moves by offset_step and is 0 again at
            offset_end; with follow (depth 1) by the messages received, with 1 ms of pause after an empty reply.

    Returns: LoadResult. The window_* fields count replies that arrived in [measure_from_ns, until_ns).

    Raises:
        ProtocolError: closed or silent connection, a reply that is not valid or not the one due.
        OSError: the socket failed.
        ValueError: arguments that do not fit together.
    """
    cdef Load load
    cdef size_t length = frame.shape[0]
    cdef int outcome, number = 0
    if length < HEADER or depth == 0 or latencies.shape[0] == 0 or (follow and depth != 1):
        raise ValueError("a frame of 256 bytes or more, a depth (1 with follow), room for latencies")
    if offset_at and (offset_at + 8 > length or (not follow and (offset_step == 0 or offset_end == 0))):
        raise ValueError("offset_at lies in the frame, with offset_step and offset_end")
    load = Load(
        socket=socket, depth=depth, heads=NULL, rest=NULL, vectors=NULL, begun_at=NULL, received=NULL,
        head_bytes=length if offset_at else HEADER, rest_bytes=0 if offset_at else length - HEADER,
        offset_at=offset_at, offset=0, offset_step=offset_step, offset_end=offset_end, follow=follow, pause=False,
        begun=0, written=0, answered=0, written_part=0, have=0, want=HEADER, skip=0,
        measure_from=measure_from_ns, until=until_ns, latencies=&latencies[0], capacity=latencies.shape[0],
        recorded=0, unrecorded=0, messages_per_request=messages_per_request, refused=0, messages=0, empty=0,
        window_answered=0, window_messages=0, window_bytes=0, first_status=0,
    )
    try:
        allocate(&load, frame)
        with nogil:
            outcome = run(&load)
            number = errno
    finally:
        release(&load)
    if outcome == FAILED:
        raise OSError(number, "the load's socket failed")
    if outcome != FINE:
        raise ProtocolError(f"{_REASONS[outcome]}, after {load.answered} answers")
    return LoadResult(
        load.answered, load.refused, load.first_status, load.messages, load.empty, load.window_answered,
        load.window_messages, load.window_bytes, load.recorded, load.unrecorded,
    )


cdef int compare(const void *left, const void *right) noexcept nogil:
    cdef uint64_t a = (<const uint64_t *>left)[0], b = (<const uint64_t *>right)[0]
    return (a > b) - (a < b)


def sort_latencies(uint64_t[::1] latencies not None):
    """Sort in place, rising."""
    if latencies.shape[0]:
        with nogil:
            qsort(&latencies[0], latencies.shape[0], 8, compare)
