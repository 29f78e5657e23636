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

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from shardserver.errors import StorageError
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import journal_format as fmt
from shardserver.storage.disk import Disk, File
from shardserver.storage.settings import LogSettings
from shardserver.storage.staging import Staging
from shardserver.storage.synced_write import Ended, SyncFaults, start_synced_write

# Kept at the end of each file for writes without batches, so that a full file can still say that older ones are free.
RESERVED_BYTES = 64 * 1024


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


class Journal:
    """Owns the ring's files, the staging memory and the identity of this opening."""

    def __init__(
        self, disk: Disk, files: list[JournalFile], journal_id: int, settings: LogSettings, faults: SyncFaults
    ) -> None:
        self._disk, self._faults = disk, faults
        self._files = files
        self._journal_id = journal_id
        self._max_write_bytes = min(settings.max_write_bytes, fmt.MAX_WRITE_BYTES)
        self.staging = Staging(aligned_buffer(self._max_write_bytes))
        self._nonce = secrets.randbits(64)
        self._current: JournalFile | None = None
        self._position = 0
        self._previous = (0, 0)  # sequence and end of the file before the current one
        self._last_sequence = 0
        self._published_oldest_live = 0
        self._opening = True
        self._writes = 0
        self._written_bytes = 0
        self.in_flight = False
        self.files_in_use = 0
        self._count_files()

    @property
    def sequence(self) -> int:
        """Sequence of the file that the next record goes to."""
        return self._last_sequence if self._current is not None else self._last_sequence + 1

    def _count_files(self) -> None:
        """Whenever one is taken into use, or freed."""
        oldest = max(self._published_oldest_live, 1)
        self.files_in_use = sum(1 for file in self._files if file.sequence >= oldest)

    @property
    def journal_id(self) -> int:
        return self._journal_id

    @property
    def free_files(self) -> int:
        return len(self._files) - self.files_in_use

    @property
    def files(self) -> int:
        return len(self._files)

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(self._writes, self._written_bytes, self.files, self.files_in_use)

    def adopt_end(self, sequence: int, end: int, oldest_live: int) -> None:
        """Continue after what recovery found: the next opening links to that end."""
        self._previous, self._last_sequence = (sequence, end), sequence
        self._published_oldest_live = oldest_live
        self._count_files()

    def begin(self) -> bool:
        """Start building a write. False while one is in flight, or while no file can take batches."""
        if self.in_flight or not self._has_room():
            return False
        self.staging.begin(self._room())
        return True

    def begin_reserved(self) -> bool:
        """Start building a write without batches, in the room that is kept for those."""
        if self.in_flight or self._current is None or self._position + self._limit() > self._current.file_bytes:
            return False
        self.staging.begin(self._room())
        return True

    def submit(self, oldest_live: int, *, clean: bool, on_written: Callable[[], None] | None, on_end: Ended) -> None:
        """Write what was staged and sync it. on_end gets a StorageError when that failed: this journal is over then."""
        current = self._current
        assert current is not None
        first = self._position == fmt.BLOCK_BYTES
        flags = (fmt.FLAG_FILE_START if first else 0) | (fmt.FLAG_CLEAN if clean else 0)
        flags |= fmt.FLAG_OPENING if self._opening else 0
        previous_sequence, previous_end = self._previous
        staged = self.staging.seal(
            flags,
            self._journal_id,
            self._nonce,
            current.sequence,
            self._position,
            previous_sequence,
            previous_end,
            oldest_live,
        )
        length = len(staged)
        self.in_flight, self._opening = True, False
        position, self._position = self._position, self._position + length
        self._writes += 1
        self._written_bytes += length

        def ended(error: StorageError | None) -> None:
            if error is None:  # else in_flight stays: nothing may be written behind a write whose fate is unknown
                self.in_flight = False
                if oldest_live > self._published_oldest_live:
                    self._published_oldest_live = oldest_live
                    self._count_files()
            on_end(error)

        start_synced_write(self._disk, self._faults, current.file, position, [staged], on_written, ended)

    def _limit(self) -> int:
        return fmt.BLOCK_BYTES * 4

    def _room(self) -> int:
        assert self._current is not None
        left = self._current.file_bytes - self._position
        return min(self._max_write_bytes, left)

    def _has_room(self) -> bool:
        current = self._current
        if current is not None:
            needed = self._max_write_bytes + RESERVED_BYTES
            if self._position + needed <= current.file_bytes:
                return True
        return self._rotate()

    def _rotate(self) -> bool:
        """Take the next free file. The last free one is left for the next opening, unless this is an opening.

        Recovery knows by the order of this choice where to look for a file whose head is damaged (journal_reader.py).
        """
        free = [file for file in self._files if file.sequence < max(self._published_oldest_live, 1)]
        if len(free) < (1 if self._current is None else 2):
            return False
        if self._current is not None:
            self._previous = (self._current.sequence, self._position)
        chosen = min(free, key=reuse_order)
        self._last_sequence += 1
        chosen.sequence = self._last_sequence
        self._current, self._position = chosen, fmt.BLOCK_BYTES
        self._count_files()
        return True

    async def grow(self, directory: str) -> None:
        """Add a file to the ring; it is taken into use when it is next in turn. Raises StorageError: all is as before.

        Built under another name, synced, renamed, directory synced: only then may a write stand in it.
        """
        number = len(self._files)
        header = fmt.FileHeader(number, number + 1, self._journal_id, self._files[0].file_bytes)
        path = os.path.join(directory, fmt.file_name(number))
        await self._disk.unlink(path + ".new")
        try:
            await _create_file(self._disk, path + ".new", header)
        except StorageError:
            await self._disk.unlink(path + ".new")  # on a full disk a part of it would hold what others need
            raise
        await self._disk.rename(path + ".new", path)
        await self._disk.sync_directory(directory)
        self._files.append(JournalFile(number, path, await self._disk.open(path), header.file_bytes))

    @property
    def ring_bytes(self) -> int:
        return sum(file.file_bytes for file in self._files)

    async def close(self) -> None:
        for file in self._files:
            await self._disk.close(file.file)


