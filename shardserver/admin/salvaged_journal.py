"""A ring of journal files read past its damage: each valid write of each file's newest use, whatever lies between.

The strict reader (storage/journal_reader.py) refuses such a ring, as a start must not guess. A write is known by its
checksum, its own place in the file, the journal's id, and the sequence and nonce of the file's use; so neither a write
of a former use nor a payload that copies one is taken for one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from shardserver.errors import StorageError
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import journal_format as fmt
from shardserver.storage.disk import Disk, File
from shardserver.storage.journal import Journal, JournalFile
from shardserver.storage.journal_reader import JournalRecovery, LiveFile, Progress, ReadCount, RecoveredFile
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults

FILE_NAME = re.compile(r"\d{5}\.journal")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Hole:
    """Between two valid writes of a file, or before its first or behind its last one."""

    path: str
    position: int
    text: str


@dataclass(slots=True)
class ScannedFile:
    """writes: of the newest use. unreadable: where the device refused to read."""

    journal_file: JournalFile
    header: fmt.FileHeader | None
    writes: list[fmt.WriteHeader] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)

    @property
    def sequence(self) -> int:
        return self.writes[0].sequence if self.writes else 0

    @property
    def end(self) -> int:
        return self.writes[-1].position + self.writes[-1].length if self.writes else fmt.BLOCK_BYTES


class SalvagedJournal(JournalRecovery):
    """What can still be read of a ring. `holes`: what cannot, of the files that recovery needs."""

    def __init__(self, disk: Disk, journal: Journal, scans: list[ScannedFile], count: ReadCount) -> None:
        self.scans = _live(scans)
        self.holes = list(_holes(scans, self.scans))
        newest = self.scans[-1] if self.scans else None
        older = [LiveFile(one.journal_file, one.sequence, one.end) for one in self.scans[:-1]]
        empty = memoryview(b"")
        recovered = None if newest is None else RecoveredFile(
            newest.journal_file, newest.sequence, newest.writes, newest.end, empty
        )  # fmt: skip
        super().__init__(disk, journal, recovered, older, count)
        self._salvage_disk = disk

    async def files(self, first_sequence: int = 0) -> AsyncIterator[RecoveredFile]:
        for one in self.scans:
            if one.sequence >= first_sequence:
                buffer, _ = await _read_file(self._salvage_disk, one.journal_file)
                yield RecoveredFile(one.journal_file, one.sequence, one.writes, one.end, buffer)


async def open_salvaged(
    disk: Disk,
    directory: str,
    settings: LogSettings,
    faults: SyncFaults,
    on_progress: Progress = lambda read_bytes: None,
    *,
    read_only: bool = False,
) -> SalvagedJournal:
    """As open_journal, but refuses nothing that it can read. Writes nothing. Raises StorageError: no directory."""
    names = [name for name in await disk.list_directory(directory) if FILE_NAME.fullmatch(name)]
    files = [await _open_file(disk, os.path.join(directory, name), int(name[:5])) for name in names]
    found = [await _scan(disk, file) for file in files]
    journal_id = _common_id(found)
    scans = []
    for scan, writes in found:
        scan.writes = _newest_use([one for one in writes if one.journal_id == journal_id])
        scan.journal_file.sequence = scan.sequence
        scans.append(scan)
    journal = Journal(disk, files, journal_id, settings, faults)
    return SalvagedJournal(disk, journal, scans, ReadCount(on_progress))


async def _open_file(disk: Disk, path: str, number: int) -> JournalFile:
    file: File = await disk.open(path)
    file_bytes = await disk.file_bytes(file)
    return JournalFile(number, path, file, file_bytes - file_bytes % fmt.BLOCK_BYTES)


async def _read_file(disk: Disk, file: JournalFile) -> tuple[memoryview, list[int]]:
    """All of it, zeros where the device refuses; and the positions of the chunks where it did."""
    buffer, refused = aligned_buffer(max(fmt.BLOCK_BYTES, file.file_bytes))[: file.file_bytes], []
    for position in range(0, file.file_bytes, CHUNK_BYTES):
        try:
            await disk.read(file.file, position, buffer[position : position + CHUNK_BYTES])
        except StorageError:
            refused.append(position)
    return buffer, refused


async def _scan(disk: Disk, file: JournalFile) -> tuple[ScannedFile, list[fmt.WriteHeader]]:
    buffer, unreadable = await _read_file(disk, file)
    header = fmt.decode_file_header(buffer)
    writes, position = [], fmt.BLOCK_BYTES
    while position < len(buffer):
        write = fmt.decode_write(buffer[position : position + fmt.MAX_WRITE_BYTES])
        good = write is not None and write.position == position
        if good and write is not None:
            writes.append(write)
        position += write.length if good and write is not None else fmt.BLOCK_BYTES
    return ScannedFile(file, header, unreadable=unreadable), writes


def _common_id(found: list[tuple[ScannedFile, list[fmt.WriteHeader]]]) -> int:
    """Of most files: one that somebody has put there is not part of the ring."""
    ids = Counter(scan.header.journal_id for scan, _ in found if scan.header is not None)
    if not ids:
        ids = Counter(write.journal_id for _, writes in found for write in writes)
    return ids.most_common(1)[0][0] if ids else 0


def _newest_use(writes: list[fmt.WriteHeader]) -> list[fmt.WriteHeader]:
    if not writes:
        return []
    newest = max(writes, key=lambda one: one.sequence)
    return [one for one in writes if (one.sequence, one.nonce) == (newest.sequence, newest.nonce)]


def _live(scans: list[ScannedFile]) -> list[ScannedFile]:
    used = sorted((one for one in scans if one.writes), key=lambda one: one.sequence)
    oldest = max((write.oldest_live for write in used[-1].writes), default=0) if used else 0
    return [one for one in used if one.sequence >= oldest]


def _holes(scans: list[ScannedFile], live: list[ScannedFile]) -> Iterator[Hole]:
    yield from _bad_headers(scans)
    for number, one in enumerate(live):
        path, due = one.journal_file.path, fmt.BLOCK_BYTES
        for write in one.writes:
            if write.position != due:
                yield Hole(path, due, f"no valid journal write up to byte {write.position}, where the next one begins")
            due = write.position + write.length
        for position in one.unreadable:
            yield Hole(path, position, "the device does not read it")
        following = live[number + 1].writes[0] if number + 1 < len(live) else None
        if following is None or not following.flags & fmt.FLAG_FILE_START:
            continue
        if following.previous_sequence != one.sequence:
            yield Hole(path, 0, f"the journal file with sequence {following.previous_sequence} is missing")
        elif following.previous_end != due:
            yield Hole(path, due, f"no valid journal write up to byte {following.previous_end}, the end of the file")


def _bad_headers(scans: list[ScannedFile]) -> Iterator[Hole]:
    headers = [one.header for one in scans if one.header is not None]
    common = Counter(one.journal_id for one in headers).most_common(1)
    for one in scans:
        file, header = one.journal_file, one.header
        if header is None or header.number != file.number:
            yield Hole(file.path, 0, "no journal file header with the number in the file's name")
        elif header.journal_id != common[0][0]:
            yield Hole(file.path, 16, f"journal id {header.journal_id:#x} of another journal")
        elif header.file_bytes != file.file_bytes:
            yield Hole(file.path, file.file_bytes, f"the file ends; its header says {header.file_bytes} bytes")
    numbers = {one.journal_file.number for one in scans}
    directory = os.path.dirname(scans[0].journal_file.path) if scans else ""
    for number in sorted(set(range(max((one.files for one in headers), default=0))) - numbers):
        yield Hole(os.path.join(directory, fmt.file_name(number)), 0, "the journal file is missing")


async def close_ring(ring: JournalRecovery) -> None:
    with contextlib.suppress(StorageError):
        await ring.journal.close()
