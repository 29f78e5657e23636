"""What storage/disk.py promises, on each engine: io_uring, threads, both without O_DIRECT, and the fault model."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shardserver.errors import DiskFullError, StorageError
from shardserver.io_uring.group import SyncsEnd, write_group
from shardserver.io_uring.queues import unsupported_reason
from shardserver.io_uring.ring import ENTRIES
from shardserver.io_uring.threads import GROUP_IN_FLIGHT_BYTES, GROUP_THREADS, ThreadDisk, split_group
from shardserver.io_uring.uring_disk import UringDisk
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage.disk import ALL, Act, GroupWrite, Step
from tests.fault_disk import FaultDisk

BLOCK = 4096
Check = Callable[[Any, str], Awaitable[None]]


def pattern(blocks: int, seed: int = 0) -> memoryview:
    buffer = aligned_buffer(blocks * BLOCK)
    for block in range(blocks):
        buffer[block * BLOCK : (block + 1) * BLOCK] = bytes([(seed + block) % 251 + 1]) * BLOCK
    return buffer


def make_engine(kind: str) -> Any:
    if kind.startswith("io_uring"):
        reason = unsupported_reason()
        if reason:
            pytest.skip(reason)
        return UringDisk()
    return FaultDisk(7) if kind == "fault" else ThreadDisk()


@pytest.fixture(params=["io_uring", "threads", "io_uring without O_DIRECT", "threads without O_DIRECT", "fault"])
def check(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Check], None]:
    """Runs an async check with (disk, directory) on a loop of its own."""
    if "without" in request.param:
        monkeypatch.setattr(os, "O_DIRECT", 0)

    def run(body: Check) -> None:
        async def whole() -> None:
            disk = make_engine(request.param)
            await disk.make_directory(str(tmp_path / "d"))
            await body(disk, str(tmp_path / "d"))
            await disk.shut_down()

        asyncio.run(whole())

    return run


def test_what_was_written_is_read_back(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        file = await disk.open(f"{directory}/a", create=True)
        data = pattern(8)
        order: list[str] = []
        await disk.write(file, BLOCK, [data[: 3 * BLOCK], data[3 * BLOCK :]], on_written=lambda: order.append("w"))
        await disk.write(file, 0, [pattern(1, 99)], sync=True, on_written=lambda: order.append("w"))
        assert order == ["w", "w"]
        found = aligned_buffer(16 * BLOCK)
        assert await disk.read(file, 0, found) == 9 * BLOCK == await disk.file_bytes(file)
        assert found[:BLOCK] == pattern(1, 99) and found[BLOCK : 9 * BLOCK] == data
        assert await disk.read(file, 8 * BLOCK, found[:BLOCK]) == BLOCK
        assert await disk.read(file, 32 * BLOCK, found[:BLOCK]) == 0
        await disk.close(file)

    check(body)


def test_more_buffers_than_one_call_takes(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        file = await disk.open(f"{directory}/a", create=True)
        one, count = pattern(1, 3), 1500
        called: list[int] = []
        await disk.write(file, 0, [one] * count, sync=True, on_written=lambda: called.append(1))
        assert called == [1] and await disk.file_bytes(file) == count * BLOCK
        found = aligned_buffer(BLOCK)
        for block in (0, 1023, 1024, count - 1):
            assert await disk.read(file, block * BLOCK, found) == BLOCK and found == one
        await disk.close(file)

    check(body)


def test_many_operations_at_once_all_end(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        file = await disk.open(f"{directory}/a", create=True)
        count = 3 * ENTRIES
        blocks = [pattern(1, number) for number in range(count)]
        await asyncio.gather(*(disk.write(file, n * BLOCK, [blocks[n]], sync=n % 3 == 0) for n in range(count)))
        await disk.sync(file)
        found = aligned_buffer(count * BLOCK)
        assert await disk.read(file, 0, found) == count * BLOCK
        assert all(found[n * BLOCK : (n + 1) * BLOCK] == blocks[n] for n in range(count))
        await disk.close(file)

    check(body)


def test_a_cancelled_write_still_lands_and_harms_nothing(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        file = await disk.open(f"{directory}/a", create=True)
        disk.write(file, 0, [pattern(4)], sync=True).cancel()
        await disk.write(file, 4 * BLOCK, [pattern(1, 9)], sync=True)
        await disk.close(file)
        again = await disk.open(f"{directory}/a")
        found = aligned_buffer(5 * BLOCK)
        assert await disk.read(again, 0, found) == 5 * BLOCK
        assert found[4 * BLOCK :] == pattern(1, 9)
        await disk.close(again)

    check(body)


def test_a_close_waits_for_what_was_started_before(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        file = await disk.open(f"{directory}/a", create=True)
        await disk.write(file, 0, [pattern(64)])
        found = [aligned_buffer(64 * BLOCK) for _ in range(20)]
        reads = [disk.read(file, 0, one) for one in found]
        closed = disk.close(file)
        # A descriptor that is closed too early is given to the next file, and the reads would see that one.
        other = await disk.open(f"{directory}/b", create=True)
        assert await asyncio.gather(*reads) == [64 * BLOCK] * 20
        await closed
        assert all(one == found[0] == pattern(64) for one in found)
        await disk.close(other)

    check(body)


def test_names(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        await disk.close(await disk.open(f"{directory}/a", create=True))
        with pytest.raises(StorageError) as exists:
            await disk.open(f"{directory}/a", create=True)
        assert exists.value.errno == errno.EEXIST
        with pytest.raises(StorageError) as missing:
            await disk.open(f"{directory}/b")
        assert missing.value.errno == errno.ENOENT
        await disk.close(await disk.open(f"{directory}/b", create=True))
        await disk.rename(f"{directory}/a", f"{directory}/b")
        assert await disk.list_directory(directory) == ["b"]
        await disk.sync_directory(directory)
        await disk.unlink(f"{directory}/b")
        await disk.unlink(f"{directory}/b")
        await disk.remove_directory(f"{directory}/gone")

    check(body)


def test_truncate_cuts_and_grows_with_zeros(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        file = await disk.open(f"{directory}/a", create=True)
        await disk.write(file, 0, [pattern(4)], sync=True)
        await disk.truncate(file, BLOCK)
        assert await disk.file_bytes(file) == BLOCK
        await disk.truncate(file, 3 * BLOCK)
        found = aligned_buffer(3 * BLOCK)
        assert await disk.read(file, 0, found) == 3 * BLOCK
        assert found[:BLOCK] == pattern(1) and not any(found[BLOCK:])
        await disk.close(file)

    check(body)


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_no_room_is_an_error_of_its_own(kind: str) -> None:
    async def body() -> None:
        disk = make_engine(kind)
        full = await disk.open("/dev/full", direct=False, lock=False)
        with pytest.raises(DiskFullError) as error:
            await disk.write(full, 0, [pattern(1)], sync=True)
        assert error.value.errno == errno.ENOSPC
        assert await disk.free_bytes("/") > 0
        await disk.close(full)
        await disk.shut_down()

    asyncio.run(body())


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_a_lock_is_held_until_close_and_the_next_opener_waits_for_it(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        disk, path = make_engine(kind), str(tmp_path / "a")
        file = await disk.open(path, create=True)
        other = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiting = disk.open(path)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await disk.close(file)
        await disk.close(await waiting)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        await disk.shut_down()

    asyncio.run(body())


def test_a_group_is_written_and_an_error_is_of_its_file_alone(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        files = [await disk.open(f"{directory}/{name}", create=True) for name in "abc"]
        parts = [[pattern(2, number), pattern(1, number + 3)] for number in range(3)]
        group = [(file, BLOCK * number, parts[number]) for number, file in enumerate(files)]
        assert await disk.write_group(group) == [None, None, None]
        found = aligned_buffer(3 * BLOCK)
        for number, file in enumerate(files):
            assert await disk.read(file, BLOCK * number, found) == 3 * BLOCK
            assert found == b"".join(parts[number])
        assert await disk.write_group([]) == []
        for file in files:
            await disk.close(file)

    check(body)


def test_steps_make_names_and_files_and_a_failed_one_ends_its_chain_alone(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        await disk.close(await disk.open(f"{directory}/there", create=True))
        blocks = [pattern(1, 1), pattern(2, 2), pattern(1, 3)]
        parents = [f"{directory}/{chain}" for chain in range(3)]
        steps = [Step(Act.REMOVE_DIRECTORY, 0, one) for one in (directory, parents[0])]  # one is not empty, one missing
        steps += [Step(Act.MAKE_DIRECTORY, chain, one) for chain, one in enumerate(parents)]
        steps += [Step(Act.MAKE_DIRECTORY, 0, parents[0]), Step(Act.UNLINK, 0, f"{parents[0]}/none")]
        steps += [Step(Act.SYNC_DIRECTORY, ALL, directory)]
        steps += [Step(Act.CREATE, chain, f"{parents[chain]}/a", blocks[chain]) for chain in range(3)]
        steps += [Step(Act.CREATE, 1, f"{directory}/there", blocks[1])]
        steps += [Step(Act.SYNC, chain, f"{parents[chain]}/a") for chain in range(3)]
        steps += [Step(Act.CLOSE, 0, f"{parents[0]}/a")]
        steps += [Step(Act.RENAME, chain, f"{directory}/{chain}/a", f"{directory}/{chain}/b") for chain in (0, 1)]
        steps += [Step(Act.SYNC_DIRECTORY, chain, one) for chain, one in enumerate(parents)]
        errors, has_failed_sync, files = await disk.do_steps(3, steps)
        assert [one and one.errno for one in errors] == [None, errno.EEXIST, None] and not has_failed_sync
        assert list(files) == [f"{parents[2]}/a"] and files[f"{parents[2]}/a"].path == f"{parents[2]}/a"
        found = aligned_buffer(2 * BLOCK)
        assert await disk.read(files[f"{parents[2]}/a"], 0, found) == BLOCK and found[:BLOCK] == blocks[2]
        await disk.close(files[f"{parents[2]}/a"])
        assert [await disk.list_directory(one) for one in parents] == [["b"], ["a"], ["a"]]
        for path, data in ((f"{parents[0]}/b", blocks[0]), (f"{parents[1]}/a", blocks[1])):
            file = await disk.open(path)  # nobody has kept its lock
            assert await disk.read(file, 0, found) == len(data) and found[: len(data)] == data
            await disk.close(file)

    check(body)


def test_a_step_of_all_chains_that_fails_ends_them_all(check: Callable[[Check], None]) -> None:
    async def body(disk: Any, directory: str) -> None:
        steps = [Step(Act.CREATE, chain, f"{directory}/{chain}", pattern(1)) for chain in (0, 1)]
        steps += [Step(Act.CREATE, 1, f"{directory}/0", pattern(1))]
        steps += [Step(Act.RENAME, ALL, f"{directory}/none/a", f"{directory}/none/b")]
        steps += [Step(Act.UNLINK, chain, f"{directory}/{chain}") for chain in (0, 1)]
        steps += [Step(Act.UNLINK, ALL, f"{directory}/0")]
        if isinstance(disk, FaultDisk):
            disk._fail_at = disk.operations + 2 * 2 + 1 + 1  # a rename of what is missing is fine there
        errors, _, files = await disk.do_steps(2, steps)
        assert errors[0] is not None and errors[1].errno == errno.EEXIST and "rename" in str(errors[0]) and files == {}
        assert await disk.list_directory(directory) == ["0", "1"]
        await disk.close(await asyncio.wait_for(disk.open(f"{directory}/0"), 10))
        assert await disk.do_steps(0, []) == ([], False, {})

    check(body)


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_a_sync_that_failed_ends_all_chains_and_is_told(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        disk = make_engine(kind)
        steps = [Step(Act.CREATE, 1, f"{tmp_path}/made", pattern(1))]
        steps += [Step(Act.SYNC_DIRECTORY, 0, f"{tmp_path}/none"), Step(Act.UNLINK, 1, f"{tmp_path}/made")]
        errors, has_failed_sync, files = await disk.do_steps(2, steps)
        assert [one and one.errno for one in errors] == [errno.ENOENT] * 2 and has_failed_sync and files == {}
        await disk.close(await asyncio.wait_for(disk.open(f"{tmp_path}/made"), 10))  # nobody has kept its lock
        await disk.shut_down()

    asyncio.run(body())


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_a_group_with_no_room_in_one_file_writes_the_others(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        disk = make_engine(kind)
        full = await disk.open("/dev/full", direct=False, lock=False)
        good = await disk.open(str(tmp_path / "good"), create=True)
        group = [(full, 0, [pattern(1)]), (good, 0, [pattern(1, 5)]), (full, BLOCK, [pattern(1), pattern(1)])]
        errors = await disk.write_group(group)
        assert [type(one) for one in errors] == [DiskFullError, type(None), DiskFullError]
        assert errors[0].errno == errno.ENOSPC and await disk.file_bytes(good) == BLOCK
        for file in (full, good):
            await disk.close(file)
        await disk.shut_down()

    asyncio.run(body())


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_a_sync_that_failed_ends_its_group(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        disk = make_engine(kind)
        files = [await disk.open(str(tmp_path / name), create=True) for name in "ab"]
        files.insert(1, await disk.open("/dev/null", direct=False, lock=False))  # takes writes, has no fdatasync
        size = GROUP_IN_FLIGHT_BYTES // BLOCK  # so large that one thread writes all of them
        errors = await disk.write_group([(file, 0, [pattern(size)]) for file in files])
        assert [one and one.errno for one in errors] == [None, errno.EINVAL, errno.ECANCELED]
        end = SyncsEnd()  # that of several threads
        parts = [write_group([(file.descriptor, 0, [pattern(1)])], end) for file in files]
        assert parts == [[0], [errno.EINVAL], [errno.ECANCELED]]
        for file in files:
            await disk.close(file)
        await disk.shut_down()

    asyncio.run(body())


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_each_file_of_a_large_group_gets_its_bytes_and_its_own_error(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        disk = make_engine(kind)
        full = [await disk.open("/dev/full", direct=False, lock=False) for _ in range(2)]
        files = [await disk.open(str(tmp_path / str(number)), create=True) for number in range(9)]
        files[1:1], files[7:7] = full[:1], full[1:]
        errors = await disk.write_group([(file, 0, [pattern(1, number)]) for number, file in enumerate(files)])
        assert [error is not None for error in errors] == [file in full for file in files]
        for number, file in enumerate(files):
            if file not in full:
                found = aligned_buffer(BLOCK)
                assert await disk.read(file, 0, found) == BLOCK and found == pattern(1, number)
            await disk.close(file)
        await disk.shut_down()

    asyncio.run(body())


def sized(*sizes: int) -> list[GroupWrite]:
    return [(object(), number, [aligned_buffer(size)]) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 63, 64])
def test_a_group_is_split_among_threads_and_neighbours_stay_together(count: int) -> None:
    group = sized(*[BLOCK] * count)
    parts = split_group(group)
    assert [one for part in parts for one in part] == group
    assert len(parts) <= GROUP_THREADS and (count < GROUP_THREADS or max(map(len, parts)) <= -(-count // 3))


@pytest.mark.parametrize(("size", "threads"), [(256 << 10, 4), (512 << 10, 2), (1 << 20, 1), (4 << 20, 1)])
def test_threads_have_a_mebibyte_of_a_group_in_flight_together(size: int, threads: int) -> None:
    assert len(split_group(sized(*[BLOCK] * 7, size))) == threads
