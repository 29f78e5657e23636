"""The metadata log: records with their own blocks and sync, and snapshots. Format: docs/formats/metadata-log.md."""

from __future__ import annotations

import os
import struct

import xxhash

from shardserver.errors import CorruptionError, DiskFullError, StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage.directory import make_synced_directory
from shardserver.storage.disk import Disk, File
from shardserver.storage.reserve import Reserve
from shardserver.storage.synced_write import SyncFaults, cut_synced, sync_directory_noted, write_synced

BLOCK_BYTES = 4096
MAGIC = b"SSMETAL2"
KIND_SNAPSHOT, KIND_RECORD = 1, 2
_HEADER = struct.Struct("<8sIIQQQ")  # magic, kind, payload bytes, revision, generation, checksum


def _encode(kind: int, revision: int, generation: int, payload: bytes) -> memoryview:
    head = _HEADER.pack(MAGIC, kind, len(payload), revision, generation, 0)
    checksum = xxhash.xxh3_64_intdigest(head + payload)
    buffer = aligned_buffer(align_up(_HEADER.size + len(payload), BLOCK_BYTES))
    buffer[: _HEADER.size] = head[:-8] + checksum.to_bytes(8, "little")
    buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
    return buffer


def _decode(raw: memoryview) -> tuple[int, int, int, bytes] | None:
    """(kind, revision, generation, payload), or None when no valid entry begins at raw[0]."""
    if len(raw) < BLOCK_BYTES:
        return None
    magic, kind, length, revision, generation, checksum = _HEADER.unpack_from(raw)
    if magic != MAGIC or _HEADER.size + length > len(raw):
        return None
    payload = bytes(raw[_HEADER.size : _HEADER.size + length])
    head = bytes(raw[: _HEADER.size - 8]) + bytes(8)
    return (kind, revision, generation, payload) if xxhash.xxh3_64_intdigest(head + payload) == checksum else None


