"""How a file goes: its name first, then its bytes a mebibyte at a time, and only those that no name leads to."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from shardserver.io_uring.removal import remove_file

MIB = 1 << 20
MOST_TRIES = 50


def make_file(path: Path, size: int) -> int:
    """Without a block. Gives an open descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, size)
    return descriptor


def size_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


def sizes_during_removal(path: Path, size: int) -> set[int]:
    """Of a file, as one who has it open sees them; checks each time that what is shorter has no name."""
    descriptor = make_file(path, size)
    removal = threading.Thread(target=remove_file, args=(str(path),))
    removal.start()
    sizes = set()
    while removal.is_alive():
        now = size_of(descriptor)
        assert now == size or not path.exists()
        sizes.add(now)
    removal.join()
    assert not path.exists() and size_of(descriptor) == MIB  # the rest goes with the last descriptor
    os.close(descriptor)
    return sizes


def test_a_large_file_loses_its_name_and_then_a_mebibyte_at_a_time(tmp_path: Path) -> None:
    size, between = 16384 * MIB + 4096, set[int]()
    for _ in range(MOST_TRIES):
        between |= sizes_during_removal(tmp_path / "a", size) - {size, MIB}
        if len(between) > 1:
            break
    assert len(between) > 1 and all(one % MIB == 0 for one in between)


@pytest.mark.parametrize("size", [0, 1, MIB])
def test_a_small_file_goes_with_its_name(tmp_path: Path, size: int) -> None:
    descriptor = make_file(tmp_path / "a", size)
    remove_file(str(tmp_path / "a"))
    assert not list(tmp_path.iterdir()) and size_of(descriptor) == size
    os.close(descriptor)


def test_a_file_with_another_name_keeps_its_bytes(tmp_path: Path) -> None:
    os.close(make_file(tmp_path / "a", 3 * MIB))
    os.link(tmp_path / "a", tmp_path / "b")
    remove_file(str(tmp_path / "a"))
    assert [one.name for one in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").stat().st_size == 3 * MIB


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    os.close(make_file(tmp_path / "a", 3 * MIB))
    (tmp_path / "b").symlink_to(tmp_path / "a")
    remove_file(str(tmp_path / "b"))
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").stat().st_size == 3 * MIB


def test_a_file_that_cannot_be_opened_goes_all_the_same(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a", 0o000)
    remove_file(str(tmp_path / "a"))
    remove_file(str(tmp_path / "a"))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_unlinked_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError) as refused:
        remove_file(str(tmp_path / "a"))
    assert refused.value.errno in (errno.EISDIR, errno.EPERM)
