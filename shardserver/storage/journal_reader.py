"""Reading a journal at start: as few bytes as prove what it holds. Format: docs/formats/journal.md.

The heads (file header and first write) of all files say which file is the newest; the newest, read to its end, says
from which sequence on files are live. The other live files are read one at a time, when recovery asks for them, each
up to the end that its successor's first write tells. So memory holds the newest file and two more at most.

What proves the end of the log. One write is in flight at a time and the next one is submitted only after its sync, so
behind the last acknowledged write stands at most one torn write, and behind that nothing of this use of the file. A
valid write there says that the invalid one had been complete: it is damaged, and the start is refused.

* In the newest file all blocks behind the end are looked at, unless the last write is a clean end: an opening writes
  nothing behind that. A write is at most MAX_WRITE_BYTES long, so as many bytes would do for one damaged write; the
  whole file also shows several in a row, and it is one file.
* The newest file is known by its first write, and that can be damaged too, so that the file looks old or unused.
  Files are taken into use in `reuse_order`, so only the first in that order can hold the sequence behind the newest
  one (were its head good, it would be the newest). There the next MAX_WRITE_BYTES are looked at: the second write
  begins in them. And a file with an invalid head that is not blank is looked at whole: a head torn by a crash is
  rare, and the next opening takes just that file.
* In an older live file the successor has said where it ends; that, and no byte behind it, is the proof.

What cannot be told from a torn write: damage to the very last one. Rejected: reading the whole ring (128 MiB by
default, also after a clean stop); stopping the search at the first old write that is whole, which misses a write that
the device has lost.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from shardserver.errors import CorruptionError
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import journal_format as fmt
from shardserver.storage.disk import Disk
from shardserver.storage.journal import Journal, JournalFile, reuse_order
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults, write_synced

HEAD_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 20

Progress = Callable[[int], None]


@dataclass(slots=True)
class ReadCount:
    """Bytes read so far, of all files; `on_progress` is told after each read."""

    on_progress: Progress
    read_bytes: int = 0

    def add(self, more: int) -> None:
        self.read_bytes += more
        self.on_progress(self.read_bytes)


class FileReader:
    """One file of the ring, read from its start only as far as asked; its memory is committed as it is filled."""

    def __init__(self, disk: Disk, file: JournalFile, count: ReadCount) -> None:
        self.file = file
        self._disk, self._count = disk, count
        self._buffer = aligned_buffer(file.file_bytes)[: file.file_bytes]
        self._filled = 0

    async def fill(self, end: int) -> memoryview:
        """All bytes read so far, at least up to `end` or the end of the file. A read error is never that end."""
        end = min(end, len(self._buffer))
        while self._filled < end:
            chunk = self._buffer[self._filled : min(end, self._filled + CHUNK_BYTES)]
            got = await self._disk.read(self.file.file, self._filled, chunk)
            if got < len(chunk):
                raise CorruptionError(self.file.path, self._filled + got, f"{self.file.file_bytes} bytes of journal")
            self._filled += got
            self._count.add(got)
        return self._buffer[: self._filled]

    async def _fill_ahead(self, end: int) -> memoryview:
        """As fill; when it has to read, then as much again as was read before, so that writes cost no read each."""
        ahead = min(max(self._filled, HEAD_BYTES), CHUNK_BYTES)
        return await self.fill(end if end <= self._filled else max(end, self._filled + ahead))

    async def write_at(self, position: int, journal_id: int) -> fmt.WriteHeader | None:
        """The valid write of this journal whose place is here, of whatever use of the file."""
        header = fmt.decode_write_header((await self._fill_ahead(position + fmt.BLOCK_BYTES))[position:])
        if header is None or (header.journal_id, header.position) != (journal_id, position):
            return None
        return fmt.decode_write((await self._fill_ahead(position + header.length))[position:])

    async def is_blank(self) -> bool:
        """Nothing but zeros where the head stands in a file that was used."""
        return not any((await self.fill(HEAD_BYTES))[fmt.BLOCK_BYTES : HEAD_BYTES])


@dataclass(slots=True)
class RecoveredFile:
    """One file's valid writes, in order. `buffer` holds the file up to their end."""

    journal_file: JournalFile
    sequence: int
    writes: list[fmt.WriteHeader]
    end: int
    buffer: memoryview


@dataclass(slots=True)
class Head:
    """A file and its first write; None: never used (then it is blank), or torn or damaged there."""

    reader: FileReader
    first: fmt.WriteHeader | None
    blank: bool


@dataclass(slots=True)
class LiveFile:
    """A file that recovery needs, and where the first write of its successor says that it ends."""

    journal_file: JournalFile
    sequence: int
    end: int


