"""Memory that several processes map: a sealed memfd, handed over by descriptor, gone with its last holder."""

from __future__ import annotations

import fcntl
import mmap
import os


def make_memory(name: str, size: int) -> int:
    """A descriptor of `size` zeroed bytes, read and write. Pages cost nothing until they are touched.

    Sealed against shrinking and growing (memfd_create(2)): no holder can make another one die of SIGBUS.
    name: for people who read /proc/PID/maps. Raises OSError.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int) -> mmap.mmap:
    """All of it, read and write. The map outlives the descriptor, of which Python keeps a copy in it."""
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)


def map_read_only(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)


def read_only_descriptor(descriptor: int) -> int:
    """The same memory by a new descriptor that cannot be mapped for writing (a copy by dup(2) could)."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
