"""A look at all of a stopped server's data: metadata, journals, committed offsets, segments. It changes nothing.

Metadata comes first, as it says which records count (storage rule 12); then the journals, as they say where segments
end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from shardserver.admin.findings import Finding, damage, note
from shardserver.admin.journal_check import JournalReport, Terms, check_journal, journal_directory, shard_numbers
from shardserver.admin.partition_check import PartitionCheck, PartitionReport
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.errors import CorruptionError, StorageError
from shardserver.memory.heap import heap_arena
from shardserver.storage.disk import Disk
from shardserver.storage.journal_format import Hint
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.offsets import read_snapshot
from shardserver.storage.unknown_directories import PARTITION_NAME

# The largest batch twice, and what is read ahead of it. Committed as it is used.
ARENA_BYTES = 384 << 20
# What a server keeps in its data directory. Anything else is somebody else's.
KNOWN = frozenset({"format", "format.new", "lock", "metadata", "partitions", "reserve", "run", "set-aside", "shards"})


@dataclass(slots=True)
class Inspection:
    """metadata: None when the log cannot be read; then nothing says which records and partitions count."""

    data: str
    metadata: Metadata | None = None
    journals: dict[int, JournalReport] = field(default_factory=dict)
    partitions: dict[int, PartitionReport] = field(default_factory=dict)
    bad_snapshots: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    needs_rebuild: bool = False
    own: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        found = list(self.own)
        for journal in self.journals.values():
            found += journal.findings
        for partition in self.partitions.values():
            found += partition.findings
        return found

    def hint(self, uid: int) -> Hint | None:
        hints = [one.found.hints[uid] for one in self.journals.values() if uid in one.found.hints]
        return hints[0] if hints else None


class Inspector:
    """One look. `run` gives what was found, and raises nothing for what is damaged."""

    def __init__(self, disk: Disk, data: str) -> None:
        self._disk, self._result, self._memory = disk, Inspection(data), heap_arena(ARENA_BYTES)

    async def run(self) -> Inspection:
        result = self._result
        await self._check_metadata()
        for shard in await shard_numbers(self._disk, result.data):
            await self._check_shard(shard)
        self._judge_uids()
        await self._check_partitions()
        self._judge_replay()
        await self._check_names()
        return result

    # Metadata

    async def _check_metadata(self) -> None:
        directory = os.path.join(self._result.data, "metadata")
        try:
            self._result.metadata, end, path = await read_metadata(self._disk, directory)
        except CorruptionError as error:
            self._add(damage("metadata", error.path, error.position, f"expected {error.expected}"))
            self._result.needs_rebuild = True
            return
        except StorageError as error:
            self._add(damage("metadata", directory, 0, str(error)))
            self._result.needs_rebuild = True
            return
        if path and os.path.getsize(path) > end:
            self._add(note("metadata", path, end, "a torn end; the next start cuts it"))

    def _terms(self, shard: int) -> Terms:
        metadata = self._result.metadata
        live = metadata.live_partitions() if metadata is not None else []
        return {one.uid: one.term for _, one in live if one.shard == shard}

    def _judge_uids(self) -> None:
        """A uid that the metadata never gave out means that it was lost; a start refuses then (storage rule 17)."""
        metadata = self._result.metadata
        for report in self._result.journals.values():
            if metadata is not None and report.newest_uid >= metadata.next_uid:
                text = f"records of partition {report.newest_uid}, which the metadata does not know: it was lost"
                self._add(damage("metadata", report.directory, 0, text))
                self._result.needs_rebuild = True

    # Shards

    async def _check_shard(self, shard: int) -> None:
        directory = journal_directory(self._result.data, shard)
        try:
            self._result.journals[shard] = await check_journal(self._disk, directory, shard, self._terms(shard))
        except StorageError as error:
            if os.path.isdir(directory):
                self._add(damage("journal", directory, 0, str(error)))
        await self._check_snapshot(os.path.dirname(directory))

    async def _check_snapshot(self, directory: str) -> None:
        path = os.path.join(directory, "offsets")
        try:
            await read_snapshot(self._disk, directory)
        except CorruptionError as error:
            self._add(damage("offsets", error.path, error.position, f"expected {error.expected}"))
            self._result.bad_snapshots.append(path)
        except StorageError as error:
            self._add(damage("offsets", path, 0, str(error)))

    # Partitions

    async def _check_partitions(self) -> None:
        metadata, parent = self._result.metadata, os.path.join(self._result.data, "partitions")
        names: list[str] = []
        with contextlib.suppress(StorageError):  # a first start ended early
            names = await self._disk.list_directory(parent)
        live = {one.uid for _, one in metadata.live_partitions()} if metadata is not None else set()
        dying = set(metadata.dying) if metadata is not None else set()
        there = {int(name, 16) for name in names if PARTITION_NAME.fullmatch(name)}
        for uid in sorted(live | there if metadata is not None else there):
            if uid in live or metadata is None:
                await self._check_partition(parent, uid, is_there=uid in there)
            elif uid not in dying:
                self._note_unknown(os.path.join(parent, f"{uid:016x}"))
        self._note_foreign(parent, (name for name in names if not PARTITION_NAME.fullmatch(name)))

    async def _check_partition(self, parent: str, uid: int, *, is_there: bool) -> None:
        hint = self._result.hint(uid)
        if not is_there and hint is None:
            return  # never flushed
        directory = os.path.join(parent, f"{uid:016x}")
        try:
            check = PartitionCheck(self._disk, directory, uid, hint, self._memory)
            self._result.partitions[uid] = await check.run()
        except StorageError as error:
            self._add(damage("segment", directory, 0, str(error)))

    def _note_unknown(self, path: str) -> None:
        self._result.unknown.append(path)
        text = "the metadata does not know this partition; the next start moves it to set-aside"
        self._add(damage("directory", path, 0, text))

    def _judge_replay(self) -> None:
        """Where a start would set a partition aside: the journal does not go on where the segments end."""
        for report in self._result.journals.values():
            for uid in report.batches:
                known = self._result.partitions.get(uid)
                for due, found in report.gaps(uid, known.end_offset if known is not None else 0):
                    text = f"partition {uid} ends at offset {due}, and the journal goes on with {found}"
                    report.findings.append(damage("journal", report.directory, 0, text))

    # The rest

    async def _check_names(self) -> None:
        names = await self._disk.list_directory(self._result.data)
        self._note_foreign(
            self._result.data, (one for one in names if one not in KNOWN and not one.startswith("reserve."))
        )

    def _note_foreign(self, parent: str, names: Iterable[str]) -> None:
        for name in names:
            self._add(note("directory", os.path.join(parent, name), 0, "not a file of the server; it is left alone"))

    def _add(self, finding: Finding) -> None:
        self._result.own.append(finding)


async def read_metadata(disk: Disk, directory: str) -> tuple[Metadata, int, str]:
    """(the replica, where its log ends, the log's file). Raises CorruptionError, and StorageError: there is none."""
    log = MetadataLog(disk, directory)
    try:
        metadata = await MetadataWriter(log, lambda: 0).recover(read_only=True)
        return metadata, log.record_bytes, log.path
    finally:
        await log.close()


async def inspect(disk: Disk, data: str) -> Inspection:
    """What cannot be read is a finding."""
    return await Inspector(disk, data).run()
