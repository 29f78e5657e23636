"""An arena of a process that shares its memory with nobody: tests, and a single shard."""

from __future__ import annotations

import mmap

from shardserver.memory.aligned import PAGE_BYTES, align_up
from shardserver.memory.arena import Arena


def heap_arena(size: int) -> Arena:
    """An arena of at least `size` bytes beside its board, in anonymous memory that is committed when first touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return Arena(mmap.mmap(-1, PAGE_BYTES + align_up(size, PAGE_BYTES), flags=flags))
