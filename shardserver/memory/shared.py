"""Memory that processes share by descriptor: nothing in /dev/shm to leak, nothing that outlives its last user.

Its size is sealed, so no peer can shrink it under the others, who would die of SIGBUS. Peers get a read-only
descriptor: a stray write in a peer cannot reach it. It is a guard against bugs, not against a hostile process of the
same user, who can open it again through /proc.
"""

from __future__ import annotations

import fcntl
import mmap
import os


def make_memory(name: str, size: int) -> int:
    """A descriptor of zeroed, lazily committed memory of `size` bytes; close-on-exec. name: for /proc only.

    Raises OSError: no descriptor or no memory left. Source: memfd_create(2), fcntl(2) "File sealing".
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int) -> mmap.mmap:
    """All of it, to read and write. The map holds a duplicate of the descriptor; ours may be closed."""
    return mmap.mmap(descriptor, 0)


def map_read_only(descriptor: int) -> mmap.mmap:
    """All of it, to read. As map_memory."""
    return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)


def read_only_descriptor(descriptor: int) -> int:
    """A descriptor of the same memory for a peer, which can be mapped to read only."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
