"""Bringing one partition back from its segments (docs/durability.md): the last one is scanned and cut.

A read-only shard scans too, but writes nothing: it serves what reads back valid.
"""

from __future__ import annotations

import errno

from shardserver.errors import CorruptionError, StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage import journal_format as fmt
from shardserver.storage import segment as seg
from shardserver.storage.disk import File
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.synced_write import cut_synced, sync_directory_noted


class PartitionRecovery:
    """One try to recover one partition; `log` is as new at its start."""

    def __init__(self, log: PartitionLog, hint: fmt.Hint | None, *, read_only: bool) -> None:
        self._log, self._hint, self._read_only = log, hint, read_only
        self._disk, self._faults = log.resources.disk, log.resources.faults

    async def run(self) -> int:
        """Find the segments, scan the last one from the hint, cut it there; gives the bytes read.

        Raises:
            CorruptionError: a segment is missing, or its header is damaged.
        """
        log, hint = self._log, self._hint
        await self._open_segments()
        if hint is not None and (not log.segments or log.segments[-1].base_offset < hint.segment_base):
            raise CorruptionError(log.directory, 0, f"a segment with base offset {hint.segment_base}")
        return await self._scan_active() if log.segments else 0

    async def _open_segments(self) -> list[str]:
        names = [name for name in await self._names() if seg.SEGMENT_NAME.fullmatch(name)]
        for name in names:
            await self._open_segment(int(name[:-4]), is_last=name == names[-1])
        return names

    async def _names(self) -> list[str]:
        try:
            names = await self._disk.list_directory(self._log.directory)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            return []  # never flushed
        self._log.directory_exists = bool(names)
        return names

    async def _open_segment(self, base_offset: int, *, is_last: bool) -> None:
        log = self._log
        path = seg.segment_path(log.directory, base_offset)
        file = await self._disk.open(path, lock=True)
        try:
            file_bytes, header = await self._read_header(file)
        except StorageError:
            # Its lock would stay, and the next try, here or in another shard, wait for it for ever.
            await self._disk.close(file)
            raise
        if header is None or header[:2] != (log.uid, base_offset):
            await self._disk.close(file)
            await self._drop_unborn(path, base_offset, is_last=is_last and file_bytes <= fmt.BLOCK_BYTES)
            return
        log.last_timestamp = max(log.last_timestamp, header.last_timestamp)
        end = align_up(max(file_bytes, fmt.BLOCK_BYTES), fmt.BLOCK_BYTES)
        segment = seg.Segment(path, base_offset, header.last_timestamp, end=end, follows_hole=header.follows_hole)
        segment.file, segment.indexed, segment.index_saved_end = file, False, end
        if not is_last:
            await self._disk.close(file)
            segment.file = None
        log.segments.append(segment)

    async def _read_header(self, file: File) -> tuple[int, seg.SegmentHeader | None]:
        block = aligned_buffer(fmt.BLOCK_BYTES)
        file_bytes = await self._disk.file_bytes(file)
        await self._disk.read(file, 0, block)
        return file_bytes, seg.decode_header(block)

    async def _drop_unborn(self, path: str, base_offset: int, *, is_last: bool) -> None:
        """Of a last segment whose header was never synced: no run was written behind it."""
        if not is_last or (self._hint is not None and self._hint.segment_base == base_offset):
            raise CorruptionError(path, 0, f"a segment header of partition {self._log.uid}")
        if not self._read_only:
            since = self._faults.number
            await self._disk.unlink(path)
            await sync_directory_noted(self._disk, self._faults, self._log.directory, since)

    async def open_unchanged(self) -> None:
        log, hint = self._log, self._hint
        assert hint is not None
        names = await self._open_segments()
        found = [segment.base_offset for segment in log.segments]
        if len(found) != len(names) or found[-1:] != [hint.segment_base]:
            raise CorruptionError(log.directory, 0, f"a last segment with base offset {hint.segment_base}")
        active = log.segments[-1]
        if await self._disk.file_bytes(active.file) != hint.position:
            raise CorruptionError(active.path, hint.position, "the end of the segment")
        active.indexed = hint.position == fmt.BLOCK_BYTES
        log.take_recovered_end(hint.next_offset, hint.last_timestamp)

    async def _scan_active(self) -> int:
        log, hint = self._log, self._hint
        active = log.segments[-1]
        if active.file is None:  # its successor had a torn header and was removed
            active.file = await self._disk.open(active.path)
        start = fmt.Hint(active.base_offset, fmt.BLOCK_BYTES, active.base_offset, log.last_timestamp, 0)
        if hint is not None and hint.segment_base == active.base_offset:
            start = hint
        elif not self._read_only:  # its creator may have died before it synced the header; a hint says that it has
            await seg.rewrite_header(self._disk, self._faults, active)
        active.indexed = start.position == fmt.BLOCK_BYTES
        result = await seg.scan_segment(self._disk, active, start, rewrite=None if self._read_only else self._faults)
        await self._cut(active, result.end)
        log.take_recovered_end(result.next_offset, result.last_timestamp)
        return result.read_bytes

    async def _cut(self, active: seg.Segment, end: int) -> None:
        file_bytes = await self._disk.file_bytes(active.file)
        if end > file_bytes:
            raise CorruptionError(active.path, end, "a segment that reaches up to its hint")
        if end < file_bytes and not self._read_only:
            await cut_synced(self._disk, self._faults, active.file, end)
        active.end = active.index_saved_end = end


async def open_unchanged(log: PartitionLog, hint: fmt.Hint) -> None:
    """Open the segments of a partition that its former owner has synced and closed: reads headers, writes nothing.

    Raises:
        CorruptionError: the files do not end where the hint says; somebody else has written to them.
        StorageError: the disk failed. Nothing is open then.
    """
    await log.forget_segments()  # one that comes back to its former owner has its closed ones
    try:
        await PartitionRecovery(log, hint, read_only=True).open_unchanged()
    except StorageError:
        await log.forget_segments()
        raise


async def recover_partition(log: PartitionLog, hint: fmt.Hint | None, *, read_only: bool, tries: int = 3) -> int:
    """Recover; gives the bytes read. A disk that fails at each of some tries costs this partition only.

    Raises:
        CorruptionError: as PartitionRecovery.run; trying again would change nothing.
        StorageError: the last try failed.
    """
    while True:
        tries -= 1
        try:
            return await PartitionRecovery(log, hint, read_only=read_only).run()
        except CorruptionError:
            raise
        except StorageError:
            await log.forget_segments()
            if tries == 0:
                raise
