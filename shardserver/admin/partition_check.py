"""A look at one partition's directory: each segment read through by the readers that serve polls."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from shardserver.admin.findings import Finding, damage, note
from shardserver.errors import CorruptionError, StorageError
from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.memory.arena import Arena
from shardserver.storage import segment as seg
from shardserver.storage.disk import Disk, File
from shardserver.storage.identity_file import NAME, read_identity
from shardserver.storage.index import read_index
from shardserver.storage.journal_format import BLOCK_BYTES, Hint
from shardserver.storage.segment_reader import Damage, SegmentFiles, SegmentWalk, is_hole
from shardserver.storage.settings import LogSettings

INDEX_NAME = re.compile(r"\d{20}\.index(\.new)?")
SETTINGS = LogSettings()


@dataclass(slots=True)
class SegmentReport:
    """end_offset: the offset behind its last message. holes: what cannot be read, known holes left out."""

    segment: seg.Segment
    file_bytes: int
    header: seg.SegmentHeader | None
    end_offset: int = 0
    damages: list[Damage] = field(default_factory=list)

    @property
    def is_damaged(self) -> bool:
        return self.header is None or bool(self.damages)


@dataclass(slots=True)
class PartitionReport:
    """end_offset: what a start finds in the segments. missing: offset at which a segment that is gone ended."""

    uid: int
    directory: str
    segments: list[SegmentReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    bad_indexes: list[str] = field(default_factory=list)
    end_offset: int = 0
    missing: int | None = None


class PartitionCheck:
    """hint: what the journal says of the last segment; None: nothing is known of it."""

    def __init__(self, disk: Disk, directory: str, uid: int, hint: Hint | None, memory: Arena) -> None:
        self._disk, self._hint, self._memory = disk, hint, memory
        self._files = SegmentFiles(disk, 1 << 20)
        self.report = PartitionReport(uid, directory)

    async def run(self) -> PartitionReport:
        """Raises StorageError: the device does not read a directory or a header."""
        names = await self._names()
        for name in names:
            if seg.SEGMENT_NAME.fullmatch(name):
                await self._open(name)
        self._drop_unborn()
        self._judge_headers()
        for number, one in enumerate(self.report.segments):
            await self._check_segment(number, one)
        self._judge_missing()
        await self._check_other_files(names)
        for one in self.report.segments:
            if one.segment.file is not None:
                await self._disk.close(one.segment.file)
        return self.report

    async def _names(self) -> list[str]:
        try:
            return await self._disk.list_directory(self.report.directory)
        except StorageError:
            return []  # never flushed

    async def _open(self, name: str) -> None:
        path, base = os.path.join(self.report.directory, name), int(name[:20])
        file = await self._disk.open(path)
        file_bytes, header = await self._disk.file_bytes(file), await read_segment_header(self._disk, file)
        good = header if header is not None and header[:2] == (self.report.uid, base) else None
        end = align_up(max(file_bytes, BLOCK_BYTES), BLOCK_BYTES)
        segment = seg.Segment(path, base, good.last_timestamp if good else 0, end=end, file=file)
        segment.follows_hole = good is not None and good.follows_hole
        index = await read_index(self._disk, self.report.directory, self.report.uid, base)
        if index is not None:
            segment.index, segment.index_is_stored = index, True
        self.report.segments.append(SegmentReport(segment, file_bytes, good))

    def _drop_unborn(self) -> None:
        """A last segment whose header was never synced: no run stands behind it, and a start removes it."""
        last = self.report.segments[-1] if self.report.segments else None
        if last is None or last.header is not None or last.file_bytes > BLOCK_BYTES or self._is_hinted(last):
            return
        self.report.segments.pop()
        text = "a segment that was being made; the next start removes it"
        self.report.findings.append(note("segment", last.segment.path, 0, text))

    def _is_hinted(self, one: SegmentReport) -> bool:
        return self._hint is not None and self._hint.segment_base == one.segment.base_offset

    def _judge_headers(self) -> None:
        for one in self.report.segments:
            if one.header is None:
                text = f"no segment header of partition {self.report.uid} with the base offset of the file's name"
                self.report.findings.append(damage("segment", one.segment.path, 0, text))

    async def _check_segment(self, number: int, one: SegmentReport) -> None:
        following = self.report.segments[number + 1].segment if number + 1 < len(self.report.segments) else None
        if following is not None:
            one.end_offset = following.base_offset
            await self._walk(one, one.end_offset, following)
            return
        if self._is_hinted(one):
            assert self._hint is not None
            one.end_offset = self._hint.next_offset
            await self._walk(one, one.end_offset, None)
        await self._find_end(one)

    async def _walk(self, one: SegmentReport, end_offset: int, following: seg.Segment | None) -> None:
        start = (one.segment.base_offset, BLOCK_BYTES)
        walk = walk_segment(self._disk, self._files, self._memory, one.segment, start, end_offset)
        try:
            while (found := await walk.next()) is not None:
                if isinstance(found, Damage) and not is_hole(one.segment, found, following):
                    self._note_damage(one, found)
        except CorruptionError:
            raise
        except StorageError as error:
            self.report.findings.append(damage("segment", one.segment.path, 0, f"the device does not read it: {error}"))

    def _note_damage(self, one: SegmentReport, found: Damage) -> None:
        one.damages.append(found)
        text = f"no valid batch with offset {found.offset}; what follows begins with offset {found.next_offset}"
        self.report.findings.append(damage("segment", one.segment.path, found.position, text))

    async def _find_end(self, one: SegmentReport) -> None:
        """Of the last segment, as recovery does: behind the hint what is not whole was never acknowledged."""
        start = Hint(one.segment.base_offset, BLOCK_BYTES, one.segment.base_offset, 0, 0)
        if self._is_hinted(one) and self._hint is not None:
            start = self._hint
        if start.position > one.file_bytes:
            self.report.end_offset = one.end_offset
            return
        result = await seg.scan_segment(self._disk, one.segment, start, rewrite=None)
        one.end_offset = self.report.end_offset = result.next_offset
        if result.end < one.file_bytes:
            text = f"a torn end of {one.file_bytes - result.end} bytes behind offset {result.next_offset}"
            self.report.findings.append(note("segment", one.segment.path, result.end, text + "; a start cuts it"))

    def _judge_missing(self) -> None:
        hint, report = self._hint, self.report
        last = report.segments[-1].segment.base_offset if report.segments else -1
        if hint is None or last >= hint.segment_base:
            return
        report.missing = report.end_offset = hint.next_offset
        text = f"the segment with base offset {hint.segment_base} is missing; offsets went up to {hint.next_offset}"
        report.findings.append(damage("segment", report.directory, 0, text))

    async def _check_other_files(self, names: list[str]) -> None:
        bases = {one.segment.base_offset: one for one in self.report.segments}
        for name in names:
            path = os.path.join(self.report.directory, name)
            if INDEX_NAME.fullmatch(name):
                known = bases.get(int(name[:20]))
                if name.endswith(".new") or known is None or not known.segment.index_is_stored:
                    self.report.bad_indexes.append(path)
                    text = "an index that nobody can use; the server makes a new one from the data"
                    self.report.findings.append(note("index", path, 0, text))
            elif name == NAME:
                await self._check_identity(path)
            elif not seg.SEGMENT_NAME.fullmatch(name) and name != NAME + ".new":
                self.report.findings.append(note("directory", path, 0, "not a file of the server; it is left alone"))

    async def _check_identity(self, path: str) -> None:
        if await read_identity(self._disk, self.report.directory, self.report.uid) is None:
            text = "no identity of this partition; the server writes it again after its next start"
            self.report.findings.append(note("identity", path, 0, text))


async def read_segment_header(disk: Disk, file: File) -> seg.SegmentHeader | None:
    """None when there is no valid one. Raises StorageError."""
    block = aligned_buffer(BLOCK_BYTES)
    return seg.decode_header(block[: await disk.read(file, 0, block)])


def walk_segment(
    disk: Disk, files: SegmentFiles, memory: Arena, segment: seg.Segment, start: tuple[int, int], end_offset: int
) -> SegmentWalk:
    return SegmentWalk(disk, files, SETTINGS, memory, segment, start, end_offset)
