"""What one modelled process sees of a FaultDisk that it shares with others: it dies alone, and its locks go with it."""

from __future__ import annotations

import asyncio
import errno
import random
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from shardserver.errors import DiskFullError, StorageError
from shardserver.storage.disk import GroupWrite, Step, StepsEnd
from tests.fault_disk import (
    BLOCK_BYTES,
    FaultDisk,
    FaultFile,
    Node,
    StartsByFuture,
    do_steps_by_parts,
    write_group_by_parts,
)


class Locks:
    """flock(LOCK_EX) of all processes on one disk: a second open of a file waits until the first is closed."""

    def __init__(self) -> None:
        self._holders: dict[Node, FaultFile] = {}
        self._freed = asyncio.Event()

    async def take(self, file: FaultFile) -> None:
        while file.node in self._holders:
            await self._freed.wait()
        self._holders[file.node] = file

    def free(self, file: FaultFile) -> None:
        if self._holders.get(file.node) is file:
            del self._holders[file.node]
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()


class ProcessDisk(StartsByFuture):
    """die_at, fail_at: as FaultDisk, by the operations of this process. died: called at the moment of its death."""

    name = "process"
    block_bytes = BLOCK_BYTES

    def __init__(self, shared: FaultDisk, locks: Locks, seed: int) -> None:
        self.shared, self._locks, self._chance = shared, locks, random.Random(seed)
        self.operations = self.die_at = self.fail_at = 0
        self.fail_errno = errno.EIO
        self.failing_path = ""  # operations on files with this in their path fail
        self.failures = 0
        self.is_dead = False
        self.died: Callable[[], None] = lambda: None
        self._mine: WeakSet[Future[Any]] = WeakSet()
        self._open: set[FaultFile] = set()

    def _do(self, start: Callable[[], Future[Any]], path: str = "") -> Future[Any]:
        if not self.is_dead:
            self.operations += 1
            if self.operations == self.die_at:
                # In flight at the moment of death, as io_uring's are: it may land now, late or not at all.
                self._mine.add(start())
                self.died()
        never: Future[Any] = asyncio.get_running_loop().create_future()
        if self.is_dead:
            return never
        if self.operations == self.fail_at or (self.failing_path and self.failing_path in path):
            self.failures += 1
            kind = DiskFullError if self.fail_errno == errno.ENOSPC else StorageError
            never.set_exception(kind("injected", errno=self.fail_errno))
            return never
        outcome = start()
        self._mine.add(outcome)
        return outcome

    def _unless_full(self, path: str) -> str:
        """A full disk refuses only what needs room."""
        return "" if self.fail_errno == errno.ENOSPC else path

    def kill(self) -> None:
        """What is in flight lands now, late, or not at all; nobody hears of it. Locks are free."""
        self.is_dead = True
        mine = [one for one in self.shared._pending if one.outcome in self._mine]
        for one in self._chance.sample(mine, len(mine)):
            self.shared._pending.remove(one)
            fate = self._chance.random()
            if one.what == "write" and fate < 0.4:
                self.shared._ghosts.append(one)
            elif one.what != "sync" and fate < 0.7:
                self.shared._land(one)
        for file in self._open:
            self._locks.free(file)

    # The contract

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future[Any]:
        return asyncio.shield(asyncio.ensure_future(self._open_file(path, create, lock)))

    async def _open_file(self, path: str, create: bool, lock: bool) -> FaultFile:
        file: FaultFile = await self._do(lambda: self.shared.open(path, create=create, lock=False), path)
        self._open.add(file)
        if lock:
            await self._locks.take(file)
            self.shared._land_ghosts(file.node)
        if self.is_dead:  # since it asked
            self._locks.free(file)
            await asyncio.Event().wait()
        return file

    def close(self, file: FaultFile) -> Future[None]:
        outcome = self._do(lambda: self.shared.close(file))
        outcome.add_done_callback(lambda done: self._locks.free(file))
        return outcome

    def write(
        self,
        file: FaultFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[Any]:
        def tell() -> None:  # a write that lands late has nobody to tell
            if on_written is not None and not self.is_dead:
                on_written()

        written = self._do(lambda: self.shared.write(file, position, buffers, on_written=tell), file.path)
        return asyncio.ensure_future(self._then_sync(written, file)) if sync else written

    async def _then_sync(self, written: Future[Any], file: FaultFile) -> None:
        await written
        await self.sync(file)

    def write_group(self, writes: Sequence[GroupWrite]) -> Future[list[StorageError | None]]:
        return asyncio.ensure_future(write_group_by_parts(self, writes))

    def do_steps(self, chains: int, steps: Sequence[Step]) -> Future[StepsEnd]:
        return asyncio.ensure_future(do_steps_by_parts(self, chains, steps))

    def read(self, file: FaultFile, position: int, buffer: memoryview) -> Future[int]:
        return self._do(lambda: self.shared.read(file, position, buffer))

    def sync(self, file: FaultFile) -> Future[None]:
        return self._do(lambda: self.shared.sync(file), self._unless_full(file.path))

    def truncate(self, file: FaultFile, length: int) -> Future[None]:
        return self._do(lambda: self.shared.truncate(file, length), self._unless_full(file.path))

    def file_bytes(self, file: FaultFile) -> Future[int]:
        return self._do(lambda: self.shared.file_bytes(file))

    def list_directory(self, path: str) -> Future[list[str]]:
        return self._do(lambda: self.shared.list_directory(path))

    def make_directory(self, path: str) -> Future[None]:
        return self._do(lambda: self.shared.make_directory(path))

    def rename(self, source: str, target: str) -> Future[None]:
        return self._do(lambda: self.shared.rename(source, target))

    def unlink(self, path: str) -> Future[None]:
        return self._do(lambda: self.shared.unlink(path), self._unless_full(path))

    def remove_directory(self, path: str) -> Future[None]:
        return self._do(lambda: self.shared.remove_directory(path))

    def sync_directory(self, path: str) -> Future[None]:
        return self._do(lambda: self.shared.sync_directory(path))

    def free_bytes(self, path: str) -> Future[int]:
        return self._do(lambda: self.shared.free_bytes(path))

    def shut_down(self) -> Future[None]:
        return self._do(self.shared.shut_down)
