"""A Disk in memory that forgets: what a device may do to bytes and names that were not synced.

Operations complete one by one on the loop, in an order drawn from the seed. Each is counted; at a chosen
number it fails (`fail_at`), or everything ends there (`die_at`). `after_power_loss` keeps of each file any subset of
its unsynced 512-byte sectors (so blocks tear), and of each unsynced change of names either the old or the new state.
`after_kill` keeps all that was written, and lets some writes of the dead process land late, until somebody holds the
file's lock. A failed sync, of a directory too, drops unsynced blocks of other files: they read back, and no later
sync saves them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardserver.errors import DiskFullError, StorageError
from shardserver.storage.directory import names_in
from shardserver.storage.disk import ALL, Act, Ended, GroupWrite, Step, StepsEnd, tell_end

BLOCK_BYTES = 4096
SECTOR_BYTES = 512


class Died(Exception):
    """The modelled process is dead: nothing completes any more."""


@dataclass(eq=False)
class Node:
    """One file: what is durable, and what was written since. unsynced: sectors; dropped: those a failed sync lost.

    is_removed: it has no name, so whoever has it open finds no bytes in it.
    """

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    unsynced: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    is_removed: bool = False

    def write(self, position: int, data: bytes) -> None:
        end = position + len(data)
        if end > len(self.current):
            self.current.extend(bytes(end - len(self.current)))
        self.current[position:end] = data
        sectors = range(position // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1)
        self.unsynced.update(sectors)
        self.dropped.difference_update(sectors)

    def sync(self) -> None:
        former, self.durable = self.durable, bytearray(self.current)
        for sector in self.dropped:
            start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, len(self.durable))
            if start < end:
                self.durable[start:end] = former[start:end].ljust(end - start, b"\0")
        self.unsynced.clear()

    def drop_unsynced(self) -> None:
        self.dropped |= self.unsynced
        self.unsynced.clear()

    def cut(self, length: int) -> None:
        del self.current[length:]
        self.current.extend(bytes(length - len(self.current)))
        for sectors in (self.unsynced, self.dropped):
            sectors.difference_update([one for one in sectors if one * SECTOR_BYTES >= length])

    def after_power_loss(self, chance: random.Random) -> Node:
        length = chance.choice((len(self.durable), len(self.current)))
        left = bytearray(self.durable[:length].ljust(length, b"\0"))
        for sector in self._that_landed(chance):
            start = sector * SECTOR_BYTES
            if start < length:
                left[start : start + SECTOR_BYTES] = self.current[start : min(start + SECTOR_BYTES, length)]
        return Node(bytearray(left), left)

    def _that_landed(self, chance: random.Random) -> list[int]:
        """Whole blocks land or not; one in eight tears."""
        landed = []
        per_block = BLOCK_BYTES // SECTOR_BYTES
        for block in {sector // per_block for sector in self.unsynced}:
            fate = chance.random()
            for sector in range(block * per_block, (block + 1) * per_block):
                if sector in self.unsynced and (fate < 0.45 or (fate > 0.875 and chance.random() < 0.5)):
                    landed.append(sector)
        return landed


def move_names(names: dict[str, Node], source: str, target: str) -> None:
    for name in [name for name in names if name == source or name.startswith(source + "/")]:
        names[target + name[len(source) :]] = names.pop(name)


@dataclass(eq=False)
class FaultFile:
    path: str
    node: Node
    direct: bool = True


@dataclass(eq=False)
class Operation:
    """Submitted and not complete. node: the file that a write changes. is_late: a new process has begun since."""

    outcome: Future[object]
    work: Callable[[], object]
    what: str
    node: Node | None
    is_late: bool = False


async def write_group_by_parts(disk: Any, writes: Sequence[GroupWrite]) -> list[StorageError | None]:
    """All writes, then the syncs of those that were written, each an operation of its own, until one fails."""
    outcomes = await errors_of([disk.write(file, position, buffers) for file, position, buffers in writes])
    failed: StorageError | None = None
    for number, (file, _, _) in enumerate(writes):
        if outcomes[number] is None:
            failed = outcomes[number] = failed or (await errors_of([disk.sync(file)]))[0]
    return outcomes


async def do_steps_by_parts(disk: Any, chains: int, steps: Sequence[Step]) -> StepsEnd:
    """One after the other, each by operations of its own."""
    errors: list[StorageError | None] = [None] * chains
    files: dict[str, tuple[int, Any]] = {}
    has_failed_sync = False
    for step in steps:
        if (step.chain == ALL and not any(error is None for error in errors)) or (
            step.chain != ALL and errors[step.chain] is not None
        ):
            continue
        try:
            await _do_step(disk, step, files)
        except StorageError as error:
            has_failed_sync = step.act in (Act.SYNC, Act.SYNC_DIRECTORY)
            ended = range(chains) if step.chain == ALL or has_failed_sync else [step.chain]
            for chain in ended:
                errors[chain] = errors[chain] or error
            if has_failed_sync:
                break
    for path, (chain, file) in list(files.items()):
        if errors[chain] is not None:
            del files[path]
            disk.close(file)  # nobody waits: a failed sync is to be known at once
    return StepsEnd(errors, has_failed_sync, {path: file for path, (_, file) in files.items()})


async def _do_step(disk: Any, step: Step, files: dict[str, tuple[int, Any]]) -> None:
    if step.act is Act.CREATE:
        file = await disk.open(step.path, create=True)
        files[step.path] = step.chain, file
        await disk.write(file, 0, [step.more])
    elif step.act is Act.SYNC:
        await disk.sync(files[step.path][1])
    elif step.act is Act.CLOSE:
        await disk.close(files.pop(step.path)[1])
    elif step.act is Act.RENAME:
        await disk.rename(step.path, step.more)
    elif step.act is Act.REMOVE_DIRECTORY:
        if not await names_in(disk, step.path):
            await disk.remove_directory(step.path)
    else:
        single = {Act.UNLINK: disk.unlink, Act.MAKE_DIRECTORY: disk.make_directory}
        await single.get(step.act, disk.sync_directory)(step.path)


async def errors_of(operations: list[Future]) -> list[StorageError | None]:
    """What each of them failed with. Raises what is no StorageError."""
    results = await asyncio.gather(*operations, return_exceptions=True)
    for one in results:
        if isinstance(one, BaseException) and not isinstance(one, StorageError):
            raise one
    return [one if isinstance(one, StorageError) else None for one in results]


class StartsByFuture:
    """For a disk whose `write` is what tests look at."""

    def start_synced_write(
        self,
        file: FaultFile,
        position: int,
        buffers: Sequence[memoryview],
        on_written: Callable[[], None] | None,
        on_end: Ended,
    ) -> None:
        write: Callable[..., Future[Any]] = self.write  # type: ignore[attr-defined]
        tell_end(write(file, position, buffers, sync=True, on_written=on_written), on_end)


class FaultDisk(StartsByFuture):
    """See the module. `died` is set at the moment of death."""

    name = "fault"
    block_bytes = BLOCK_BYTES

    def __init__(
        self,
        seed: int,
        *,
        fail_at: int = 0,
        fail_errno: int = errno.EIO,
        die_at: int = 0,
        capacity_bytes: int | None = None,
    ) -> None:
        self._chance = random.Random(seed)
        self._fail_at, self._fail_errno, self._die_at = fail_at, fail_errno, die_at
        self.capacity_bytes = capacity_bytes
        self.operations = 0
        self.has_failed = False
        self.is_dead = False
        self.is_broken = False  # the device takes no write and no sync
        self.unreadable = ""  # reads of files with this in their path fail
        self.files: dict[str, Node] = {}
        self.durable_files: dict[str, Node] = {}
        self._renamed: list[tuple[str, str]] = []  # directories whose renames no sync of their parent covers yet
        self._pending: list[Operation] = []
        self._ghosts: list[Operation] = []
        self._due = False
        self.died: Callable[[], None] = lambda: None

    # What is left after a crash

    def _make_heir(self, seed: int) -> FaultDisk:
        return FaultDisk(seed, capacity_bytes=self.capacity_bytes)

    def after_kill(self, seed: int) -> FaultDisk:
        """The process is gone, the machine is not: all that was written is there, still as unsynced as it was."""
        heir = self._make_heir(seed)
        heir.files, heir.durable_files, heir._ghosts = self.files, self.durable_files, self._ghosts
        heir._renamed = self._renamed
        return heir

    def after_power_loss(self, seed: int) -> FaultDisk:
        heir = self._make_heir(seed)
        chance = random.Random(seed)
        kept: dict[int, Node] = {}
        files, durable_files = dict(self.files), dict(self.durable_files)
        for source, target in reversed(self._renamed):  # a directory has its old name or its new one, with all in it
            if chance.random() < 0.5:
                move_names(durable_files, source, target)
            else:
                move_names(files, target, source)
        for path in sorted(files.keys() | durable_files.keys()):
            durable, current = durable_files.get(path), files.get(path)
            node = durable if durable is current else chance.choice((durable, current))
            if node is not None:
                heir.files[path] = kept.setdefault(id(node), node.after_power_loss(chance))
        heir.durable_files = dict(heir.files)
        return heir

    def flip_bit(self, path: str, position: int) -> None:
        for contents in (self.files[path].current, self.files[path].durable):
            contents[position] ^= 1

    # Completion

    def _submit(
        self,
        what: str,
        work: Callable[[], object],
        partial: Callable[[], None] | None = None,
        node: Node | None = None,
    ) -> Future:
        outcome: Future[object] = asyncio.get_running_loop().create_future()
        if self.is_dead:
            return outcome
        self.operations += 1
        if self.operations == self._die_at:
            self._die(partial)
            return outcome
        if self.operations == self._fail_at:
            work = self._failing(what, partial, node)
        self._pending.append(Operation(outcome, work, what, node))
        self._schedule()
        return outcome

    def _failing(self, what: str, partial: Callable[[], None] | None, node: Node | None) -> Callable[[], object]:
        def fail() -> object:
            self.has_failed = True
            if partial is not None and self._chance.random() < 0.5:
                partial()
            if what in ("sync", "sync directory"):
                for other in self.files.values():
                    if other is node or self._chance.random() < 0.5:
                        other.drop_unsynced()
            kind = DiskFullError if self._fail_errno == errno.ENOSPC else StorageError
            raise kind(f"{what}: injected", errno=self._fail_errno)

        return fail

    def _die(self, partial: Callable[[], None] | None) -> None:
        """In-flight operations land now, late or not at all, in any order; nobody hears of it."""
        self.is_dead = True
        for one in self._chance.sample(self._pending, len(self._pending)):
            fate = self._chance.random()
            if one.what == "write" and fate < 0.4:
                self._ghosts.append(one)
            elif one.what != "sync" and fate < 0.7:
                self._land(one)
        if partial is not None and self._chance.random() < 0.5:
            partial()
        self._pending.clear()
        self.died()

    def _land(self, ghost: Operation) -> None:
        with contextlib.suppress(StorageError):
            ghost.work()

    def _land_ghosts(self, node: Node | None) -> None:
        """What flock on a file waits for; or, with None, one write that lands at any time."""
        due = [one for one in self._ghosts if one.node is node] if node else self._ghosts[:1]
        for one in due:
            self._ghosts.remove(one)
            self._land(one)

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._complete_one)

    def _complete_one(self) -> None:
        self._due = False
        if not self._pending:
            return
        if self._ghosts and self._chance.random() < 0.1:
            self._land_ghosts(None)
        one = self._pending.pop(self._chance.randrange(len(self._pending)))
        outcome = one.outcome
        try:
            result = one.work()
        except StorageError as error:
            if not outcome.done():
                outcome.set_exception(error)
        else:
            if not outcome.done():
                outcome.set_result(result)
        if self._pending:
            self._schedule()

    # The contract

    def _used(self) -> int:
        return sum(len(node.current) for node in self.files.values())

    def _refuse_when_broken(self) -> None:
        if self.is_broken:
            raise StorageError("the device is broken", errno=errno.EIO)

    def _write(self, node: Node, position: int, data: bytes) -> None:
        self._refuse_when_broken()
        grown = max(0, position + len(data) - len(node.current))
        if self.capacity_bytes is not None and self._used() + grown > self.capacity_bytes:
            raise DiskFullError("no room", errno=errno.ENOSPC)
        node.write(position, data)

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future:
        def work() -> FaultFile:
            if create == (path in self.files):
                raise StorageError(path, errno=errno.EEXIST if create else errno.ENOENT)
            node = self.files.setdefault(path, Node())
            if lock:
                self._land_ghosts(node)
            return FaultFile(path, node)

        return self._submit("open", work)

    def close(self, file: FaultFile) -> Future:
        return self._submit("close", lambda: None)

    def write(
        self,
        file: FaultFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future:
        data = b"".join(buffers)
        assert position % BLOCK_BYTES == 0 and len(data) % BLOCK_BYTES == 0, "O_DIRECT needs whole blocks"

        def partial() -> None:
            for start in range(0, len(data), BLOCK_BYTES):
                if self._chance.random() < 0.5:
                    file.node.write(position + start, data[start : start + BLOCK_BYTES])

        def work() -> None:
            self._write(file.node, position, data)
            if on_written is not None and not self.is_dead:
                on_written()

        written = self._submit("write", work, partial, file.node)
        return asyncio.ensure_future(self._then_sync(written, file)) if sync else written

    async def _then_sync(self, written: Future, file: FaultFile) -> None:
        await written
        await self.sync(file)

    def write_group(self, writes: Sequence[GroupWrite]) -> Future:
        return asyncio.ensure_future(write_group_by_parts(self, writes))

    def do_steps(self, chains: int, steps: Sequence[Step]) -> Future[StepsEnd]:
        return asyncio.ensure_future(do_steps_by_parts(self, chains, steps))

    def read(self, file: FaultFile, position: int, buffer: memoryview) -> Future:
        def work() -> int:
            if self.unreadable and self.unreadable in file.path:
                raise StorageError(file.path, errno=errno.EIO)
            data = b"" if file.node.is_removed else file.node.current[position : position + len(buffer)]
            buffer[: len(data)] = data
            return len(data)

        return self._submit("read", work)

    def sync(self, file: FaultFile) -> Future:
        def work() -> None:
            self._refuse_when_broken()
            file.node.sync()

        return self._submit("sync", work, node=file.node)

    def truncate(self, file: FaultFile, length: int) -> Future:
        return self._submit("truncate", lambda: file.node.cut(length))

    def file_bytes(self, file: FaultFile) -> Future:
        return self._submit("stat", lambda: len(file.node.current))

    def list_directory(self, path: str) -> Future:
        def work() -> list[str]:
            return sorted({name[len(path) + 1 :].split("/")[0] for name in self.files if name.startswith(path + "/")})

        return self._submit("list", work)

    def make_directory(self, path: str) -> Future:
        return self._submit("mkdir", lambda: None)

    def rename(self, source: str, target: str) -> Future:
        """Of a file, or of a directory with all in it."""

        def work() -> None:
            if source not in self.files:
                self._renamed.append((source, target))
            move_names(self.files, source, target)

        return self._submit("rename", work)

    def unlink(self, path: str) -> Future:
        def work() -> None:
            node = self.files.pop(path, None)
            if node is not None:
                node.is_removed = True

        return self._submit("unlink", work)

    def remove_directory(self, path: str) -> Future:
        return self._submit("rmdir", lambda: None)

    def sync_directory(self, path: str) -> Future:
        """The entries of this directory, not those of directories in it; a renamed directory is such an entry."""

        def work() -> None:
            for source, target in [names for names in self._renamed if os.path.dirname(names[1]) == path]:
                self._renamed.remove((source, target))
                move_names(self.durable_files, source, target)
            for name in {name for name in self.files.keys() | self.durable_files if os.path.dirname(name) == path}:
                if name in self.files:
                    self.durable_files[name] = self.files[name]
                else:
                    del self.durable_files[name]

        return self._submit("sync directory", work)

    def free_bytes(self, path: str) -> Future:
        return self._submit(
            "statvfs", lambda: 1 << 40 if self.capacity_bytes is None else self.capacity_bytes - self._used()
        )

    def shut_down(self) -> Future:
        return self._submit("shut down", lambda: None)


@dataclass(eq=False)
class Recorded:
    """One write. synced: a sync that was submitted after its completion has completed."""

    file: FaultFile
    data: bytes
    completed: bool = False
    synced: bool = False


class RecordingDisk(FaultDisk):
    """Knows of any bytes whether a completed write holds them, and whether a completed sync covers that write.

    Stricter than the model's own sync, which also takes what was written while it was under way.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.recorded: list[Recorded] = []

    def covers(self, data: bytes, *, synced: bool) -> bool:
        return any(data in one.data and (one.synced if synced else one.completed) for one in reversed(self.recorded))

    def write(
        self,
        file: FaultFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future:
        one = Recorded(file, b"".join(buffers))
        self.recorded.append(one)

        def complete() -> None:
            one.completed = True
            if on_written is not None:
                on_written()

        return super().write(file, position, buffers, sync=sync, on_written=complete)

    def sync(self, file: FaultFile) -> Future:
        covered = [one for one in self.recorded if one.completed and one.file.node is file.node]
        outcome = super().sync(file)

        def mark(done: Future) -> None:
            for one in covered if not done.cancelled() and done.exception() is None else ():
                one.synced = True

        outcome.add_done_callback(mark)
        return outcome


class HoldingDisk(FaultDisk):
    """Writes to files whose names end in `held` are not begun, until that is something else."""

    held: str | None = None

    def write(self, file: FaultFile, position: int, buffers: Sequence[memoryview], **more: Any) -> Future:
        if self.held is None or not file.path.endswith(self.held):
            return super().write(file, position, buffers, **more)
        return asyncio.ensure_future(self._write_later(self.held, file, position, buffers, **more))

    async def _write_later(self, held: str, *arguments: Any, **more: Any) -> None:
        while self.held == held:
            await asyncio.sleep(0)
        await super().write(*arguments, **more)


class EarlyDisk(RecordingDisk):
    """A broken engine: a synced write is reported when it is written, and synced some time later."""

    async def _then_sync(self, written: Future, file: FaultFile) -> None:
        await written
        self.sync(file)


class HastyDisk(RecordingDisk):
    """A broken engine: a write is reported when it is submitted."""

    def write(
        self,
        file: FaultFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future:
        if on_written is not None:
            asyncio.get_running_loop().call_soon(on_written)
        return super().write(file, position, buffers, sync=sync)