class JournalRecovery:
    """What stood in the ring. `newest`: None in a ring that was never written."""

    def __init__(
        self, disk: Disk, journal: Journal, newest: RecoveredFile | None, older: list[LiveFile], count: ReadCount
    ) -> None:
        self.journal = journal
        self._disk, self._newest, self._older, self._count = disk, newest, older, count
        self._opened_bytes = count.read_bytes

    @property
    def clean(self) -> bool:
        """The former process stopped by itself: no batch of the live files is missing in the segments."""
        return self._newest is not None and bool(self._newest.writes[-1].flags & fmt.FLAG_CLEAN)

    @property
    def oldest_sequence(self) -> int:
        """Sequence of the oldest live file; 0 when nothing was ever written."""
        return self._older[0].sequence if self._older else self._newest.sequence if self._newest else 0

    @property
    def read_bytes(self) -> int:
        return self._count.read_bytes

    @property
    def expected_bytes(self) -> int:
        """What `read_bytes` comes to, when all live files are asked for twice; fewer when not. A chunk more or less."""
        return self._opened_bytes + 2 * sum(file.end for file in self._older)

    async def files(self, first_sequence: int = 0) -> AsyncIterator[RecoveredFile]:
        """The live files from a sequence on, oldest first, each read when its turn comes.

        Raises:
            CorruptionError: a file does not end where its successor says.
        """
        for file in self._older:
            if file.sequence >= first_sequence:
                yield await self._read(file)
        for newest in self._newest_files():
            if newest.sequence >= first_sequence:
                yield newest

    def _newest_files(self) -> list[RecoveredFile]:
        return [] if self._newest is None else [self._newest]

    async def _read(self, file: LiveFile) -> RecoveredFile:
        reader = FileReader(self._disk, file.journal_file, self._count)
        found = await _read_writes(reader, self.journal.journal_id)
        if (found.sequence, found.end) != (file.sequence, file.end):
            path = file.journal_file.path
            raise CorruptionError(path, found.end, f"writes of sequence {file.sequence} up to position {file.end}")
        return found


class RingOpener(Protocol):
    """As open_journal."""

    async def __call__(
        self,
        disk: Disk,
        directory: str,
        settings: LogSettings,
        faults: SyncFaults,
        on_progress: Progress = ...,
        *,
        read_only: bool = ...,
    ) -> JournalRecovery: ...


async def open_journal(
    disk: Disk,
    directory: str,
    settings: LogSettings,
    faults: SyncFaults,
    on_progress: Progress = lambda read_bytes: None,
    *,
    read_only: bool = False,
) -> JournalRecovery:
    """Lock the ring, find its end, and make its last write durable (storage rule 16). Reads heads and the newest file.

    read_only: that write is not made again, so what it holds may be in the device's cache only.

    Raises:
        CorruptionError: a file is missing or of another journal, or a live write is damaged and is not the torn tail.
    """
    count = ReadCount(on_progress)
    files, journal_id = await _open_files(disk, directory, count)
    journal = Journal(disk, files, journal_id, settings, faults)
    heads = [await _read_head(FileReader(disk, file, count), journal_id) for file in files]
    newest_head = _newest(heads)
    await _refuse_damaged_heads(heads, journal_id, 0 if newest_head is None else newest_head.reader.file.sequence)
    if newest_head is None:
        return JournalRecovery(disk, journal, None, [], count)
    newest = await _read_newest(newest_head.reader, journal_id)
    older = _older_files(heads, newest)
    journal.adopt_end(newest.sequence, newest.end, newest.sequence - len(older))
    if not read_only:
        await _write_again(disk, faults, newest)
    return JournalRecovery(disk, journal, newest, older, count)


async def _open_files(disk: Disk, directory: str, count: ReadCount) -> tuple[list[JournalFile], int]:
    """Every file of one ring, locked, and the journal's id."""
    files: list[JournalFile] = []
    headers: list[fmt.FileHeader] = []
    for name in await disk.list_directory(directory):
        if name.endswith(".journal"):
            path = os.path.join(directory, name)
            file = await disk.open(path)
            header = await _read_file_header(disk, file, path, name)
            count.add(fmt.BLOCK_BYTES)
            if headers and header.journal_id != headers[0].journal_id:
                raise CorruptionError(path, 16, f"journal id {headers[0].journal_id:#x}, as in {files[0].path}")
            files.append(JournalFile(header.number, path, file, header.file_bytes))
            headers.append(header)
    told = max((header.files for header in headers), default=1)
    for number in range(max(told, len(files))):
        if number == len(files) or files[number].number != number:
            raise CorruptionError(os.path.join(directory, fmt.file_name(number)), 0, f"journal file {number}")
    return files, headers[0].journal_id


