# cython: language_level=3
"""The yardstick: a loopback echo with the frames' sizes and nothing behind it.

It cuts requests by their size field and answers each with a reply frame of a fixed size that carries the request's
number. All replies that one wake-up makes due leave in one send per connection.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove
from posix.unistd cimport close

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t send(int fd, const void *buffer, size_t length, int flags)
    int accept4(int fd, void *address, void *length, int flags)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: SOCK_NONBLOCK

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY

cdef extern from "<sys/epoll.h>" nogil:
    cdef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout_ms)
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD

DEF HEADER = 256
DEF AT_SIZE = 48
DEF AT_COMMAND = 60
DEF AT_REQUEST_SENT = 168
DEF AT_REQUEST_ECHOED = 200
DEF REPLY = 8
DEF AT_POLL_COUNT = 268
DEF RECEIVE_BYTES = 1 << 20
DEF MOST_FDS = 4096
DEF EVENTS = 64

cdef struct Peer:
    uint8_t head[HEADER]
    size_t have, skip
    uint8_t *out
    size_t start, end
    bint waits_writable

cdef struct Echo:
    int epoll
    uint8_t *received
    uint8_t *reply
    size_t reply_bytes, out_bytes
    Peer *peers[MOST_FDS]


cdef bint answer(Echo *echo, Peer *peer) noexcept nogil:
    """Append one reply. False: more unanswered requests than were promised."""
    if peer.end + echo.reply_bytes > echo.out_bytes:
        memmove(peer.out, peer.out + peer.start, peer.end - peer.start)
        peer.end -= peer.start
        peer.start = 0
        if peer.end + echo.reply_bytes > echo.out_bytes:
            return False
    memcpy(peer.out + peer.end, echo.reply, echo.reply_bytes)
    memcpy(peer.out + peer.end + AT_REQUEST_ECHOED, peer.head + AT_REQUEST_SENT, 8)
    peer.end += echo.reply_bytes
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
                memcpy(&size, peer.head + AT_SIZE, 4)
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


cdef bint flush(Echo *echo, int fd, Peer *peer) noexcept nogil:
    cdef epoll_event event
    cdef ssize_t done
    cdef bint left
    if peer.end > peer.start:
        done = send(fd, peer.out + peer.start, peer.end - peer.start, MSG_NOSIGNAL | MSG_DONTWAIT)
        if done < 0 and errno != EAGAIN and errno != EINTR:
            return False
        peer.start += <size_t>max(done, 0)
        if peer.start == peer.end:
            peer.start = peer.end = 0
    left = peer.end > peer.start
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
    free(echo.peers[fd].out)
    free(echo.peers[fd])
    echo.peers[fd] = NULL


cdef void admit(Echo *echo, int listening) noexcept nogil:
    cdef epoll_event event
    cdef int one = 1
    cdef Peer *peer
    cdef int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)
    if fd < 0:
        return
    if fd >= MOST_FDS:
        close(fd)
        return
    peer = <Peer *>calloc(1, sizeof(Peer))
    if peer != NULL:
        peer.out = <uint8_t *>malloc(echo.out_bytes)
    if peer == NULL or peer.out == NULL:
        free(peer)
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


def serve_echo(int listening, size_t reply_bytes, uint32_t messages, uint32_t depth):
    """Serve until a signal ends the process.

    Args:
        listening: descriptor of a listening TCP socket.
        reply_bytes: of each reply frame, at least 256.
        messages: the count that a poll's reply names (reply_bytes 272 or more), else ignored.
        depth: requests that a connection has in flight at most; one with more is closed.

    Raises:
        ValueError: reply_bytes below 256. OSError: epoll failed.
    """
    cdef Echo *echo
    cdef uint32_t size = <uint32_t>reply_bytes
    if reply_bytes < HEADER:
        raise ValueError(f"replies of {reply_bytes} bytes")
    echo = <Echo *>calloc(1, sizeof(Echo))
    if echo == NULL:
        raise MemoryError()
    echo.reply_bytes, echo.out_bytes = reply_bytes, reply_bytes * depth
    echo.received, echo.reply = <uint8_t *>malloc(RECEIVE_BYTES), <uint8_t *>calloc(1, reply_bytes)
    if echo.received == NULL or echo.reply == NULL:
        raise MemoryError()
    memcpy(echo.reply + AT_SIZE, &size, 4)
    echo.reply[AT_COMMAND] = REPLY
    if reply_bytes >= AT_POLL_COUNT + 4:
        memcpy(echo.reply + AT_POLL_COUNT, &messages, 4)
    echo.epoll = epoll_create1(0)
    cdef int number
    with nogil:
        number = run(echo, listening)
    raise OSError(number, "the echo's epoll failed")
