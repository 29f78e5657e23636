# cython: language_level=3
"""The load's requests: when one begins, its bytes, and how they are written."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shardserver.bench.batches cimport Batch, stamp
from shardserver.bench.load_state cimport FAILED, FINE, Link, Load, Slot, draw, due_at
from shardserver.bench.wire cimport *
from shardserver.protocol.little_endian cimport write_u32, write_u64


cdef inline void build(Load *load, Link *link, uint64_t due) noexcept nogil:
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


cdef inline void begin(Load *load, uint32_t index, uint64_t now) noexcept nogil:
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


cdef inline size_t gather(Load *load, Link *link) noexcept nogil:
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


cdef inline int write_some(Load *load, uint32_t index) noexcept nogil:
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
