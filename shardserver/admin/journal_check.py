"""A look at one shard's journal: its damage, and what its live part says of partitions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from shardserver.admin.findings import Finding, damage
from shardserver.admin.salvaged_journal import close_ring, open_salvaged
from shardserver.errors import CorruptionError, StorageError
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import journal_format as fmt
from shardserver.storage.disk import Disk
from shardserver.storage.journal_reader import JournalRecovery, RecoveredFile, open_journal
from shardserver.storage.recovery import Found
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults

# uid -> what metadata says of it
Terms = dict[int, int]
SETTINGS = LogSettings()


@dataclass(slots=True)
class Mention:
    """What records say of a partition, whether metadata knows it or not. `batches`: under this term."""

    term: int
    shard: int
    batches: int = 0


@dataclass(slots=True)
class JournalReport:
    """found, batches: of the records that count. batches: (base offset, next offset) in order. mentions: of all."""

    shard: int
    directory: str
    findings: list[Finding] = field(default_factory=list)
    found: Found = field(default_factory=Found)
    batches: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    mentions: dict[int, Mention] = field(default_factory=dict)
    journal_id: int = 0
    files: int = 0
    file_bytes: int = 0

    @property
    def newest_uid(self) -> int:
        return max(self.mentions, default=0)

    def take(self, one: RecoveredFile, terms: Terms) -> None:
        """Raises CorruptionError: records that another program wrote."""
        for write in one.writes:
            raw = one.buffer[write.position : write.position + write.length]
            for number, record in enumerate(fmt.decode_records(raw, write, one.journal_file.path)):
                self._mention(record)
                if terms.get(record.uid) == record.term and record.shard == self.shard:
                    self._count((one.sequence, write.position, number), record)

    def _mention(self, record: fmt.Record) -> None:
        known = self.mentions.get(record.uid)
        if known is None or record.term > known.term:
            known = self.mentions[record.uid] = Mention(record.term, record.shard)
        if record.term == known.term and record.kind == fmt.KIND_BATCH:
            known.batches += 1

    def _count(self, place: tuple[int, int, int], record: fmt.Record) -> None:
        self.found.take(place, record)
        if record.kind == fmt.KIND_BATCH:
            header = read_batch_header(record.payload)
            extent = (header.base_offset, header.base_offset + header.message_count)
            self.batches.setdefault(record.uid, []).append(extent)
        elif record.kind == fmt.KIND_ADOPTION:
            self.batches.pop(record.uid, None)

    def gaps(self, uid: int, end: int) -> list[tuple[int, int]]:
        """(offset that was due, offset found) where replay behind a segment end would be refused."""
        gaps = []
        for base, following in self.batches.get(uid, ()):
            if following <= end:
                continue
            if base != end:
                gaps.append((end, base))
            end = following
        return gaps


async def check_journal(disk: Disk, directory: str, shard: int, terms: Terms) -> JournalReport:
    """Read it as a start would; where that is refused, past the damage. Raises StorageError: it is not there."""
    report = JournalReport(shard, directory)
    refusal: CorruptionError | None = None
    try:
        await _read(report, await open_journal(disk, directory, SETTINGS, SyncFaults(), read_only=True), terms)
    except CorruptionError as error:
        refusal = error
    except IndexError:  # there is no file at all
        refusal = CorruptionError(directory, 0, "journal files")
    if refusal is not None:
        report = JournalReport(shard, directory)
        await _read_past(report, disk, refusal, terms)
    return report


async def _read(report: JournalReport, ring: JournalRecovery, terms: Terms) -> None:
    report.journal_id, report.files = ring.journal.journal_id, ring.journal.files
    report.file_bytes = ring.journal.ring_bytes // max(1, ring.journal.files)
    try:
        async for one in ring.files():
            report.take(one, terms)
    finally:
        await close_ring(ring)


async def _read_past(report: JournalReport, disk: Disk, refusal: CorruptionError, terms: Terms) -> None:
    ring = await open_salvaged(disk, report.directory, SETTINGS, SyncFaults())
    report.findings += [damage("journal", one.path, one.position, one.text) for one in ring.holes]
    try:
        await _read(report, ring, terms)
    except CorruptionError as error:
        report.findings.append(damage("journal", error.path, error.position, f"expected {error.expected}"))
    if not report.findings:
        report.findings.append(damage("journal", refusal.path, refusal.position, f"expected {refusal.expected}"))


def journal_directory(data: str, shard: int) -> str:
    return os.path.join(data, "shards", str(shard), "journal")


async def shard_numbers(disk: Disk, data: str) -> list[int]:
    """Those with a directory, rising."""
    try:
        names = await disk.list_directory(os.path.join(data, "shards"))
    except StorageError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())
