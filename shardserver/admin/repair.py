"""`shardserver repair`: takes out what is damaged, so that a start serves the rest; what it removes is kept.

In rounds: look, mend, look again. Segments come first, as the journal is replayed behind them. After a few rounds the
command says what it cannot mend.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from shardserver.admin.findings import is_damaged
from shardserver.admin.inspection import ARENA_BYTES, Inspection, inspect
from shardserver.admin.journal_check import JournalReport
from shardserver.admin.journal_repair import JournalRepair
from shardserver.admin.kept import Kept
from shardserver.admin.partition_check import PartitionReport
from shardserver.admin.partition_repair import PartitionRepair, move_indexes
from shardserver.admin.read_only_disk import ReadOnlyDisk
from shardserver.admin.rebuild import rebuild_now
from shardserver.admin.stopped_server import THREADS, change_stopped, read_stopped
from shardserver.admin.verify import CLEAN, DAMAGED, print_findings
from shardserver.core.metadata import Metadata
from shardserver.core.owned_partitions import owned_identities
from shardserver.errors import StorageError
from shardserver.memory.heap import heap_arena
from shardserver.storage.disk import Disk
from shardserver.storage.settings import Durability

ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Step:
    """text: what is done, as a command ("take out ..."). work: gives sentences on what it could not do."""

    text: str
    work: Callable[[], Awaitable[list[str]]]


class RepairPlan:
    """What one round does. Its order is that of recovery: metadata, segments, snapshots, journals."""

    def __init__(self, disk: Disk, found: Inspection, kept: Kept) -> None:
        self._disk, self._found, self._kept = disk, found, kept
        self._memory = heap_arena(ARENA_BYTES)

    def steps(self) -> Iterator[Step]:
        metadata, partitions = self._found.metadata, self._found.partitions.values()
        if metadata is None or self._found.needs_rebuild:
            yield Step("rebuild the metadata from what the directory still says", self._rebuild)
            return  # without it nothing says what counts
        for report in partitions:
            yield from self._partition_steps(report)
        for path in self._found.bad_snapshots:
            yield Step(f"set aside the snapshot of committed offsets {path}", partial(self._move, path))
        if any(is_damaged(one.findings) for one in partitions):
            return  # what is replayed has to find sound segments, and their ends: journals wait a round for them
        for journal in self._found.journals.values():
            if is_damaged(journal.findings):
                text = f"build the journal of shard {journal.shard} anew from what can be read of it"
                yield Step(text, partial(self._repair_journal, journal, metadata))

    def _partition_steps(self, report: PartitionReport) -> Iterator[Step]:
        if is_damaged(report.findings):
            yield Step(f"take the damage out of partition {report.uid}", partial(self._repair_partition, report))
        if report.bad_indexes:
            text = f"set aside {len(report.bad_indexes)} indexes of partition {report.uid}"
            yield Step(text, partial(self._move_indexes, report))

    async def _rebuild(self) -> list[str]:
        return await rebuild_now(self._disk, self._found.data, self._kept)

    async def _repair_partition(self, report: PartitionReport) -> list[str]:
        await PartitionRepair(self._disk, self._found.data, report, self._kept, self._memory).run()
        return []

    async def _move_indexes(self, report: PartitionReport) -> list[str]:
        await move_indexes(report, self._kept)
        return []

    async def _move(self, path: str) -> list[str]:
        await self._kept.move(path)
        return []

    async def _repair_journal(self, report: JournalReport, metadata: Metadata) -> list[str]:
        identities = owned_identities(metadata, report.shard, Durability.FSYNC)
        unsound = {uid for uid, one in self._found.partitions.items() if is_damaged(one.findings)}
        repair = JournalRepair(self._disk, self._found.data, report, identities, unsound, self._kept)
        return await repair.run()


async def repair(path: str, *, dry_run: bool, as_json: bool) -> int:
    """Print what was found and done; exit code 0 when nothing is damaged afterwards, else 1. Raises ConfigError."""
    if dry_run:
        async with read_stopped(path) as (disk, data):
            found = await inspect(disk, data)
            print_findings(found.findings, data, as_json=as_json)
            for step in RepairPlan(disk, found, Kept(disk, data)).steps():
                _say(f"would {step.text}", as_json=as_json)
        return DAMAGED if is_damaged(found.findings) else CLEAN
    async with change_stopped(path) as (disk, data):
        return await _repair(disk, data, as_json=as_json)


async def _repair(disk: Disk, data: str, *, as_json: bool) -> int:
    kept = Kept(disk, data)
    for number in range(ROUNDS):
        found = await _look(data)
        if number == 0:
            print_findings(found.findings, data, as_json=as_json)
        steps = list(RepairPlan(disk, found, kept).steps())
        if not steps or not await _take(steps, as_json=as_json):
            break
    found = await _look(data)
    if kept.directory:
        _say(f"kept in {kept.directory}", as_json=as_json)
    if is_damaged(found.findings):
        _say("still damaged:", as_json=as_json)
        print_findings(found.findings, data, as_json=as_json)
        return DAMAGED
    return CLEAN


async def _look(data: str) -> Inspection:
    """By a disk of its own, whose locks are gone when it is shut down."""
    disk = ReadOnlyDisk(THREADS)
    try:
        return await inspect(disk, data)
    finally:
        await disk.shut_down()


async def _take(steps: list[Step], *, as_json: bool) -> bool:
    """True when all of them ended well."""
    for step in steps:
        _say(step.text, as_json=as_json)
        try:
            for sentence in await step.work():
                _say(sentence, as_json=as_json)
        except StorageError as error:
            _say(f"not done: {error}", as_json=as_json)
            return False
    return True


def _say(text: str, *, as_json: bool) -> None:
    print(json.dumps({"repair": text}) if as_json else text)
