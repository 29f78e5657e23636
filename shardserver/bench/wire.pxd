# cython: language_level=3
"""Places in frames (framing.md 3, messages.md) and the system calls that the load and the echo share."""

from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
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
        uint32_t u32
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
    enum: EPOLL_CLOEXEC

cdef enum:
    HEADER = 256
    AT_SIZE = 48
    AT_COMMAND = 60
    AT_REQUEST_SENT = 168
    AT_OPERATION_SENT = 176
    AT_REQUEST_ECHOED = 200
    AT_STATUS = 216
    AT_POLL_COUNT = 268
    POLL_HEAD = 272             # header and the 16 bytes before a poll reply's batches
    AT_BASE_OFFSET = 272
    SEND_REPLY = 280
    SEEN = 280                  # the bytes of a reply that are looked at
    REPLY = 8
    OPERATION_SEND = 160
    LARGEST_FRAME = 64 << 20
    RECEIVE_BYTES = 1 << 20
    MOST_VECTORS = 1024         # IOV_MAX of Linux


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
