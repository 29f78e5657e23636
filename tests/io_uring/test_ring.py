"""What the ring does with the results a kernel may give: a scripted stand-in for the queues."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar

import pytest

from shardserver.errors import StorageError
from shardserver.io_uring import ring as compiled
from shardserver.io_uring import ring_python as plain
from shardserver.io_uring.open_file import OpenFile
from shardserver.io_uring.queues import Queues
from shardserver.memory.aligned import aligned_buffer

BLOCK = 4096


@dataclass
class Entry:
    kind: str
    position: int = 0
    data: bytes = b""
    key: int = 0
    link: bool = False
    skip: bool = False


@dataclass
class ScriptedQueues(Queues):
    """Executes writes on `content`. `writes` and `syncs` script results; then all succeeds. Order is shuffled."""

    writes: list[int] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)
    refusals: int = 0
    is_told: ClassVar[bool] = True  # there is somebody to tell when the write was taken
    silences_links: ClassVar[bool] = True
    content: bytearray = field(default_factory=bytearray)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.can_skip = True
        self.queue: list[Entry] = []
        self.done: list[tuple[int, int]] = []
        self.eventfd = -1
        self.chance = random.Random(1)

    def register_eventfd(self, descriptor: int) -> None:
        self.eventfd = descriptor

    def push_write(
        self, descriptor: int, buffers: list[memoryview], position: int, key: int, link: bool, skip: bool
    ) -> None:
        self.queue.append(Entry("write", position, b"".join(buffers), key, link, skip))

    def push_sync(self, descriptor: int, key: int) -> None:
        self.queue.append(Entry("sync", key=key))

    def submit(self) -> int:
        if self.refusals:
            self.refusals -= 1
            return len(self.queue)
        broken = silent = False
        for entry in self.queue:
            result = self._execute(entry) if not broken else -errno.ECANCELED
            is_told = not (broken and silent) and not (entry.skip and result == len(entry.data))
            broken = entry.link and result != len(entry.data)
            silent = entry.skip and self.silences_links
            self.log.append(f"{entry.kind} {result}")
            if is_told:
                self.done.append((entry.key, result))
        self.queue.clear()
        self.chance.shuffle(self.done)
        os.eventfd_write(self.eventfd, 1)
        return 0

    def _execute(self, entry: Entry) -> int:
        if entry.kind == "sync":
            return self.syncs.pop(0) if self.syncs else 0
        result = self.writes.pop(0) if self.writes else len(entry.data)
        taken = entry.data[: max(0, result)]
        self.content[entry.position : entry.position + len(taken)] = taken
        return result

    def next_completion(self) -> bool:
        if not self.done:
            return False
        self.key, self.result = self.done.pop(0)
        return True

    def close(self) -> None: ...


@pytest.fixture(params=["told", "skipped", "skipped, links not"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedQueues, "is_told", request.param == "told")
    monkeypatch.setattr(ScriptedQueues, "silences_links", request.param != "skipped, links not")


@pytest.fixture(params=[compiled, plain], ids=["compiled", "plain"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


def run(module: ModuleType, script: ScriptedQueues, *, sync: bool, blocks: int = 4) -> None:
    """Write `blocks` blocks in two buffers. Raises what the future raised."""
    marks: list[str] = []

    async def body() -> None:
        ring = module.Ring(asyncio.get_running_loop(), script)
        data = aligned_buffer(blocks * BLOCK)
        data[:] = bytes(range(256)) * (blocks * 16)
        file = OpenFile("f", True, 0)
        parts = [data[: 3 * BLOCK], data[3 * BLOCK :]]
        on_written = (lambda: marks.append("written")) if script.is_told else None
        outcome = ring.write(file, 0, parts, sync, on_written)
        assert file.in_flight == ring.in_flight == 1
        try:
            assert await outcome == len(data)
        finally:
            await ring.close()
            assert ring.open_entries == ring.in_flight == file.in_flight == 0
        assert script.content == data

    asyncio.run(body())
    assert marks == ["written"] * script.is_told


def test_write_and_sync_are_one_submission(module: ModuleType) -> None:
    script = ScriptedQueues()
    run(module, script, sync=True)
    assert script.log == ["write 16384", "sync 0"]


def test_a_short_write_goes_on_at_a_whole_block_with_a_new_sync(module: ModuleType) -> None:
    script = ScriptedQueues(writes=[BLOCK + 512])
    run(module, script, sync=True)
    assert script.log == ["write 4608", f"sync {-errno.ECANCELED}", "write 12288", "sync 0"]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR])
def test_an_interrupted_write_is_made_again(module: ModuleType, number: int) -> None:
    script = ScriptedQueues(writes=[-number, 2 * BLOCK, -number])
    run(module, script, sync=True)
    assert script.log[-2:] == ["write 8192", "sync 0"]


def test_a_cancelled_or_interrupted_sync_is_made_again_alone(module: ModuleType) -> None:
    script = ScriptedQueues(syncs=[-errno.EINTR, -errno.ECANCELED])
    run(module, script, sync=True)
    assert script.log == ["write 16384", f"sync {-errno.EINTR}", f"sync {-errno.ECANCELED}", "sync 0"]


def test_a_failed_sync_is_never_made_again(module: ModuleType) -> None:
    script = ScriptedQueues(syncs=[-errno.EIO])
    with pytest.raises(StorageError, match="sync f") as error:
        run(module, script, sync=True)
    assert error.value.errno == errno.EIO and script.log.count(f"sync {-errno.EIO}") == 1 and len(script.log) == 2


def test_a_failed_write_fails_once_and_nothing_is_synced(module: ModuleType) -> None:
    script = ScriptedQueues(writes=[-errno.EIO])
    with pytest.raises(StorageError, match="write f"):
        run(module, script, sync=True)
    assert script.log == [f"write {-errno.EIO}", f"sync {-errno.ECANCELED}"]


def test_a_device_that_takes_no_whole_block_is_an_error_and_no_endless_loop(module: ModuleType) -> None:
    script = ScriptedQueues(writes=[512, 512, 512])
    with pytest.raises(StorageError):
        run(module, script, sync=False)
    assert script.log == ["write 512"]


def test_entries_that_the_kernel_does_not_take_now_are_handed_in_again(module: ModuleType) -> None:
    script = ScriptedQueues(refusals=2)
    run(module, script, sync=True)
    assert script.log == ["write 16384", "sync 0"] and script.refusals == 0
