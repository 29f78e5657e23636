"""The journal of one shard: a ring of files, written once at creation and used again and again.

One write at a time, each an aligned O_DIRECT write linked to one fdatasync. A write is the atom: one
checksum covers it with its padding, and its identity (journal id, nonce of the opening, file
sequence, position) tells it from every other write that ever stood there.

A file may be used again once a *synced* write has said that nothing older than some later file is
needed (`oldest_live`); recovery asks only for the files from there on. The last free file is left
for the next opening, which must be able to start before anything was flushed.

Format: docs/formats/journal.md. Proof: docs/durability.md. Reading at start: journal_reader.py.
"""

from __future__ import annotations

import math
import os
import secrets
from dataclasses import dataclass

from shardserver.errors import StorageError
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import journal_format as fmt
from shardserver.storage.directory import rename_synced
from shardserver.storage.disk import Disk, File
from shardserver.storage.journal_writer import JournalWriter
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults, sync_directory_noted, sync_noted


@dataclass(slots=True)
class JournalFile:
    """One file of the ring. sequence: of its present or last use; 0: it holds no valid first write."""

    number: int
    path: str
    file: File
    file_bytes: int
    sequence: int = 0


def reuse_order(file: JournalFile) -> tuple[int, int]:
    """Of the free files, the lowest is taken into use next: those without a first write, then the oldest use."""
    return file.sequence, file.number


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    writes: int
    written_bytes: int
    files: int
    files_in_use: int


class Journal(JournalWriter):
    """Owns the ring's files, and through its base the staging memory and the identity of this opening."""

    def __init__(
        self, disk: Disk, files: list[JournalFile], journal_id: int, settings: LogSettings, faults: SyncFaults
    ) -> None:
        super().__init__(disk, faults, journal_id, settings.max_write_bytes)
        self._configured_files = settings.journal_files
        self._oldest_share, self._unflushed_bytes = 1.0, 0
        self._disk, self._sync_faults, self._files = disk, faults, files
        self.count_files()

    def count_files(self) -> None:
        """Whenever one is taken into use, added or freed."""
        oldest = max(self.published_oldest_live, 1)
        self.files_in_use = sum(1 for file in self._files if file.sequence >= oldest)
        self.is_flush_due = self.files_in_use > self._files_before_flush

    def plan_flush(self, oldest_share: float, unflushed_bytes: int) -> None:
        """oldest_share: of the partitions that keep files in use, those that keep the oldest one.

        unflushed_bytes: so much may be in the journal only, if that is more than half of the ring.
        """
        self._oldest_share, self._unflushed_bytes = oldest_share, unflushed_bytes
        self.count_files()

    @property
    def _files_before_flush(self) -> int:
        """So many may be in use before the oldest one is freed: half of the ring, or more when few partitions keep it.

        What is flushed later is flushed less often. Half of the ring stays free for what comes while all partitions are
        flushed, as much less as fewer keep the oldest file, but a quarter, and half of the files that are configured: a
        small ring fills faster than a disk syncs.
        """
        files, configured = len(self._files), self._configured_files
        half = files // 2
        free = max(-(-files // 4), configured - configured // 2, math.ceil((files - half) * self._oldest_share))
        return max(half, min(files - free, self._unflushed_bytes // self._files[0].file_bytes))

    @property
    def free_files(self) -> int:
        return len(self._files) - self.files_in_use

    @property
    def files(self) -> int:
        return len(self._files)

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(self.writes, self.written_bytes, self.files, self.files_in_use)

    def adopt_end(self, sequence: int, end: int, oldest_live: int) -> None:
        """Continue after what recovery found: the next opening links to that end."""
        self.follow(sequence, end, oldest_live)
        self.count_files()

    def rotate(self) -> bool:
        """Take the next free file. The last free one is left for the next opening, unless this is an opening.

        Recovery knows by the order of this choice where to look for a file whose head is damaged (journal_reader.py).
        """
        free = [file for file in self._files if file.sequence < max(self.published_oldest_live, 1)]
        if len(free) < (1 if self.current is None else 2):
            return False
        chosen = min(free, key=reuse_order)
        chosen.sequence = self.take_file(chosen)
        self.count_files()
        return True

    async def grow(self, directory: str) -> None:
        """Add a file to the ring; it is taken into use when it is next in turn. Raises StorageError: all is as before.

        Built under another name, synced, renamed, directory synced: only then may a write stand in it.
        """
        number = len(self._files)
        header = fmt.FileHeader(number, number + 1, self.journal_id, self._files[0].file_bytes)
        path, since = os.path.join(directory, fmt.file_name(number)), self._sync_faults.number
        await self._disk.unlink(path + ".new")
        try:
            await _create_file(self._disk, self._sync_faults, path + ".new", header)
        except StorageError:
            await self._disk.unlink(path + ".new")  # on a full disk a part of it would hold what others need
            raise
        await self._disk.rename(path + ".new", path)
        await sync_directory_noted(self._disk, self._sync_faults, directory, since)
        self._files.append(JournalFile(number, path, await self._disk.open(path), header.file_bytes))
        self.count_files()

    @property
    def ring_bytes(self) -> int:
        return sum(file.file_bytes for file in self._files)

    async def close(self) -> None:
        for file in self._files:
            await self._disk.close(file.file)


async def create_journal(disk: Disk, faults: SyncFaults, parent: str, settings: LogSettings) -> None:
    """Build the ring beside its place, sync it, and rename it there: it exists whole or not at all."""
    await disk.make_directory(parent)
    await build_journal(disk, faults, parent, settings)
    await rename_synced(disk, faults, os.path.join(parent, "journal.new"), os.path.join(parent, "journal"))


async def build_journal(disk: Disk, faults: SyncFaults, parent: str, settings: LogSettings) -> int:
    """A whole, synced ring in `journal.new`; gives its id."""
    building, since = os.path.join(parent, "journal.new"), faults.number
    await sync_directory_noted(disk, faults, parent, since)  # what is there may be `journal` on disk (rename_synced)
    await disk.make_directory(building)
    for name in await disk.list_directory(building):
        await disk.unlink(os.path.join(building, name))
    journal_id = secrets.randbits(64)
    for number in range(settings.journal_files):
        header = fmt.FileHeader(number, settings.journal_files, journal_id, settings.journal_file_bytes)
        await _create_file(disk, faults, os.path.join(building, fmt.file_name(number)), header)
    await sync_directory_noted(disk, faults, building, since)
    return journal_id


async def _create_file(disk: Disk, faults: SyncFaults, path: str, header: fmt.FileHeader) -> None:
    file = await disk.open(path, create=True)
    try:
        await _fill(disk, faults, file, header)
    except StorageError:
        await disk.close(file)
        raise
    await disk.close(file)


async def _fill(disk: Disk, faults: SyncFaults, file: File, header: fmt.FileHeader) -> None:
    since = faults.number
    zeros = aligned_buffer(min(header.file_bytes, 4 << 20))
    for position in range(0, header.file_bytes, len(zeros)):
        await disk.write(file, position, [zeros[: min(len(zeros), header.file_bytes - position)]])
    zeros[: fmt.BLOCK_BYTES] = fmt.encode_file_header(header)
    await disk.write(file, 0, [zeros[: fmt.BLOCK_BYTES]])
    await sync_noted(disk, faults, file, since)
