# cython: language_level=3
"""The yardstick: a loopback echo with the frames' sizes and nothing behind it.

It cuts requests by their size field and answers each with a reply frame of a fixed size (one for sends, one for other
requests) that carries the request's number. All replies that one wake-up makes due leave in one send per connection.
Up to 4 KiB a reply is copied whole; of a longer one only the head is, and the rest is sent from one shared buffer: the
sender of frames that consumers are measured against.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from shardserver.bench.wire cimport *
from shardserver.protocol.little_endian cimport read_u32, write_u32

DEF SMALL_REPLY = 4096
DEF EVENTS = 256

cdef struct Layout:
    uint8_t *reply              # a whole reply
    size_t head_bytes, rest_bytes

cdef struct Peer:
    uint8_t head[HEADER]
    size_t have, skip
    # Replies due and not sent whole, in a ring of `depth` heads.
    uint8_t *heads
    uint64_t due, sent
    size_t sent_part
    Layout *layout
    bint waits_writable

cdef struct Echo:
    int epoll
    uint64_t depth
    uint8_t *received
    iovec *vectors
    Layout sends, others
    Peer **peers
    size_t peer_room


cdef bint answer(Echo *echo, Peer *peer) noexcept nogil:
    """Make one reply due. False: more unanswered requests than were promised, or a connection of two kinds."""
    cdef Layout *layout = &echo.sends if peer.head[AT_OPERATION_SENT] == OPERATION_SEND else &echo.others
    cdef uint8_t *head
    if peer.heads == NULL:
        peer.layout, peer.heads = layout, <uint8_t *>malloc(echo.depth * layout.head_bytes)
    if peer.heads == NULL or peer.layout != layout or peer.due - peer.sent == echo.depth:
        return False
    head = peer.heads + (peer.due % echo.depth) * layout.head_bytes
    memcpy(head, layout.reply, layout.head_bytes)
    memcpy(head + AT_REQUEST_ECHOED, peer.head + AT_REQUEST_SENT, 8)
    peer.due += 1
    return True


cdef bint take(Echo *echo, Peer *peer, const uint8_t *data, size_t length) noexcept nogil:
    cdef size_t part
    cdef uint32_t size
    while length:
        if peer.skip:
            part = min(peer.skip, length)
            peer.skip -= part
        else:
            part = min(HEADER - peer.have, length)
            memcpy(peer.head + peer.have, data, part)
            peer.have += part
            if peer.have == HEADER:
                size = read_u32(peer.head + AT_SIZE)
                if size < HEADER:
                    return False
                peer.skip = size - HEADER
        data += part
        length -= part
        if peer.have == HEADER and peer.skip == 0:
            if not answer(echo, peer):
                return False
            peer.have = 0
    return True


cdef size_t gather(Echo *echo, Peer *peer) noexcept nogil:
    """Point vectors at what is due; heads that lie side by side with nothing between them become one."""
    cdef size_t head_bytes = peer.layout.head_bytes, rest_bytes = peer.layout.rest_bytes, skip = peer.sent_part, count = 0
    cdef uint64_t number = peer.sent, upto
    while number < peer.due and count + 2 <= MOST_VECTORS:
        upto = number + 1
        if rest_bytes == 0:
            upto = min(peer.due, number - number % echo.depth + echo.depth)
        if skip < head_bytes:
            echo.vectors[count].iov_base = peer.heads + (number % echo.depth) * head_bytes + skip
            echo.vectors[count].iov_len = (upto - number) * head_bytes - skip
            count += 1
            skip = 0
        else:
            skip -= head_bytes
        if rest_bytes:
            echo.vectors[count].iov_base = peer.layout.reply + head_bytes + skip
            echo.vectors[count].iov_len = rest_bytes - skip
            count += 1
        skip = 0
        number = upto
    return count


cdef bint flush(Echo *echo, int fd, Peer *peer) noexcept nogil:
    """One send of all that is due. False: the connection is broken."""
    cdef epoll_event event
    cdef msghdr message
    cdef ssize_t done
    cdef size_t frame_bytes
    cdef bint left
    if peer.due > peer.sent:
        memset(&message, 0, sizeof(message))
        message.msg_iov = echo.vectors
        message.msg_iovlen = gather(echo, peer)
        done = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if done < 0 and errno != EAGAIN and errno != EINTR:
            return False
        frame_bytes = peer.layout.head_bytes + peer.layout.rest_bytes
        peer.sent_part += <size_t>max(done, <ssize_t>0)
        peer.sent += peer.sent_part // frame_bytes
        peer.sent_part %= frame_bytes
    left = peer.due > peer.sent
    if left != peer.waits_writable:
        peer.waits_writable = left
        event.events = EPOLLIN | (EPOLLOUT if left else 0)
        event.data.fd = fd
        epoll_ctl(echo.epoll, EPOLL_CTL_MOD, fd, &event)
    return True


cdef bint serve(Echo *echo, int fd, Peer *peer, uint32_t events) noexcept nogil:
    """One wake-up of one connection. False: close it."""
    cdef ssize_t got
    if events & ~<uint32_t>EPOLLOUT:
        got = recv(fd, echo.received, RECEIVE_BYTES, MSG_DONTWAIT)
        if got == 0 or (got < 0 and errno != EAGAIN and errno != EINTR):
            return False
        if got > 0 and not take(echo, peer, echo.received, <size_t>got):
            return False
    return flush(echo, fd, peer)


cdef void drop(Echo *echo, int fd) noexcept nogil:
    close(fd)
    free(echo.peers[fd].heads)
    free(echo.peers[fd])
    echo.peers[fd] = NULL


cdef void admit(Echo *echo, int listening) noexcept nogil:
    cdef epoll_event event
    cdef int one = 1
    cdef Peer *peer
    cdef int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)
    if fd < 0:
        return
    peer = <Peer *>calloc(1, sizeof(Peer)) if <size_t>fd < echo.peer_room else NULL
    if peer == NULL:
        close(fd)
        return
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    echo.peers[fd] = peer
    event.events = EPOLLIN
    event.data.fd = fd
    epoll_ctl(echo.epoll, EPOLL_CTL_ADD, fd, &event)


cdef int run(Echo *echo, int listening) noexcept nogil:
    """Until the process is ended by a signal, or epoll fails."""
    cdef epoll_event[EVENTS] events
    cdef int count, index, fd
    events[0].events = EPOLLIN
    events[0].data.fd = listening
    epoll_ctl(echo.epoll, EPOLL_CTL_ADD, listening, &events[0])
    while True:
        count = epoll_wait(echo.epoll, events, EVENTS, -1)
        if count < 0 and errno != EINTR:
            return errno
        for index in range(count):
            fd = events[index].data.fd
            if fd == listening:
                admit(echo, listening)
            elif not serve(echo, fd, echo.peers[fd], events[index].events):
                drop(echo, fd)


cdef int fill_layout(Layout *layout, size_t reply_bytes) except -1:
    if not HEADER <= reply_bytes <= LARGEST_FRAME:
        raise ValueError(f"replies of {reply_bytes} bytes")
    layout.reply = <uint8_t *>calloc(1, reply_bytes)
    if layout.reply == NULL:
        raise MemoryError()
    layout.head_bytes = reply_bytes if reply_bytes <= SMALL_REPLY else SEEN
    layout.rest_bytes = reply_bytes - layout.head_bytes
    write_u32(layout.reply + AT_SIZE, <uint32_t>reply_bytes)
    layout.reply[AT_COMMAND] = REPLY
    return 0


def serve_echo(int listening, size_t send_reply_bytes, size_t poll_reply_bytes, uint32_t messages, uint32_t depth):
    """Serve until a signal ends the process.

    Args:
        listening: descriptor of a listening TCP socket.
        send_reply_bytes, poll_reply_bytes: of each reply frame, 256 to 64 MiB; polls are all that is no send.
        messages: the count that a poll's reply names (poll_reply_bytes 272 or more), else ignored.
        depth: requests that a connection has in flight at most; one with more is closed.

    Raises:
        ValueError: a reply size. OSError: epoll failed.
    """
    cdef Echo echo
    cdef int number
    memset(&echo, 0, sizeof(echo))
    echo.depth, echo.peer_room = depth, 65536
    fill_layout(&echo.sends, send_reply_bytes)
    fill_layout(&echo.others, poll_reply_bytes)
    if poll_reply_bytes >= POLL_HEAD:
        write_u32(echo.others.reply + AT_POLL_COUNT, messages)
    echo.received, echo.vectors = <uint8_t *>malloc(RECEIVE_BYTES), <iovec *>calloc(MOST_VECTORS, sizeof(iovec))
    echo.peers = <Peer **>calloc(echo.peer_room, sizeof(Peer *))
    if echo.received == NULL or echo.vectors == NULL or echo.peers == NULL:
        raise MemoryError()
    echo.epoll = epoll_create1(0)
    with nogil:
        number = run(&echo, listening)
    raise OSError(number, "the echo's epoll failed")
