"""What the ring does with the results a kernel may give: a scripted stand-in for liburing."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from shardserver.errors import StorageError
from shardserver.io_uring import ring as module
from shardserver.io_uring.threads import OpenFile
from shardserver.memory.aligned import aligned_buffer

BLOCK = 4096
LINK = 4


@dataclass
class Entry:
    kind: str = ""
    position: int = 0
    data: bytes = b""
    key: int = 0
    flags: int = 0


@dataclass
class Completion:
    user_data: int
    result: int

    @property
    def res(self) -> int:
        if self.result < 0:
            raise OSError(-self.result, os.strerror(-self.result))
        return self.result


@dataclass
class ScriptedUring:
    """Executes writes on `content`. `writes` and `syncs` script results; then all succeeds. Order is shuffled."""

    writes: list[int] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    log: list[str] = field(default_factory=list)
    IOSQE_IO_LINK: int = LINK
    IORING_FSYNC_DATASYNC: int = 1

    def __post_init__(self) -> None:
        self.queue: list[Entry] = []
        self.done: list[Completion] = []
        self.eventfd = -1
        self.chance = random.Random(1)

    def Ring(self) -> object:
        return object()

    def Cqe(self) -> list[Completion]:
        return []

    def Iovec(self, buffers: list[memoryview]) -> list[memoryview]:
        return buffers

    def io_uring_queue_init(self, entries: int, ring: object) -> None: ...

    def io_uring_queue_exit(self, ring: object) -> None: ...

    def io_uring_register_eventfd(self, ring: object, descriptor: int) -> None:
        self.eventfd = descriptor

    def io_uring_get_sqe(self, ring: object) -> Entry:
        self.queue.append(Entry())
        return self.queue[-1]

    def io_uring_prep_writev(self, entry: Entry, fd: int, vector: list[memoryview], position: int, flags: int) -> None:
        entry.kind, entry.position, entry.data = "write", position, b"".join(vector)

    def io_uring_prep_fsync(self, entry: Entry, fd: int, flags: int) -> None:
        entry.kind = "sync"

    def io_uring_sqe_set_data64(self, entry: Entry, key: int) -> None:
        entry.key = key

    def io_uring_sqe_set_flags(self, entry: Entry, flags: int) -> None:
        entry.flags = flags

    def io_uring_submit(self, ring: object) -> int:
        broken = False
        for entry in self.queue:
            result = self._execute(entry) if not broken else -errno.ECANCELED
            broken = bool(entry.flags & LINK) and result != len(entry.data)
            self.log.append(f"{entry.kind} {result}")
            self.done.append(Completion(entry.key, result))
        self.queue.clear()
        self.chance.shuffle(self.done)
        os.eventfd_write(self.eventfd, 1)
        return len(self.done)

    def _execute(self, entry: Entry) -> int:
        if entry.kind == "sync":
            return self.syncs.pop(0) if self.syncs else 0
        result = self.writes.pop(0) if self.writes else len(entry.data)
        taken = entry.data[: max(0, result)]
        self.content[entry.position : entry.position + len(taken)] = taken
        return result

    def CqeIter(self, ring: object, cell: list[Completion]) -> Any:
        taken, self.done = self.done, []
        for number, one in enumerate(taken):
            cell[:] = [one]
            yield number

    def io_uring_cq_advance(self, ring: object, count: int) -> None: ...


def run(monkeypatch: pytest.MonkeyPatch, script: ScriptedUring, *, sync: bool, blocks: int = 4) -> list[str]:
    """Write `blocks` blocks in two buffers; gives the marks of on_written, or raises what the future raised."""
    monkeypatch.setattr(module, "uring", script)
    marks: list[str] = []

    async def body() -> None:
        ring = module.Ring(asyncio.get_running_loop())
        data = aligned_buffer(blocks * BLOCK)
        data[:] = bytes(range(256)) * (blocks * 16)
        outcome = asyncio.get_running_loop().create_future()
        file = OpenFile("f", True, 0)
        parts = [data[: 3 * BLOCK], data[3 * BLOCK :]]
        operation = module.make_operation(
            file, 0, parts, outcome, sync=sync, on_written=lambda: marks.append("written")
        )
        ring.start(operation)
        try:
            await outcome
        finally:
            await ring.close()
        assert script.content == data

    asyncio.run(body())
    return marks


def test_write_and_sync_are_one_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedUring()
    assert run(monkeypatch, script, sync=True) == ["written"]
    assert script.log == ["write 16384", "sync 0"]


def test_a_short_write_goes_on_at_a_whole_block_with_a_new_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedUring(writes=[BLOCK + 512])
    assert run(monkeypatch, script, sync=True) == ["written"]
    assert script.log == ["write 4608", f"sync {-errno.ECANCELED}", "write 12288", "sync 0"]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR])
def test_an_interrupted_write_is_made_again(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    script = ScriptedUring(writes=[-number, 2 * BLOCK, -number])
    assert run(monkeypatch, script, sync=True) == ["written"]
    assert script.log[-2:] == ["write 8192", "sync 0"]


def test_a_cancelled_or_interrupted_sync_is_made_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedUring(syncs=[-errno.EINTR, -errno.ECANCELED])
    assert run(monkeypatch, script, sync=True) == ["written"]
    assert script.log == ["write 16384", f"sync {-errno.EINTR}", f"sync {-errno.ECANCELED}", "sync 0"]


def test_a_failed_sync_is_never_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedUring(syncs=[-errno.EIO])
    with pytest.raises(StorageError, match="sync f") as error:
        run(monkeypatch, script, sync=True)
    assert error.value.errno == errno.EIO and script.log.count(f"sync {-errno.EIO}") == 1 and len(script.log) == 2


def test_a_failed_write_fails_once_and_nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedUring(writes=[-errno.EIO])
    with pytest.raises(StorageError, match="write f"):
        run(monkeypatch, script, sync=True)
    assert script.log == [f"write {-errno.EIO}", f"sync {-errno.ECANCELED}"]


def test_a_device_that_takes_no_whole_block_is_an_error_and_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedUring(writes=[512, 512, 512])
    with pytest.raises(StorageError):
        run(monkeypatch, script, sync=False)
    assert script.log == ["write 512"]
