"""What a cut leaves of the volatile tree: all that was synced, any part of the rest, and no mixture that cannot be."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.powercut.fuse import MountError
from tests.powercut.fuse_image import FuseImage
from tests.powercut.volatile_tree import BLOCK_BYTES, Directory, File, VolatileTree

SEEDS = range(200)


def tree_with_file(content: bytes = b"") -> tuple[VolatileTree, File]:
    """Its name is durable, its content is not."""
    tree, file = VolatileTree(), File(0o100600)
    tree.change((tree.root, "a", file))
    tree.sync(tree.root)
    file.write(0, memoryview(content))
    return tree, file


def test_synced_bytes_and_names_survive_every_cut() -> None:
    for seed in SEEDS:
        tree, file = tree_with_file(b"x" * 10_000)
        tree.sync(file)
        file.write(BLOCK_BYTES, memoryview(b"y" * BLOCK_BYTES))
        tree.cut(random.Random(seed))
        assert tree.root.current == {"a": file}
        assert bytes(file.current[:BLOCK_BYTES]) == b"x" * BLOCK_BYTES
        assert bytes(file.current[2 * BLOCK_BYTES :]) == b"x" * (10_000 - 2 * BLOCK_BYTES)


def test_unsynced_blocks_are_kept_lost_and_torn() -> None:
    left = set()
    for seed in SEEDS:
        tree, file = tree_with_file(bytes(2 * BLOCK_BYTES))
        tree.sync(file)
        file.write(0, memoryview(b"y" * 2 * BLOCK_BYTES))
        tree.cut(random.Random(seed))
        left |= {file.current[place : place + BLOCK_BYTES].count(b"y") for place in (0, BLOCK_BYTES)}
        assert len(file.current) == 2 * BLOCK_BYTES
    assert {0, BLOCK_BYTES} < left


def test_an_unsynced_length_is_the_old_one_or_the_new_one() -> None:
    lengths = set()
    for seed in SEEDS:
        tree, file = tree_with_file(b"x" * 5000)
        tree.sync(file)
        file.resize(100)
        file.resize(9000)
        tree.cut(random.Random(seed))
        lengths.add(len(file.current))
        assert set(bytes(file.current[100:])) <= set(b"x\0")
    assert lengths == {5000, 9000}


def test_a_rename_is_kept_or_lost_as_one_and_an_unsynced_name_may_be_gone() -> None:
    seen = set()
    for seed in SEEDS:
        tree, _ = tree_with_file()
        target = Directory()
        tree.change((tree.root, "d", target))
        tree.sync(tree.root)
        tree.rename(tree.root, "a", target, "b")
        tree.change((tree.root, "c", File(0o100600)))
        tree.cut(random.Random(seed))
        assert ("a" in tree.root.current) != ("b" in target.current)
        seen.add(("a" in tree.root.current, "c" in tree.root.current))
    assert len(seen) == 4


def test_a_real_mount_serves_direct_writes_locks_and_names_until_its_power_goes(tmp_path: Path) -> None:
    image = FuseImage(tmp_path / "mounted")
    image.create()
    try:
        try:
            image.mount()
        except MountError as error:
            pytest.skip(f"no FUSE mount: {error}")
        use(image.directory)
        image.cut(1)
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(image.directory)
        image.remount()
        assert os.listdir(image.directory) == ["d"]
        assert (image.directory / "d" / "new").read_bytes() == b"a" * (1 << 20)
    finally:
        image.unmount()
    assert not os.path.ismount(image.directory)


def use(directory: Path) -> None:
    """Makes d/new, all synced, by ways that the server goes."""
    (directory / "d").mkdir()
    file = os.open(directory / "d" / "old", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    buffer = mmap.mmap(-1, 1 << 20)
    buffer[:] = b"a" * len(buffer)
    assert os.pwrite(file, buffer, 0) == os.fstat(file).st_size == len(buffer)
    os.fdatasync(file)
    os.close(file)
    os.rename(directory / "d" / "old", directory / "d" / "new")
    for path in (directory / "d", directory):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
