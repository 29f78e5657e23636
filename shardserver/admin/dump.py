"""`shardserver dump`: what stands in the files of a stopped server, a line for each record, in the order of the files.

Damage is no reason to stop: it is a line of its own, and the dump goes on behind it as far as the readers can.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from shardserver.admin.inspection import ARENA_BYTES
from shardserver.admin.journal_check import SETTINGS, journal_directory, shard_numbers
from shardserver.admin.partition_check import read_segment_header, walk_segment
from shardserver.admin.salvaged_journal import close_ring, open_salvaged
from shardserver.admin.stopped_server import read_stopped
from shardserver.core import metadata_events as ev
from shardserver.core.metadata_snapshot import decode_snapshot
from shardserver.errors import CorruptionError, StorageError
from shardserver.memory.aligned import align_up
from shardserver.memory.heap import heap_arena
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import journal_format as fmt
from shardserver.storage import segment as seg
from shardserver.storage.disk import Disk
from shardserver.storage.index import read_index
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.offsets import read_snapshot
from shardserver.storage.segment_reader import Damage, SegmentFiles
from shardserver.storage.synced_write import SyncFaults
from shardserver.storage.unknown_directories import PARTITION_NAME

Line = dict[str, Any]
PARTS = ("metadata", "journal", "offsets", "segments")
KINDS = {fmt.KIND_BATCH: "batch", fmt.KIND_OFFSET: "offset", fmt.KIND_HINT: "hint", fmt.KIND_ADOPTION: "adoption"}
NO_END = 1 << 63


async def dump(path: str, part: str, uid: int | None) -> int:
    """Print lines of JSON. part: one of PARTS, or all; uid: of one partition only. Raises ConfigError."""
    async with read_stopped(path) as (disk, data):
        dumper = Dumper(disk, data, uid)
        for name in PARTS if part == "all" else (part,):
            async for line in getattr(dumper, name)():
                print(json.dumps(line))
    return 0


class Dumper:
    """Each part gives its lines. Password hashes are left out."""

    def __init__(self, disk: Disk, data: str, uid: int | None) -> None:
        self._disk, self._data, self._uid = disk, data, uid

    def _is_wanted(self, uid: int) -> bool:
        return self._uid is None or uid == self._uid

    async def metadata(self) -> AsyncIterator[Line]:
        log = MetadataLog(self._disk, os.path.join(self._data, "metadata"))
        try:
            snapshot, records = await log.replay(read_only=True)
            if snapshot is not None:
                yield {"part": "metadata", "snapshot": _shown(decode_snapshot(snapshot).metadata)}
            for raw in records:
                for event in ev.decode_change(raw).events:
                    yield {"part": "metadata", "event": _shown(event)}
        except (CorruptionError, StorageError, msgspec.DecodeError) as error:
            yield {"part": "metadata", "damage": str(error)}
        finally:
            await log.close()

    async def journal(self) -> AsyncIterator[Line]:
        for shard in await shard_numbers(self._disk, self._data):
            directory = journal_directory(self._data, shard)
            try:
                ring = await open_salvaged(self._disk, directory, SETTINGS, SyncFaults())
            except StorageError as error:
                yield {"part": "journal", "damage": str(error)}
                continue
            for hole in ring.holes:
                yield {
                    "part": "journal",
                    "path": self._short(hole.path),
                    "position": hole.position,
                    "damage": hole.text,
                }
            async for one in ring.files():
                for write in one.writes:
                    async for line in self._write_lines(one.journal_file.path, write, one.buffer):
                        yield line
            await close_ring(ring)

    async def _write_lines(self, path: str, write: fmt.WriteHeader, buffer: memoryview) -> AsyncIterator[Line]:
        place: Line = {"part": "journal", "path": self._short(path), "position": write.position}
        if self._uid is None:
            yield place | {
                "sequence": write.sequence,
                "flags": write.flags,
                "length": write.length,
                "oldest_live": write.oldest_live,
                "records": write.records,
            }
        raw = buffer[write.position : write.position + write.length]
        for record in fmt.decode_records(raw, write, path):
            if self._is_wanted(record.uid):
                yield place | _record_line(record)

    async def offsets(self) -> AsyncIterator[Line]:
        for shard in await shard_numbers(self._disk, self._data):
            try:
                entries, _, covered = await read_snapshot(self._disk, os.path.join(self._data, "shards", str(shard)))
            except StorageError as error:
                yield {"part": "offsets", "damage": str(error)}
                continue
            for (uid, kind, consumer), (term, offset) in entries.items():
                if self._is_wanted(uid):
                    known = {"uid": uid, "term": term, "consumer_kind": kind, "consumer": consumer, "offset": offset}
                    yield {"part": "offsets", "shard": shard, "covered": covered} | known

    async def segments(self) -> AsyncIterator[Line]:
        parent = os.path.join(self._data, "partitions")
        for name in await self._names(parent):
            if PARTITION_NAME.fullmatch(name) and self._is_wanted(int(name, 16)):
                directory = os.path.join(parent, name)
                for file in await self._names(directory):
                    if seg.SEGMENT_NAME.fullmatch(file):
                        async for line in self._segment(directory, int(name, 16), int(file[:20])):
                            yield line

    async def _names(self, directory: str) -> list[str]:
        try:
            return await self._disk.list_directory(directory)
        except StorageError:
            return []

    async def _segment(self, directory: str, uid: int, base: int) -> AsyncIterator[Line]:
        path = seg.segment_path(directory, base)
        place: Line = {"part": "segments", "path": self._short(path)}
        file = await self._disk.open(path)
        header, file_bytes = await read_segment_header(self._disk, file), await self._disk.file_bytes(file)
        yield place | {"position": 0} | (header._asdict() if header is not None else {"damage": "no segment header"})
        segment = seg.Segment(path, base, end=align_up(max(file_bytes, seg.BLOCK_BYTES), seg.BLOCK_BYTES), file=file)
        segment.index = await read_index(self._disk, directory, uid, base) or segment.index
        start, files = (base, seg.BLOCK_BYTES), SegmentFiles(self._disk, 1)
        walk = walk_segment(self._disk, files, heap_arena(ARENA_BYTES), segment, start, NO_END)
        try:
            while (found := await walk.next()) is not None:
                if not isinstance(found, Damage):
                    yield place | {"position": found.position} | _batch_line(found.data)
                elif found.next_offset < NO_END or align_up(found.position, seg.BLOCK_BYTES) < file_bytes:
                    yield place | {"position": found.position, "damage": f"no valid batch with offset {found.offset}"}
        finally:
            await self._disk.close(file)

    def _short(self, path: str) -> str:
        return os.path.relpath(path, self._data)


def _shown(value: Any) -> Any:
    """Plain values, without the hashes of passwords."""
    plain = msgspec.to_builtins(value, str_keys=True)
    return _without_secrets(plain)


def _without_secrets(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _without_secrets(one) for key, one in plain.items() if key != "password_hash"}
    return [_without_secrets(one) for one in plain] if isinstance(plain, list) else plain


def _record_line(record: fmt.Record) -> Line:
    line: Line = {"kind": KINDS.get(record.kind, record.kind), "shard": record.shard, "uid": record.uid}
    line["term"] = record.term
    if record.kind == fmt.KIND_BATCH:
        return line | _batch_line(record.payload)
    if record.kind == fmt.KIND_OFFSET:
        names = ("consumer_kind", "consumer", "offset")
        gone = bool(record.flags & fmt.RECORD_TOMBSTONE)
        return line | dict(zip(names, fmt.decode_offset(record.payload), strict=True)) | {"deleted": gone}
    if record.kind in (fmt.KIND_HINT, fmt.KIND_ADOPTION):
        hint = fmt.Hint.decode(record.payload)
        line |= {"segment_base": hint.segment_base, "synced_to": hint.position, "next_offset": hint.next_offset}
    return line


def _batch_line(data: memoryview) -> Line:
    header = read_batch_header(data)
    return {
        "base_offset": header.base_offset,
        "messages": header.message_count,
        "timestamp": header.base_timestamp,
        "bytes": header.batch_length,
    }
