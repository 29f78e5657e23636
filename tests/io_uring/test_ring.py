"""What the ring does with the results a kernel may give: a scripted stand-in for the queues."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    dsync: bool = False
    target: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass
class ScriptedQueues(Queues):
    """Executes on `content`. `writes`, `reads` and `syncs` script results; then all succeeds. Order is shuffled."""

    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
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
        self,
        descriptor: int,
        buffers: list[memoryview],
        position: int,
        key: int,
        link: bool,
        skip: bool,
        dsync: bool,
    ) -> None:
        self.queue.append(Entry("write", position, b"".join(buffers), key, link, skip, dsync))

    def push_read(self, descriptor: int, buffers: list[memoryview], position: int, key: int) -> None:
        self.queue.append(Entry("read", position, key=key, target=buffers[0]))

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
            self.log.append(f"{entry.kind}{' dsync' * entry.dsync} {result}")
            if is_told:
                self.done.append((entry.key, result))
        self.queue.clear()
        self.chance.shuffle(self.done)
        os.eventfd_write(self.eventfd, 1)
        return 0

    def _execute(self, entry: Entry) -> int:
        if entry.kind == "sync":
            return self.syncs.pop(0) if self.syncs else 0
        if entry.kind == "read":
            return self._read(entry)
        result = self.writes.pop(0) if self.writes else len(entry.data)
        taken = entry.data[: max(0, result)]
        self.content[entry.position : entry.position + len(taken)] = taken
        return result

    def _read(self, entry: Entry) -> int:
        found = self.content[entry.position :][: len(entry.target)]
        result = self.reads.pop(0) if self.reads else len(found)
        entry.target[: max(0, result)] = found[: max(0, result)]
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


def run(module: ModuleType, script: ScriptedQueues, *, sync: bool, blocks: int = 4, dsync: bool = False) -> None:
    """Write `blocks` blocks in two buffers. dsync: into a file that honours it. Raises what the future raised."""
    marks: list[str] = []

    async def body() -> None:
        ring = module.Ring(asyncio.get_running_loop(), script)
        data = aligned_buffer(blocks * BLOCK)
        data[:] = bytes(range(256)) * (blocks * 16)
        file = OpenFile("f", True, 0, dsync)
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


def test_a_file_that_honours_it_has_its_write_synced_by_a_flag_unless_somebody_is_told_between(
    module: ModuleType,
) -> None:
    script = ScriptedQueues(writes=[-errno.EAGAIN])
    run(module, script, sync=True, dsync=True)
    told = ["write -11", f"sync {-errno.ECANCELED}", "write 16384", "sync 0"]
    assert script.log == (told if script.is_told else ["write dsync -11", "write dsync 16384"])


def test_what_goes_on_after_a_short_write_is_synced_as_a_whole(module: ModuleType) -> None:
    script = ScriptedQueues(writes=[BLOCK + 512])
    run(module, script, sync=True, dsync=True)
    assert script.log[-2:] == ["write 12288", "sync 0"]


def test_a_failed_write_with_its_sync_is_never_made_again(module: ModuleType) -> None:
    script = ScriptedQueues(writes=[-errno.EIO])
    with pytest.raises(StorageError, match="write f"):
        run(module, script, sync=True, dsync=True)
    assert script.log[0].endswith(f" {-errno.EIO}") and len(script.log) == 1 + script.is_told


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


def read(module: ModuleType, script: ScriptedQueues, blocks: int) -> bytes:
    """Read into a buffer of `blocks` blocks; gives what was read. Raises what the future raised."""

    async def body() -> bytes:
        ring, file = module.Ring(asyncio.get_running_loop(), script), OpenFile("f", True, 0)
        buffer = aligned_buffer(blocks * BLOCK)
        try:
            return bytes(buffer[: await ring.read(file, 0, buffer)])
        finally:
            await ring.close()
            assert ring.open_entries == ring.in_flight == file.in_flight == 0

    return asyncio.run(body())


def test_a_short_read_goes_on_and_ends_where_the_file_does(module: ModuleType) -> None:
    content = bytearray(range(256)) * 40  # two blocks and a half
    script = ScriptedQueues(content=content, reads=[BLOCK, -errno.EINTR])
    assert read(module, script, 8) == content
    assert script.log == ["read 4096", f"read {-errno.EINTR}", f"read {len(content) - BLOCK}"]
    assert read(module, ScriptedQueues(), 1) == b""


def test_a_failed_read_says_so(module: ModuleType) -> None:
    with pytest.raises(StorageError, match="read f"):
        read(module, ScriptedQueues(reads=[-errno.EIO]), 1)


def test_nothing_to_do_ends_at_once_and_asks_no_kernel(module: ModuleType) -> None:
    async def body() -> None:
        script, file = ScriptedQueues(), OpenFile("f", True, 0)
        ring = module.Ring(asyncio.get_running_loop(), script)
        assert ring.write(file, 0, [memoryview(b"")], False, None).result() == 0
        assert ring.read(file, 0, memoryview(bytearray())).result() == 0
        assert file.in_flight == ring.in_flight == ring.submissions == 0
        assert await ring.sync(file) == 0 and script.log == ["sync 0"]
        await ring.close()

    asyncio.run(body())


def test_the_operations_of_a_turn_are_one_submission_and_a_cancelled_one_is_counted_to_its_end(
    module: ModuleType,
) -> None:
    async def body() -> None:
        script, file, idle = ScriptedQueues(), OpenFile("f", True, 0), list[int]()
        ring = module.Ring(asyncio.get_running_loop(), script)
        data = aligned_buffer(BLOCK)
        outcomes = [ring.write(file, number * BLOCK, [data], True, None) for number in range(5)]
        file.on_idle = lambda: idle.append(file.in_flight)
        outcomes[0].cancel()
        assert await asyncio.gather(*outcomes[1:]) == [BLOCK] * 4
        await ring.close()
        assert ring.submissions == 1 and len(script.log) == 10 and idle == [0]

    asyncio.run(body())


def test_a_buffer_is_kept_until_its_write_has_ended(module: ModuleType) -> None:
    async def body() -> None:
        ring = module.Ring(asyncio.get_running_loop(), ScriptedQueues(refusals=1))
        memory = bytearray(BLOCK)
        outcome = ring.write(OpenFile("f", True, 0), 0, [memoryview(memory)], True, None)
        for _ in range(2):
            with pytest.raises(BufferError):
                memory.append(1)
            await asyncio.sleep(0)
        await outcome
        del outcome
        await ring.close()
        gc.collect()
        memory.append(1)

    asyncio.run(body())


RESULTS = st.sampled_from([BLOCK, 2 * BLOCK, BLOCK + 512, 512, 0, -errno.EAGAIN, -errno.EINTR, -errno.EIO])
SYNCS = st.sampled_from([0, -errno.EINTR, -errno.EAGAIN, -errno.EIO])


@given(writes=st.lists(RESULTS, max_size=5), syncs=st.lists(SYNCS, max_size=4), sync=st.booleans(), dsync=st.booleans())
def test_both_rings_do_the_same_whatever_the_kernel_gives(
    writes: list[int], syncs: list[int], sync: bool, dsync: bool
) -> None:
    def whole(module: ModuleType) -> tuple[list[str], bytes, str]:
        script, told = ScriptedQueues(list(writes), syncs=list(syncs)), "done"
        try:
            run(module, script, sync=sync, dsync=dsync)
        except StorageError as error:
            told = str(error)
        return script.log, bytes(script.content), told

    assert whole(compiled) == whole(plain)
