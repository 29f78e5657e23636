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

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from collections import namedtuple

from shardserver.bench.hdr cimport COUNTS, count_index
from shardserver.bench.load_memory cimport allocate, fill_batch, fill_link, register, release
from shardserver.bench.load_replies cimport read_some
from shardserver.bench.load_requests cimport begin, write_some
from shardserver.bench.load_schedule cimport (
    EVENTS, SILENCE_NS, begin_all, begin_due, charge_unsent, has_ended, wait, wake_at,
)
from shardserver.bench.load_state cimport BAD_REPLY, CLOSED, FAILED, FINE, NEVER, SILENT, Load, Tally
from shardserver.bench.wire cimport EPOLLOUT, clock_ns, epoll_event

from shardserver.errors import ProtocolError

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    enum: PR_SET_TIMERSLACK

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
