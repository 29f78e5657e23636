# cython: language_level=3
"""The load's memory and descriptors: filled from what run_load is given, and released."""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close

from shardserver.bench.batches cimport BATCH_HEADER, COVERED, FIRST, MESSAGE_HEADER, SMALL_PAYLOAD, Batch
from shardserver.bench.load_state cimport Link, Load, Slot
from shardserver.bench.wire cimport *
from shardserver.protocol.little_endian cimport read_u32


cdef inline int allocate_link(Link *link, size_t first_bytes) except -1:
    link.head_room = link.frame_bytes + first_bytes
    link.slots = <Slot *>calloc(link.depth, sizeof(Slot))
    link.heads = <uint8_t *>malloc(link.depth * link.head_room)
    link.offsets = <uint64_t *>calloc(link.partitions, 8)
    if not (link.slots and link.heads and link.offsets):
        raise MemoryError()
    return 0


cdef inline int fill_link(Link *link, given, size_t first_bytes, bint follow) except -1:
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


cdef inline int fill_batch(Batch *batch, const uint8_t[::1] data) except -1:
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


cdef inline int allocate(Load *load) except -1:
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


cdef inline int register(Load *load) except -1:
    cdef epoll_event event
    cdef uint32_t index
    for index in range(load.count):
        event.events = EPOLLIN
        event.data.u32 = index
        if epoll_ctl(load.epoll, EPOLL_CTL_ADD, load.links[index].socket, &event) != 0:
            raise OSError(errno, "a connection cannot be waited for")
    return 0


cdef inline void release(Load *load) noexcept:
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
