"""The device of a simulated world: the fault Disk, which also traps operations of a kind, is slow, and is counted."""

from __future__ import annotations

import asyncio
import copy
import errno
from asyncio import Future
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardserver.errors import DiskFullError
from tests.fault_disk import BLOCK_BYTES, FaultDisk, FaultFile, Node
from tests.process_disk import ProcessDisk


@dataclass
class Trap:
    """The operation of this kind after `passed` others of it fails."""

    what: str
    passed: int
    fail_errno: int = errno.EIO


class WorldDisk(FaultDisk):
    """counts: of what happened, by kind; those of a life go on in the next one. slow_s: longest pause of a completion.

    trace: what was asked of it, as numbers that two equal runs have in common.
    """

    def __init__(self, seed: int, *, capacity_bytes: int | None = None, counts: Counter[str] | None = None) -> None:
        super().__init__(seed, capacity_bytes=capacity_bytes)
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.trap: Trap | None = None
        self.slow_s = 0.0
        self.trace = 0
        self.refused_for_room = 0

    def _make_heir(self, seed: int) -> WorldDisk:
        heir = WorldDisk(seed, capacity_bytes=self.capacity_bytes, counts=self.counts)
        heir.trace = self.trace
        return heir

    @property
    def used_bytes(self) -> int:
        return self._used()

    def is_at(self, what: str) -> bool:
        """An operation of this kind is in flight."""
        return any(one.what == what for one in self._pending)

    def fork(self, seed: int) -> WorldDisk:
        """A copy without faults, counted by itself. All processes are dead; what they have in flight lands now."""
        while self._ghosts:
            self._land_ghosts(None)
        copied = WorldDisk(seed)
        copied.files, copied.durable_files, copied._renamed = copy.deepcopy(
            (self.files, self.durable_files, self._renamed)
        )
        return copied

    def flip(self, path: str, position: int, bit: int) -> None:
        node = self.files[path]
        node.current[position] ^= 1 << bit
        if position < len(node.durable):
            node.durable[position] = node.current[position]

    def calm(self) -> None:
        """No more faults, room, full speed."""
        self.trap, self.capacity_bytes, self.slow_s = None, None, 0.0

    def mark_late(self) -> None:
        """A process begins: what dead ones have in flight still is late from now on."""
        for one in self._ghosts:
            one.is_late = True

    def _submit(
        self,
        what: str,
        work: Callable[[], object],
        partial: Callable[[], None] | None = None,
        node: Node | None = None,
    ) -> Future[object]:
        self.trace = hash((self.trace, sum(what.encode()), len(self._pending), asyncio.get_running_loop().time()))
        if self.trap is not None and self.trap.what in (what, "any"):
            self.trap.passed -= 1
            if self.trap.passed < 0:
                self._fail_at, self._fail_errno = self.operations + 1, self.trap.fail_errno
                self.counts["failed operations"] += 1
                self.counts["failed syncs"] += what == "sync"
                self.counts["failed syncs of directories"] += what == "sync directory"
                self.counts["failed reads"] += what == "read"
                self.trap = None
        return super()._submit(what, work, partial, node)

    def _write(self, node: Node, position: int, data: bytes) -> None:
        try:
            super()._write(node, position, data)
        except DiskFullError:
            self.refused_for_room += 1
            raise

    def _land(self, ghost: object) -> None:
        self.counts["late writes that landed after a start"] += ghost.is_late  # type: ignore[attr-defined]
        super()._land(ghost)  # type: ignore[arg-type]

    def _schedule(self) -> None:
        if self._due or not self.slow_s:
            super()._schedule()
            return
        self._due = True
        pause_s = self.slow_s * self._chance.random() ** 4
        asyncio.get_running_loop().call_later(pause_s, self._complete_one)


class CountingDisk(ProcessDisk):
    """One process's view of it. It knows what only the caller's words tell: rolls, direct runs, the journal's files."""

    @property
    def counts(self) -> Counter[str]:
        assert isinstance(self.shared, WorldDisk)
        return self.shared.counts

    def write(
        self,
        file: FaultFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[object]:
        if not self.is_dead:
            self._count_write(file, position, sync)
            if self.failing_path and self.failing_path in file.path and self._chance.random() < 0.5:
                file.node.write(position, b"".join(buffers))  # it fails all the same, and leaves this behind
        return super().write(file, position, buffers, sync=sync, on_written=on_written)

    def _count_write(self, file: FaultFile, position: int, sync: bool) -> None:
        if "/journal/" in file.path and sync:
            self.counts["journal writes"] += 1
            if position == BLOCK_BYTES:
                self.counts["journal reuses"] += any(file.node.current[BLOCK_BYTES : 2 * BLOCK_BYTES])
        elif file.path.endswith(".log") and position:
            self.counts["direct runs" if sync else "flushes"] += 1

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future[object]:
        if create and path.endswith(".log") and not self.is_dead:
            former = path.rsplit("/", 1)[0] + "/"
            self.counts["rolls"] += any(one.startswith(former) and one.endswith(".log") for one in self.shared.files)
        return super().open(path, create=create, direct=direct, lock=lock)

    def rename(self, source: str, target: str) -> Future[None]:
        self.counts["journal growth"] += "/journal/" in target and not self.is_dead
        return super().rename(source, target)