async def _read_file_header(disk: Disk, file: object, path: str, name: str) -> fmt.FileHeader:
    block = aligned_buffer(fmt.BLOCK_BYTES)
    got = await disk.read(file, 0, block)
    header = fmt.decode_file_header(block[:got])
    if header is None or name != fmt.file_name(header.number):
        raise CorruptionError(path, 0, "a journal file header of version 1, with the number in the file's name")
    if await disk.file_bytes(file) != header.file_bytes:
        raise CorruptionError(path, await disk.file_bytes(file), f"a journal file of {header.file_bytes} bytes")
    return header


async def _read_head(reader: FileReader, journal_id: int) -> Head:
    first = await reader.write_at(fmt.BLOCK_BYTES, journal_id)
    reader.file.sequence = 0 if first is None else first.sequence
    return Head(reader, first, first is None and await reader.is_blank())


def _newest(heads: list[Head]) -> Head | None:
    used = sorted((head for head in heads if head.first is not None), key=lambda head: head.reader.file.sequence)
    for one, other in itertools.pairwise(used):
        if one.reader.file.sequence == other.reader.file.sequence:
            file = other.reader.file
            raise CorruptionError(file.path, fmt.BLOCK_BYTES, f"another sequence than that of {one.reader.file.path}")
    return used[-1] if used else None


async def _refuse_damaged_heads(heads: list[Head], journal_id: int, newest: int) -> None:
    """No file holds a sequence above the newest that was found (see the module)."""
    following = min(heads, key=lambda head: reuse_order(head.reader.file))
    for head in heads:
        end = 2 * fmt.BLOCK_BYTES + fmt.MAX_WRITE_BYTES if head is following else 0
        if head.first is None and not head.blank:
            end = head.reader.file.file_bytes
        await _refuse_valid_write(head.reader, journal_id, (fmt.BLOCK_BYTES, end), lambda one: one.sequence > newest)


async def _refuse_valid_write(
    reader: FileReader, journal_id: int, extent: tuple[int, int], proves: Callable[[fmt.WriteHeader], bool]
) -> None:
    """The write at the start of extent is invalid; no valid one in the extent may prove that it had been complete."""
    start, end = extent
    end = min(end, reader.file.file_bytes)
    view = await reader.fill(end)
    for position in range(start, end, fmt.BLOCK_BYTES):
        if view[position : position + 8] == fmt.WRITE_MAGIC:
            header = await reader.write_at(position, journal_id)
            if header is not None and proves(header):
                raise CorruptionError(reader.file.path, start, f"the write before the valid one at {position}")


async def _read_newest(reader: FileReader, journal_id: int) -> RecoveredFile:
    newest = await _read_writes(reader, journal_id)
    first, last = newest.writes[0], newest.writes[-1]
    if not last.flags & fmt.FLAG_CLEAN:
        await _refuse_valid_write(
            reader,
            journal_id,
            (newest.end, reader.file.file_bytes),
            lambda one: (one.sequence, one.nonce) == (first.sequence, first.nonce),
        )
    return newest


async def _read_writes(reader: FileReader, journal_id: int) -> RecoveredFile:
    """The writes of the file's present use: those with the sequence and nonce of its first one."""
    writes: list[fmt.WriteHeader] = []
    position = fmt.BLOCK_BYTES
    while (header := await reader.write_at(position, journal_id)) is not None:
        if writes and (header.sequence, header.nonce) != (writes[0].sequence, writes[0].nonce):
            break
        writes.append(header)
        position += header.length
    sequence = writes[0].sequence if writes else 0
    return RecoveredFile(reader.file, sequence, writes, position, await reader.fill(position))


def _older_files(heads: list[Head], newest: RecoveredFile) -> list[LiveFile]:
    """The live files before the newest, from `oldest_live` on, all there and each named by its successor."""
    by_sequence = {head.first.sequence: head for head in heads if head.first is not None}
    oldest = max(write.oldest_live for write in newest.writes)
    successor = newest.writes[0]
    older: list[LiveFile] = []
    for sequence in range(newest.sequence - 1, max(oldest, 1) - 1, -1):
        head = by_sequence.get(sequence)
        if head is None or head.first is None or successor.previous_sequence != sequence:
            suspects = [head for head in heads if head.first is None and not head.blank]
            path = (suspects or [by_sequence[successor.sequence]])[0].reader.file.path
            raise CorruptionError(path, fmt.BLOCK_BYTES, f"a ring that holds journal sequence {sequence}")
        older.insert(0, LiveFile(head.reader.file, sequence, successor.previous_end))
        successor = head.first
    return older


async def _write_again(disk: Disk, faults: SyncFaults, newest: RecoveredFile) -> None:
    """After a process crash the last write may be in the device's cache only: put it there again, synced."""
    last = newest.writes[-1]
    raw = newest.buffer[last.position : last.position + last.length]
    await write_synced(disk, faults, newest.journal_file.file, last.position, [raw])
