"""Files as a crash, another program or a broken device may have left them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from shardserver.core import metadata_events as ev
from shardserver.core.metadata_snapshot import decode_snapshot as decode_metadata_snapshot
from shardserver.errors import CorruptionError, StorageError
from shardserver.memory.aligned import align_up
from shardserver.memory.heap import heap_arena
from shardserver.storage import index, offsets, segment
from shardserver.storage import journal_format as fmt
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.segment_reader import Damage, SegmentFiles, SegmentWalk
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults
from tests.fault_disk import FaultDisk, Node
from tests.fuzz.seals import SEALED, seal_at, seal_batch
from tests.fuzz.targets import metadata_vector
from tests.storage.journal_world import BLOCK, World

LOOP = asyncio.new_event_loop()
ARENA = heap_arena(1 << 20)
SETTINGS = LogSettings()
SEAL_WRITE = 128
SNAPSHOT = metadata_vector("snapshot")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return LOOP.run_until_complete(work)


def _unsealed(data: bytes, place: int, end: Callable[[bytearray], int]) -> memoryview:
    """The file: data behind its first byte, its checksum made good when that byte asks for it."""
    raw = bytearray(data[1:])
    if data and data[0] & SEALED and len(raw) >= place + 8:
        seal_at(raw, place, end(raw))
    return memoryview(raw)


def _write_length(raw: bytearray) -> int:
    return min(len(raw), int.from_bytes(raw[12:16], "little"))


def fuzz_journal(data: bytes) -> None:
    """A file header, and a write with its records, hints and offsets."""
    fmt.decode_file_header(_unsealed(data, 32, lambda raw: 40))
    raw = _unsealed(data, 120, _write_length)
    header = fmt.decode_write(raw)
    if header is None:
        return
    assert header.length <= len(raw)
    with contextlib.suppress(CorruptionError):
        for record in fmt.decode_records(raw, header, "journal"):
            _decode_record(record)


def _decode_record(record: fmt.Record) -> None:
    if record.kind in (fmt.KIND_HINT, fmt.KIND_ADOPTION):
        fmt.Hint.decode(record.payload)
    elif record.kind == fmt.KIND_OFFSET:
        fmt.decode_offset(record.payload)
    elif record.kind == fmt.KIND_BATCH:
        assert len(record.payload) >= segment.BATCH_HEADER_BYTES


class Ring:
    """A good ring whose files are put back before each run."""

    def __init__(self) -> None:
        world = World().create().live(3).live(2, blocks=3).live(3)
        self._contents = {path: world.contents(path) for path in world.disk.files}
        self._paths = sorted(self._contents)
        self._seen = frozenset(b"%d" % one.number for one in world.writes)
        self._world = world

    def damaged(self, data: bytes) -> None:
        """data: file, block, byte in it, and the bytes that stand there from now on; SEAL_WRITE in the file's byte."""
        for path, content in self._contents.items():
            self._world.disk.files[path] = Node(bytearray(content), bytearray(content))
        path, block = self._paths[data[0] % len(self._paths)], data[1] % 32 * BLOCK
        self._world.put(path, block + data[2], data[3:])
        if data[0] & SEAL_WRITE:
            self._seal(path, block)
        with contextlib.suppress(CorruptionError):
            found = run(self._numbers())
            assert data[0] & SEAL_WRITE or found <= self._seen

    def _seal(self, path: str, block: int) -> None:
        """The write that says to stand there becomes a valid one of this ring, with the place and extent it tells."""
        content = bytearray(self._world.contents(path)[block:])
        seal_at(content, 120, _write_length(content))
        self._world.put(path, block, bytes(content[:128]))

    async def _numbers(self) -> set[bytes]:
        ring = await self._world.open()
        found = set()
        async for one in ring.files():
            for write in one.writes:
                assert write.position + write.length <= one.journal_file.file_bytes
                raw = one.buffer[write.position : write.position + write.length]
                for record in fmt.decode_records(raw, write, one.journal_file.path):
                    found.add(bytes(record.payload).split(b" ")[0])
        return found


RINGS: list[Ring] = []


def fuzz_journal_ring(data: bytes) -> None:
    if not RINGS:
        RINGS.append(Ring())
    if len(data) > 3:
        RINGS[0].damaged(data)


def fuzz_segment(data: bytes) -> None:
    """The header, the scan of a start, and a poll's walk over its damage."""
    raw = bytearray(data[1:])
    if data and data[0] & SEALED:
        seal_at(raw, 40, 48)
        body = raw[BLOCK:]
        seal_batch(body)
        raw[BLOCK:] = body
    header = segment.decode_header(memoryview(raw))
    base_offset = header[1] if header else 0
    for one in segment.walk_batches(memoryview(bytes(raw[BLOCK:])), BLOCK, base_offset):
        assert one.position + len(one.data) <= len(raw)
    run(_scan_and_walk(raw, base_offset))