class MetadataLog:
    """One file a generation: `metadata.<generation>`, its first entry the snapshot that it begins with."""

    def __init__(
        self, disk: Disk, directory: str, faults: SyncFaults | None = None, reserve: Reserve | None = None
    ) -> None:
        self._disk, self._directory = disk, directory
        self._faults = faults or SyncFaults()
        self._reserve = reserve or Reserve(disk, directory, 0)
        self._file: File | None = None
        self._generation = 0
        self._revision = 0
        self._position = 0
        self._record_bytes = 0
        self._failed: StorageError | None = None
        self._replayed: list[int] = []  # positions of the records
        self._found: tuple[bytes | None, list[bytes]] = None, []
        self.has_damage = False

    @property
    def record_bytes(self) -> int:
        return self._record_bytes

    @property
    def path(self) -> str:
        """Of the present generation's file; empty before replay, and where there is none."""
        return self._path(self._generation) if self._generation else ""

    async def replay(self, *, read_only: bool = False, up_to_damage: bool = False) -> tuple[bytes | None, list[bytes]]:
        """The snapshot (None in a new log) and the records after it, all durable.

        read_only: write nothing, and take nothing until the next start.
        up_to_damage: give what stands before it instead of refusing; `has_damage` tells then. With read_only.

        Raises:
            CorruptionError: an entry is damaged and is not the torn tail.
        """
        if read_only:
            self._failed = StorageError("the metadata log is read-only: its device did not take writes")
        else:
            await make_synced_directory(self._disk, self._faults, self._directory)
        names = await self._disk.list_directory(self._directory)
        generations = sorted(int(name[9:]) for name in names if name.startswith("metadata.") and name[9:].isdigit())
        if not generations and read_only:
            return None, []
        if not generations:
            await self._begin_generation(1, b"")
            return None, []
        self._generation = generations[-1]
        path = self._path(self._generation)
        self._file = await self._disk.open(path)
        if not read_only:
            await self._drop_former(generations[:-1])
        buffer = aligned_buffer(max(BLOCK_BYTES, align_up(await self._disk.file_bytes(self._file), BLOCK_BYTES)))
        got = await self._disk.read(self._file, 0, buffer)
        try:
            # Whole blocks: a file that somebody cut in the padding of its last entry still holds it.
            return await self._take_entries(path, buffer[: align_up(got, BLOCK_BYTES)])
        except CorruptionError:
            if not up_to_damage:
                raise
            self.has_damage = True
            return self._found

    async def _drop_former(self, generations: list[int]) -> None:
        """The newest one's maker may have died before it synced its name; the former ones would come back then."""
        await sync_directory_noted(self._disk, self._faults, self._directory, self._faults.number)
        for generation in generations:
            await self._disk.unlink(self._path(generation))

    async def _take_entries(self, path: str, raw: memoryview) -> tuple[bytes | None, list[bytes]]:
        snapshot: bytes | None = None
        records: list[bytes] = []
        position, last = 0, 0
        while position < len(raw):
            entry = _decode(raw[position:])
            if entry is None or entry[2] != self._generation:
                break
            kind, revision, _, payload = entry
            if (kind == KIND_SNAPSHOT) != (position == 0) or (position and revision != self._revision + 1):
                raise CorruptionError(path, position, f"revision {self._revision + 1}")
            if kind == KIND_SNAPSHOT:
                snapshot = payload or None
                self._found = snapshot, records
            else:
                records.append(payload)
                self._replayed.append(position)
            self._revision, last = revision, position
            position += align_up(_HEADER.size + len(payload), BLOCK_BYTES)
        self._refuse_damage(path, raw, position)
        self._position, self._record_bytes = position, position
        if self._failed is None:
            await self._make_durable(raw[last:position], last, torn=position < len(raw))
        return snapshot, records

    def corruption(self, record: int | None, reason: str) -> CorruptionError:
        """Of a record that replay gave, by its place there, or of the snapshot (None): its checksum is right."""
        position = 0 if record is None else self._replayed[record]
        return CorruptionError(self._path(self._generation), position, reason)

    def _refuse_damage(self, path: str, raw: memoryview, end: int) -> None:
        """A torn tail has nothing valid behind it: one entry is in flight at a time. A file begins with a snapshot."""
        if end == 0:
            raise CorruptionError(path, 0, "a metadata snapshot of version 2")
        for position in range(end + BLOCK_BYTES, len(raw), BLOCK_BYTES):
            # The cheap fields first: each leftover may claim all that follows, and its checksum would read all that.
            _, _, _, revision, generation, _ = _HEADER.unpack_from(raw, position)
            is_later = generation == self._generation and revision > self._revision
            if is_later and _decode(raw[position:]) is not None:
                raise CorruptionError(path, end, f"the entry before the valid one at {position}")

    async def _make_durable(self, last_entry: memoryview, position: int, *, torn: bool) -> None:
        """Cut the torn tail, and put the last entry there again, synced: it may be in the device's cache only."""
        assert self._file is not None
        if torn:
            await self._disk.truncate(self._file, self._position)
        await write_synced(self._disk, self._faults, self._file, position, [last_entry])

    async def append(self, payload: bytes) -> int:
        """Write and sync one record.

        Raises:
            DiskFullError: nothing was taken; the next one may be.
            StorageError: its fate is unknown, and nothing more is taken.
        """
        if self._failed is not None:
            raise self._failed
        entry = _encode(KIND_RECORD, self._revision + 1, self._generation, payload)
        try:
            await self._reserve.with_room(lambda: self._write(entry))
        except StorageError as error:
            if not isinstance(error, DiskFullError):
                self._failed = error
            raise
        self._revision += 1
        self._position += len(entry)
        self._record_bytes += len(entry)
        return self._revision

    async def _write(self, entry: memoryview) -> None:
        assert self._file is not None
        try:
            await write_synced(self._disk, self._faults, self._file, self._position, [entry])
        except DiskFullError as full:
            try:  # a part of it may have landed: cut, or it could revive behind a later entry of the same length
                await cut_synced(self._disk, self._faults, self._file, self._position)
            except StorageError as error:
                raise StorageError(f"{full}, then {error}", errno=error.errno) from error
            raise

    async def snapshot(self, payload: bytes) -> None:
        """Go on in a new file that begins with this state."""
        former = self._file
        await self._begin_generation(self._generation + 1, payload)
        if former is not None:
            await self._disk.close(former)
            await self._disk.unlink(self._path(self._generation - 1))

    async def begin_anew(self, payload: bytes) -> None:
        """A generation above all that are there, with this state; the log was not replayed. Raises StorageError."""
        names = await self._disk.list_directory(self._directory)
        generations = [int(name[9:]) for name in names if name.startswith("metadata.") and name[9:].isdigit()]
        await self._begin_generation(max(generations, default=0) + 1, payload)

    async def _begin_generation(self, generation: int, payload: bytes) -> None:
        building, since = os.path.join(self._directory, "building"), self._faults.number
        entry = _encode(KIND_SNAPSHOT, self._revision, generation, payload)
        file = await self._reserve.with_room(lambda: self._build(building, entry))
        try:
            await self._disk.rename(building, self._path(generation))
            await sync_directory_noted(self._disk, self._faults, self._directory, since)
        except StorageError as error:
            # Which file a restart would find is unknown now: a record in either could be the lost one. Not this one,
            # for a later start could not tell that the failed sync has dropped its name (rule 20).
            self._failed = error
            await self._disk.unlink(self._path(generation))
            raise
        self._file, self._generation = file, generation
        self._position, self._record_bytes = len(entry), 0

    async def _build(self, path: str, entry: memoryview) -> File:
        await self._disk.unlink(path)
        file = await self._disk.open(path, create=True)
        try:
            await write_synced(self._disk, self._faults, file, 0, [entry])
        except StorageError:
            await self._disk.close(file)
            raise
        return file

    def _path(self, generation: int) -> str:
        return os.path.join(self._directory, f"metadata.{generation}")

    async def close(self) -> None:
        if self._file is not None:
            await self._disk.close(self._file)
