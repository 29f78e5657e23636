"""Bytes on their way to one socket: small ones copied together, large buffers held until they have left."""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from shardserver.net.socket_calls cimport bare_send

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* msg, int flags)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef enum:
    IOVECS = 64
    COPIED = 16384  # shorter buffers of a reply are copied beside their neighbours


cdef class Output:
    """Owned by one connection. `total`: bytes that have not left."""

    def __cinit__(self):
        self._kept = []

    def __dealloc__(self):
        free(self._bytes)
        free(self._pieces)

    cdef uint8_t* claim(self, size_t size) except NULL:
        """Room for `size` bytes at the end."""
        cdef size_t wanted = self._used + size
        cdef uint8_t* grown
        if wanted > self._room:
            wanted = max(wanted, 2 * self._room, <size_t>4096)
            grown = <uint8_t*>realloc(self._bytes, wanted)
            if grown == NULL:
                raise MemoryError
            self._bytes, self._room = grown, wanted
        if self._count == 0 or self._pieces[self._count - 1].held:
            self.add_piece(NULL, 0)
            self._pieces[self._count - 1].start = self._used
        self._pieces[self._count - 1].length += size
        self._used += size
        self.total += size
        return self._bytes + self._used - size

    cdef int add_piece(self, const uint8_t* held, size_t length) except -1:
        cdef size_t room
        cdef Piece* grown
        if self._count == self._piece_room:
            room = max(2 * self._piece_room, <size_t>8)
            grown = <Piece*>realloc(self._pieces, room * sizeof(Piece))
            if grown == NULL:
                raise MemoryError
            self._pieces, self._piece_room = grown, room
        self._pieces[self._count].held = held
        self._pieces[self._count].start = 0
        self._pieces[self._count].length = length
        self._count += 1
        return 0

    cdef int add(self, buffer) except -1:
        """Any contiguous buffer; it must not change until it has left."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if view.len <= COPIED:
                memcpy(self.claim(view.len), view.buf, view.len)
            else:
                held = memoryview(buffer)  # keeps the exporter, whatever becomes of the caller's reference
                self.add_piece(<const uint8_t*>view.buf, view.len)
                self._kept.append(held)
                self.total += view.len
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int send(self, int fd) except -2:
        """0: all has left. 1: the socket takes no more now. -1: it is broken."""
        cdef iovec vectors[IOVECS]
        cdef msghdr message
        cdef ssize_t sent
        cdef size_t count
        while self.total:
            count = self.gather(vectors)
            if count == 1:  # as most small replies are; a message header costs the kernel two more copies
                sent = bare_send(fd, vectors[0].iov_base, vectors[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                memset(&message, 0, sizeof(message))
                message.msg_iov, message.msg_iovlen = vectors, count
                sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent < 0:
                if errno == EINTR:
                    continue
                return 1 if errno == EAGAIN else -1
            self.drop(sent)
        return 0

    cdef size_t gather(self, void* into) noexcept:
        cdef iovec* vectors = <iovec*>into
        cdef size_t index, count = min(self._count - self._first, <size_t>IOVECS)
        cdef Piece* piece
        for index in range(count):
            piece = self._pieces + self._first + index
            vectors[index].iov_base = <void*>(piece.held if piece.held != NULL else self._bytes + piece.start)
            vectors[index].iov_len = piece.length
        return count

    cdef int drop(self, size_t sent) except -1:
        cdef Piece* piece
        self.total -= sent
        while sent:
            piece = self._pieces + self._first
            if sent < piece.length:
                if piece.held != NULL:
                    piece.held += sent
                else:
                    piece.start += sent
                piece.length -= sent
                return 0
            sent -= piece.length
            if piece.held != NULL:
                self._kept.pop(0)
            self._first += 1
        if self.total == 0:
            self.clear()
        return 0

    cdef int clear(self) except -1:
        self._used = self._count = self._first = self.total = 0
        if self._kept:
            self._kept = []
        return 0

    cdef bytes joined(self):
        """A copy of all, which counts as sent."""
        cdef iovec vectors[IOVECS]
        cdef size_t index, count
        parts = []
        while self.total:
            count = self.gather(vectors)
            taken = b"".join([(<const char*>vectors[index].iov_base)[: vectors[index].iov_len] for index in range(count)])
            parts.append(taken)
            self.drop(len(taken))
        return b"".join(parts)
