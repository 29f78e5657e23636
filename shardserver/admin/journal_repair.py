"""Repair of one shard's journal: what it still says goes into segments and a snapshot, and a new ring takes its place.

The way out of read-only mode (storage/healing.py) over a ring that is read past its damage. Batches behind a gap keep
their offsets: they go into segments of their own that are marked to follow a hole. The former ring is kept whole.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable

from shardserver.admin.journal_check import JournalReport
from shardserver.admin.kept import Kept
from shardserver.admin.salvaged_journal import SalvagedJournal, close_ring, open_salvaged
from shardserver.admin.segment_writer import SegmentWriter
from shardserver.errors import StorageError
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import journal_format as fmt
from shardserver.storage.directory import make_synced_directory
from shardserver.storage.disk import Disk
from shardserver.storage.healing import replace_journal
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import LogSettings, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults

MIB = 1 << 20
# Of a ring that has none left that could say.
FILES, FILE_BYTES = 8, 16 * MIB


class JournalRepair:
    """identities: of the partitions that metadata gives to this shard. unsound: those whose segments are damaged."""

    def __init__(
        self,
        disk: Disk,
        data: str,
        report: JournalReport,
        identities: Iterable[PartitionIdentity],
        unsound: set[int],
        kept: Kept,
    ) -> None:
        self._disk, self._data, self._report, self._kept = disk, data, report, kept
        self._identities, self._unsound = list(identities), unsound
        geometry = (report.files or FILES, report.file_bytes or FILE_BYTES)
        self._settings = LogSettings(journal_files=max(3, geometry[0]), journal_file_bytes=geometry[1])

    async def run(self) -> list[str]:
        """Gives a sentence for each partition that it could not bring in. Raises StorageError: the disk failed."""
        source = RecoveryInput(self._report.shard, 1 << 64, self._identities, read_only=True, open_ring=open_salvaged)
        logs = await recover_shard(self._disk, self._data, self._settings, source, _clock, _ignore)
        left = self._let_in(logs)
        await replace_journal(logs, keep=await self._kept.place(self._report.directory))
        ends = {one.uid: one.next_offset for one in logs.partitions if one.set_aside is None}
        await logs.close()
        await self._bring_in_the_rest(ends)
        return left

    def _let_in(self, logs: ShardLog) -> list[str]:
        """A partition whose replay ended at a gap is whole up to there; one whose segments are bad stays as it is."""
        left = []
        for partition in logs.partitions:
            if partition.set_aside is not None and partition.uid not in self._unsound:
                partition.set_aside = partition.fenced = None
            elif partition.set_aside is not None:
                left.append(f"partition {partition.uid}: {partition.set_aside}; its records stay in the kept journal")
        return left

    async def _bring_in_the_rest(self, ends: dict[int, int]) -> None:
        """What replay refused: batches that begin behind a gap."""
        for uid in [uid for uid, end in ends.items() if self._report.gaps(uid, end)]:
            directory = os.path.join(self._data, "partitions", f"{uid:016x}")
            writer = SegmentWriter(self._disk, os.path.join(self._data, "set-aside", "building"), uid)
            await self._disk.make_directory(os.path.dirname(writer.directory))
            await writer.clear()
            due = ends[uid]
            async for batch in self._batches(uid):
                header = read_batch_header(batch)
                if header.base_offset < due:
                    continue
                if header.base_offset > due:
                    await writer.begin(header.base_offset, follows_hole=True)
                await writer.add(batch, header.base_timestamp)
                due = header.base_offset + header.message_count
            await make_synced_directory(self._disk, SyncFaults(), directory)
            await writer.publish(directory)

    async def _batches(self, uid: int) -> AsyncIterator[memoryview]:
        """Of the ring that was kept."""
        term = next(one.term for one in self._identities if one.uid == uid)
        ring = await self._kept_ring()
        try:
            async for one in ring.files():
                for write in one.writes:
                    raw = one.buffer[write.position : write.position + write.length]
                    for record in fmt.decode_records(raw, write, one.journal_file.path):
                        if record.kind == fmt.KIND_BATCH and (record.uid, record.term) == (uid, term):
                            yield record.payload
        finally:
            await close_ring(ring)

    async def _kept_ring(self) -> SalvagedJournal:
        directory = await self._kept.place(self._report.directory)
        return await open_salvaged(self._disk, directory, self._settings, SyncFaults())


def _clock() -> int:
    return 0


def _ignore(error: StorageError) -> None:
    """The command ends with the error that it meets."""