async def create_journal(disk: Disk, parent: str, settings: LogSettings) -> None:
    """Build the ring beside its place, sync it, and rename it there: it exists whole or not at all."""
    await disk.make_directory(parent)
    await build_journal(disk, parent, settings)
    await disk.rename(os.path.join(parent, "journal.new"), os.path.join(parent, "journal"))
    await disk.sync_directory(parent)


async def build_journal(disk: Disk, parent: str, settings: LogSettings) -> int:
    """A whole, synced ring in `journal.new`; gives its id."""
    building = os.path.join(parent, "journal.new")
    await disk.make_directory(building)
    for name in await disk.list_directory(building):
        await disk.unlink(os.path.join(building, name))
    journal_id = secrets.randbits(64)
    for number in range(settings.journal_files):
        header = fmt.FileHeader(number, settings.journal_files, journal_id, settings.journal_file_bytes)
        await _create_file(disk, os.path.join(building, fmt.file_name(number)), header)
    await disk.sync_directory(building)
    return journal_id


async def _create_file(disk: Disk, path: str, header: fmt.FileHeader) -> None:
    file = await disk.open(path, create=True)
    try:
        await _fill(disk, file, header)
    except StorageError:
        await disk.close(file)
        raise
    await disk.close(file)


async def _fill(disk: Disk, file: File, header: fmt.FileHeader) -> None:
    zeros = aligned_buffer(min(header.file_bytes, 4 << 20))
    for position in range(0, header.file_bytes, len(zeros)):
        await disk.write(file, position, [zeros[: min(len(zeros), header.file_bytes - position)]])
    zeros[: fmt.BLOCK_BYTES] = fmt.encode_file_header(header)
    await disk.write(file, 0, [zeros[: fmt.BLOCK_BYTES]], sync=True)
