"""Memory whose address suits O_DIRECT."""

from __future__ import annotations

import mmap

PAGE_BYTES = mmap.PAGESIZE


def aligned_buffer(size: int) -> memoryview:
    """Zeroed, writable, page-aligned memory of `size` bytes, rounded up to whole pages.

    The memory is released when the last view of it is gone.
    """
    pages = max(1, -(-size // PAGE_BYTES))
    return memoryview(mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def align_up(size: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit
