"""liburing's calls and structures that the binding uses (liburing.h, io_uring(7))."""

from libc.stdint cimport uint64_t
from libc.stddef cimport size_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<linux/fs.h>" nogil:
    int RWF_DSYNC

cdef extern from "<liburing.h>" nogil:
    struct io_uring:
        unsigned features

    struct io_uring_sqe:
        uint64_t user_data
        unsigned char flags
        int rw_flags

    struct io_uring_cqe:
        uint64_t user_data
        int res

    struct io_uring_probe:
        pass

    unsigned IOSQE_IO_LINK
    unsigned IOSQE_CQE_SKIP_SUCCESS
    unsigned IORING_SETUP_COOP_TASKRUN
    unsigned IORING_FEAT_CQE_SKIP
    unsigned IORING_FEAT_SUBMIT_STABLE
    unsigned IORING_FSYNC_DATASYNC
    int IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC

    int io_uring_queue_init(unsigned entries, io_uring* ring, unsigned flags)
    void io_uring_queue_exit(io_uring* ring)
    int io_uring_register_eventfd(io_uring* ring, int descriptor)
    io_uring_sqe* io_uring_get_sqe(io_uring* ring)
    void io_uring_prep_read(io_uring_sqe* sqe, int descriptor, void* data, unsigned size, uint64_t offset)
    void io_uring_prep_write(io_uring_sqe* sqe, int descriptor, const void* data, unsigned size, uint64_t offset)
    void io_uring_prep_readv(io_uring_sqe* sqe, int descriptor, const iovec* vectors, unsigned count, uint64_t offset)
    void io_uring_prep_writev(io_uring_sqe* sqe, int descriptor, const iovec* vectors, unsigned count, uint64_t offset)
    void io_uring_prep_fsync(io_uring_sqe* sqe, int descriptor, unsigned flags)
    int io_uring_submit(io_uring* ring)
    unsigned io_uring_sq_ready(const io_uring* ring)
    unsigned io_uring_peek_batch_cqe(io_uring* ring, io_uring_cqe** entries, unsigned count)
    void io_uring_cq_advance(io_uring* ring, unsigned count)
    io_uring_probe* io_uring_get_probe_ring(io_uring* ring)
    int io_uring_opcode_supported(const io_uring_probe* probe, int opcode)
    void io_uring_free_probe(io_uring_probe* probe)


cdef class Queues:
    cdef io_uring _ring
    cdef bint _open
    cdef list _vectors
    cdef public bint can_skip
    cdef public uint64_t key
    cdef public int result

    cpdef close(self)
    cpdef register_eventfd(self, int descriptor)
    cpdef push_read(self, int descriptor, list buffers, uint64_t position, uint64_t key)
    cpdef push_write(self, int descriptor, list buffers, uint64_t position, uint64_t key, bint link, bint skip, bint dsync)
    cpdef push_sync(self, int descriptor, uint64_t key)
    cpdef unsigned submit(self) except? 0xFFFFFFFF
    cpdef bint next_completion(self) except -1
    cdef io_uring_sqe* _entry(self) except NULL
    cdef iovec* _vector(self, list buffers, int access) except NULL
