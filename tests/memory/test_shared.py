"""Memory handed over by descriptor: what a peer can and cannot do with it."""

import mmap
import os
from collections.abc import Iterator

import pytest

from shardserver.memory.shared import make_memory, map_memory, map_read_only, read_only_descriptor

SIZE = 3 * 4096


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = make_memory("test", SIZE)
    yield made
    os.close(made)


def test_what_the_owner_writes_a_peer_reads(descriptor: int) -> None:
    lent = read_only_descriptor(descriptor)
    with map_memory(descriptor) as own, map_read_only(lent) as peers:
        assert peers[:] == bytes(SIZE)
        own[5000:5003] = b"abc"
        assert peers[5000:5003] == b"abc"
        with pytest.raises(TypeError):
            peers[0] = 1
    os.close(lent)


def test_a_peers_descriptor_cannot_be_mapped_writable(descriptor: int) -> None:
    lent = read_only_descriptor(descriptor)
    with pytest.raises(PermissionError):
        map_memory(lent)
    with pytest.raises(PermissionError):
        mmap.mmap(lent, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError):
        os.write(lent, b"x")
    os.close(lent)


def test_nobody_can_change_its_size(descriptor: int) -> None:
    lent = read_only_descriptor(descriptor)
    for one in (descriptor, lent):
        for size in (0, SIZE - 4096, SIZE + 4096):
            with pytest.raises(OSError):
                os.ftruncate(one, size)
    assert os.fstat(descriptor).st_size == SIZE
    os.close(lent)


def test_descriptors_do_not_pass_to_other_programs(descriptor: int) -> None:
    lent = read_only_descriptor(descriptor)
    assert not os.get_inheritable(descriptor) and not os.get_inheritable(lent)
    os.close(lent)


def test_a_map_outlives_its_descriptor() -> None:
    made = make_memory("test", SIZE)
    mapped = map_memory(made)
    os.close(made)
    mapped[0] = 7
    assert mapped[0] == 7
    mapped.close()


def test_a_size_that_cannot_be_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        make_memory("test", -1)
    assert len(os.listdir("/proc/self/fd")) == before
