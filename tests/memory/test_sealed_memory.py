"""Memory that processes share: its size is sealed, and a peer's descriptor cannot write."""

import mmap
import os

import pytest

from shardserver.memory.shared import make_memory, map_memory, map_read_only, read_only_descriptor


def test_what_one_map_writes_the_other_reads() -> None:
    descriptor = make_memory("test", 8192)
    with map_memory(descriptor) as ours, map_read_only(descriptor) as theirs:
        assert len(ours) == len(theirs) == 8192 and theirs[:] == bytes(8192)
        ours[4096:4101] = b"hello"
        assert theirs[4096:4101] == b"hello"
        with pytest.raises(TypeError):
            theirs[0:1] = b"x"
    os.close(descriptor)


def test_its_size_is_sealed() -> None:
    descriptor = make_memory("test", 8192)
    for size in (4096, 12288):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)


def test_a_read_only_descriptor_cannot_be_mapped_for_writing() -> None:
    descriptor = make_memory("test", 4096)
    shown = read_only_descriptor(descriptor)
    with pytest.raises(PermissionError):
        map_memory(shown)
    with pytest.raises(OSError):
        os.pwrite(shown, b"x", 0)
    with map_memory(descriptor) as ours, map_read_only(shown) as theirs:
        ours[0:1] = b"x"
        assert theirs[0:1] == b"x"
    os.close(descriptor)
    os.close(shown)


def test_no_descriptor_is_inherited() -> None:
    descriptor = make_memory("test", mmap.PAGESIZE)
    shown = read_only_descriptor(descriptor)
    assert not os.get_inheritable(descriptor) and not os.get_inheritable(shown)
    os.close(descriptor)
    os.close(shown)
