# cython: language_level=3
"""The load's schedule: what has become due, when to look again, when it is over, what never began."""

from libc.errno cimport ENOSYS, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport timespec

from shardserver.bench.hdr cimport count_index
from shardserver.bench.load_requests cimport begin, is_over, write_some
from shardserver.bench.load_state cimport EMPTY_POLL_PAUSE_NS, FINE, NEVER, Link, Load, due_at
from shardserver.bench.wire cimport epoll_event, epoll_wait

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    EPOLL_PWAIT2 = 441          # its number on every architecture
    EVENTS = 256

cdef extern from *:
    """
    #define SHARDSERVER_SILENCE_NS UINT64_C(30000000000)
    """
    uint64_t SILENCE_NS "SHARDSERVER_SILENCE_NS"  # what the SDKs wait for a reply


cdef inline void charge_unsent(Load *load, uint64_t now) noexcept nogil:
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


cdef inline int begin_due(Load *load, uint64_t now) noexcept nogil:
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


cdef inline int begin_all(Load *load, uint64_t now) noexcept nogil:
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


cdef inline bint has_ended(Load *load, uint64_t now) noexcept nogil:
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


cdef inline uint64_t wake_at(Load *load, uint64_t now) noexcept nogil:
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


cdef inline int wait(Load *load, epoll_event *events, uint64_t moment, uint64_t now) noexcept nogil:
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
