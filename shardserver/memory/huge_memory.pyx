"""Shared memory on huge pages: the arena, whose batches are copied, hashed and written by megabytes.

In a page of 2 MiB a batch lies in one piece: a write of a mebibyte is one segment for the device instead of 256, and the
processor looks up one address instead of 512. Of shared memory the kernel gives such pages when it is asked for each,
MADV_COLLAPSE (madvise(2), Linux 6.1), unless `shmem_enabled` is `deny`, if the mapping begins at a multiple of 2 MiB.
That takes up to 5 ms a page on a virtual machine, so they are for large sends only, and a thread asks that runs
when its core has nothing else to do: a little ahead of what is used, or, under load, behind it; the kernel moves what is
there.

No twin: there is nothing but system calls, and whoever reads or writes the memory sees no difference.
"""

import contextlib
import os
import threading

from cpython.buffer cimport Py_buffer, PyBuffer_FillInfo
from libc.errno cimport EAGAIN, EBUSY, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t, uintptr_t

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* start, size_t length, int protection, int flags, int descriptor, long offset)
    int munmap(void* start, size_t length)
    int madvise(void* start, size_t length, int advice)
    void* MAP_FAILED
    enum:
        PROT_NONE
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
        MAP_SHARED
        MAP_FIXED

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned microseconds)

cdef extern from "<semaphore.h>" nogil:
    int sem_init(sem_t* semaphore, int shared, unsigned value)
    int sem_post(sem_t* semaphore)
    int sem_wait(sem_t* semaphore)
    int sem_destroy(sem_t* semaphore)

cdef extern from *:
    """
    #define huge_load(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define huge_store(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
    """
    uint64_t huge_load(uint64_t* place) nogil
    void huge_store(uint64_t* place, uint64_t value) nogil

cdef enum:
    MADV_POPULATE_WRITE = 23  # linux/mman.h
    MADV_COLLAPSE = 25
    PAGE = 4096
    AHEAD = 2  # huge pages
    # Where the kernel found somebody at a page, such as a write to disk, it is asked again, so often at most.
    ROUNDS = 100
    PAUSE_US = 100_000

cdef enum Outcome:
    MADE
    LATER
    NEVER


cdef class HugeMemory:
    """All of a descriptor's memory, to read and write: a buffer, mapped as long as it lives. The descriptor may be closed.

    huge_bytes: from its start on, so much was asked for.
    Raises OSError: it cannot be mapped.
    """

    def __cinit__(self, int descriptor):
        cdef size_t length = os.fstat(descriptor).st_size
        # Room for it and for a huge page before it; the rest is given back.
        cdef uint8_t* room = <uint8_t*>mmap(
            NULL, length + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if room == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        cdef size_t before = (HUGE - <uintptr_t>room % HUGE) % HUGE
        if mmap(room + before, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, 0) == MAP_FAILED:
            error = OSError(errno, os.strerror(errno))
            munmap(room, length + HUGE)
            raise error
        if before:
            munmap(room, before)
        munmap(room + before + length, HUGE - before)
        sem_init(&self._wake, 0, 0)
        self._start, self._length = room + before, length

    def __dealloc__(self):
        if self._start != NULL:
            sem_destroy(&self._wake)
            munmap(self._start, self._length)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._start, self._length, False, flags)

    @property
    def huge_bytes(self):
        return huge_load(&self._done)

    def start(self):
        """Have the thread. It keeps this memory until `stop`, or until the machine has no huge page for it."""
        self._thread = threading.Thread(target=self._run, name="huge pages", daemon=True)
        self._thread.start()

    def stop(self):
        huge_store(&self._stopped, 1)
        sem_post(&self._wake)
        if self._thread is not None:
            self._thread.join()

    cdef void use_up_to(self, uint64_t end) noexcept:
        """Something large lies in [0, end)."""
        if end > self._wanted:
            huge_store(&self._wanted, end)
            sem_post(&self._wake)

    cdef bint is_huge_up_to(self, uint64_t end) noexcept:
        return huge_load(&self._done) >= end

    def _run(self):
        with contextlib.suppress(OSError):  # of this thread alone
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with nogil:
            self.work()

    cdef void work(self) noexcept nogil:
        cdef uint64_t place = 0, skipped = self._length, end
        cdef int rounds = 0
        cdef Outcome outcome
        while not huge_load(&self._stopped):
            end = huge_load(&self._wanted)
            if end:
                end = min(end + AHEAD * HUGE, self._length)
            if place + HUGE <= end:
                outcome = collapse(self._start + place)
                if outcome == NEVER:
                    return
                if outcome == LATER:
                    skipped = min(skipped, place)
                place += HUGE
                huge_store(&self._done, max(self._done, place))
            elif skipped < place and rounds < ROUNDS:
                rounds += 1
                place, skipped = skipped, self._length
                usleep(PAUSE_US)
            else:
                sem_wait(&self._wake)  # interrupted: looked at again


cdef Outcome collapse(uint8_t* start) noexcept nogil:
    """Put a huge page there, with what is there."""
    if madvise(start, PAGE, MADV_POPULATE_WRITE) < 0:  # of nothing at all it makes nothing
        return NEVER
    if madvise(start, HUGE, MADV_COLLAPSE) == 0:
        return MADE
    return LATER if errno == EAGAIN or errno == EBUSY or errno == EINTR else NEVER
