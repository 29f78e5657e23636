"""Memory on huge pages: the same bytes for everybody, below blocks that ask for it, never more than is used."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardserver.memory.arena import Arena
from shardserver.memory.huge_memory import HugeMemory
from shardserver.memory.shared import make_memory, map_read_only, read_only_descriptor

MIB = 1 << 20
HUGE, AHEAD = 2 * MIB, 2
SIZE = 32 * MIB
LARGE = MIB
MADV_COLLAPSE = 25


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = make_memory("huge", SIZE)
    yield made
    os.close(made)


@pytest.fixture
def memory(descriptor: int) -> Iterator[HugeMemory]:
    made = HugeMemory(descriptor)
    made.start()
    yield made
    made.stop()


def resident_bytes(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


def huge_mapped_bytes() -> int:
    found = re.search(r"ShmemPmdMapped: *(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) * 1024 if found else 0


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def gives_huge_pages() -> bool:
    """Whether this kernel does, for memory like this: asked without the code under test but for its alignment."""
    made = make_memory("probe", HUGE)
    view = memoryview(HugeMemory(made))
    view[0] = 1
    start = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view)))
    found = ctypes.CDLL(None).madvise(start, ctypes.c_size_t(HUGE), MADV_COLLAPSE) == 0
    os.close(made)
    return found


# Before Linux 6.1, with `shmem_enabled` at deny, or without free memory in one piece there are none to be seen.
needs_huge_pages = pytest.mark.skipif(not gives_huge_pages(), reason="the kernel gives no huge pages")


def test_it_is_a_buffer_of_the_descriptors_bytes_and_begins_where_huge_pages_can(descriptor: int) -> None:
    memory = memoryview(HugeMemory(descriptor))
    assert len(memory) == SIZE and not memory.readonly
    memory[5 * MIB] = 7
    assert os.pread(descriptor, 1, 5 * MIB) == b"\x07"
    start = next(
        int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:huge" in line
    )
    assert start % HUGE == 0


def test_its_mapping_goes_with_the_last_view(descriptor: int) -> None:
    view = memoryview(HugeMemory(descriptor))[MIB:]
    view[0] = 1
    assert "memfd:huge" in Path("/proc/self/maps").read_text()
    view.release()
    assert "memfd:huge" not in Path("/proc/self/maps").read_text()


def test_what_cannot_be_mapped_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    with path.open("rb") as file, pytest.raises(OSError):
        HugeMemory(file.fileno())


@needs_huge_pages
def test_blocks_come_to_lie_in_huge_pages_with_what_they_and_their_peers_see(
    memory: HugeMemory, descriptor: int
) -> None:
    peer = map_read_only(read_only_descriptor(descriptor))
    arena = Arena(memory)
    blocks = [arena.copy(bytes([number + 1]) * LARGE) for number in range(20)]
    for block in blocks:
        arena.use_huge_pages(block)
    assert wait_for(lambda: memory.huge_bytes >= 8 * MIB)
    assert huge_mapped_bytes() >= 8 * MIB
    for number, block in enumerate(blocks):
        expected = bytes([number + 1]) * LARGE
        assert bytes(memoryview(block)) == expected
        assert peer[block.position : block.position + LARGE] == expected


@needs_huge_pages
def test_no_more_memory_is_taken_than_a_little_ahead_of_what_is_used(memory: HugeMemory, descriptor: int) -> None:
    arena = Arena(memory)
    used = [arena.allocate(LARGE) for _ in range(20)]
    for block in used:
        arena.use_huge_pages(block)
    end = max(block.position for block in used if block.position < SIZE // 2) + LARGE
    assert wait_for(lambda: memory.huge_bytes >= end)
    time.sleep(0.05)  # for what must not come
    assert memory.huge_bytes <= end + AHEAD * HUGE
    assert resident_bytes(descriptor) <= end + (AHEAD + 1) * HUGE


@needs_huge_pages
def test_blocks_that_ask_for_none_get_none(memory: HugeMemory) -> None:
    arena = Arena(memory)
    blocks = [arena.allocate(LARGE) for _ in range(20)]
    time.sleep(0.05)  # for what must not come
    assert len(blocks) == 20 and memory.huge_bytes == 0


def test_its_thread_runs_when_the_core_has_nothing_else_to_do(descriptor: int) -> None:
    before = set(threading.enumerate())
    memory = HugeMemory(descriptor)
    memory.start()
    (thread,) = set(threading.enumerate()) - before
    number = thread.native_id
    assert number is not None
    # This thread alone is asked: one that was joined before may be in the kernel's list for a moment more.
    assert wait_for(lambda: os.sched_getscheduler(number) == os.SCHED_IDLE)
    memory.stop()


def test_without_its_thread_the_arena_serves(descriptor: int) -> None:
    memory = HugeMemory(descriptor)
    arena = Arena(memory)
    blocks = [arena.copy(bytes([number]) * LARGE) for number in range(20)]
    for block in blocks:
        arena.use_huge_pages(block)
    assert memory.huge_bytes == 0
    assert all(bytes(memoryview(block)) == bytes([number]) * LARGE for number, block in enumerate(blocks))
