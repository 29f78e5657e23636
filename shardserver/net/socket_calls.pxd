# cython: language_level=3
"""send and recv as bare system calls. Those of libc let a thread be cancelled in them, which nobody does here: preparing
for it takes a fiftieth of a small request.
"""

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static inline ssize_t bare_recv(int fd, void *buffer, size_t length, int flags)
    {
        return syscall(SYS_recvfrom, fd, buffer, length, flags, NULL, NULL);
    }

    static inline ssize_t bare_send(int fd, const void *data, size_t length, int flags)
    {
        return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
    }
    """
    ssize_t bare_recv(int fd, void* buffer, size_t length, int flags) noexcept nogil
    ssize_t bare_send(int fd, const void* data, size_t length, int flags) noexcept nogil