async def _scan_and_walk(raw: bytearray, base_offset: int) -> None:
    disk = FaultDisk(1)
    path = segment.segment_path("data", base_offset)
    disk.files[path] = Node(bytearray(raw), bytearray(raw))
    one = segment.Segment(path, base_offset, file=await disk.open(path))
    start = fmt.Hint(base_offset, BLOCK, base_offset, 0, base_offset)
    scanned = await segment.scan_segment(disk, one, start, rewrite=None)
    assert scanned.end % BLOCK == 0 and scanned.next_offset >= base_offset
    one.end = scanned.end
    walk = SegmentWalk(disk, SegmentFiles(disk, 4), SETTINGS, ARENA, one, (base_offset, BLOCK), scanned.next_offset + 3)
    offset, steps = base_offset, 0
    while (found := await walk.next()) is not None:
        after = found.next_offset
        assert after > offset if isinstance(found, Damage) else after >= offset, found
        offset, steps = after, steps + 1
        assert steps <= len(raw) + 4, "a walk that does not end"


def fuzz_index(data: bytes) -> None:
    def end(raw: bytearray) -> int:
        return 40 + 24 * int.from_bytes(raw[12:16], "little")

    raw = _unsealed(data, 32, end)
    uid, base = int.from_bytes(raw[16:24], "little"), int.from_bytes(raw[24:32], "little")
    found = index.decode_index(raw, uid, base)
    if found is None:
        return
    encoded = index.encode_index(found, uid, base)
    assert bytes(raw[: len(encoded)]) == encoded
    for place in (0, 1, 1 << 63):
        found.at_or_before(place)
        found.after(place)
        found.before_timestamp(place)


def fuzz_offsets(data: bytes) -> None:
    def end(raw: bytearray) -> int:
        return 40 + 32 * int.from_bytes(raw[12:16], "little")

    with contextlib.suppress(CorruptionError):
        raw = _unsealed(data, 32, end)
        offsets.decode_snapshot(raw, "offsets")
        assert end(bytearray(raw)) <= len(raw)


def fuzz_metadata_log(data: bytes) -> None:
    """A whole log, its first entry sealed on demand; and its payloads."""

    def end(raw: bytearray) -> int:
        return 40 + int.from_bytes(raw[12:16], "little")

    is_sealed = bool(data) and data[0] & SEALED
    whole = data.ljust(1 + align_up(len(data) - 1, BLOCK), b"\0") if is_sealed else data
    raw = bytearray(_unsealed(whole, 32, end))
    disk = FaultDisk(1)
    disk.files["data/metadata/metadata.1"] = Node(raw, bytearray(raw))
    with contextlib.suppress(StorageError):
        snapshot, records = run(MetadataLog(disk, "data/metadata", SyncFaults()).replay())
        assert len(snapshot or b"") == end(raw) - 40
        _decode_payloads(snapshot, records)


# What a start takes for damage (core/metadata_writer.py).
SENSELESS = (LookupError, ValueError)


def _decode_payloads(snapshot: bytes | None, records: list[bytes]) -> None:
    for decode, raw in [(decode_metadata_snapshot, snapshot or b""), *((ev.decode_change, one) for one in records)]:
        with contextlib.suppress(msgspec.DecodeError):
            decode(raw)


def fuzz_metadata_payloads(data: bytes) -> None:
    """Of a record, and of a snapshot; a change that decodes stays what it is, and is applied or refused."""
    change: ev.Change | None = None
    with contextlib.suppress(msgspec.DecodeError):
        change = ev.decode_change(data)
    with contextlib.suppress(msgspec.DecodeError):
        decode_metadata_snapshot(data)
    if change is not None:
        assert ev.decode_change(ev.encode_change(change)) == change
        with contextlib.suppress(*SENSELESS):
            _apply(change)


# Of what is there already: a writer never makes them, and what they replace is not taken out of the counts.
REPLACING = (ev.StreamCreated, ev.TopicCreated)


def _apply(change: ev.Change) -> None:
    """What is derived from the fields stays what the fields say."""
    metadata = decode_metadata_snapshot(SNAPSHOT).metadata
    ev.apply_change(metadata, change)
    if not any(isinstance(event, REPLACING) for event in change.events):
        assert metadata.shard_counts == Counter(partition.shard for _, partition in metadata.live_partitions())
