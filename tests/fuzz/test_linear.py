"""No reader takes more than its share of work: four times the input is at most some five times the work.

Work of Python is counted in lines that run below shardserver/; work in C, and that hidden in built-in functions, in
processor time, eight times the input against twenty times the time: a square would show as sixty-four.
"""

from __future__ import annotations

import gc
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import shardserver
from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot, encode_snapshot
from shardserver.errors import ShardServerError
from shardserver.memory.aligned import align_up
from shardserver.memory.heap import heap_arena
from shardserver.net.frame_reader import WireContext
from shardserver.net.wire import Wire
from shardserver.protocol import batch
from shardserver.protocol.batch_values import decode_batches
from shardserver.protocol.frame import FrameDecoder, encode_request
from shardserver.protocol.options import decode_options
from shardserver.protocol.permissions import Permissions
from shardserver.protocol.tlv import decode_user_headers
from shardserver.storage import index, metadata_log, offsets, segment
from shardserver.storage import journal_format as fmt
from shardserver.storage.segment_reader import SegmentFiles, SegmentWalk
from shardserver.storage.settings import LogSettings
from tests.batches import make_batch
from tests.fault_disk import FaultDisk, Node
from tests.fuzz.storage_targets import run
from tests.fuzz.wire_target import ARENA, IN_FLIGHT_LIMIT, Recorder, chunks
from tests.storage.journal_world import BLOCK, SETTINGS, World, numbers_of

HEAP = heap_arena(1 << 20)
PACKAGE = str(Path(shardserver.__file__).parent)
Work = Callable[[], object]


def option_block(count: int) -> Work:
    entry = b"\x02\x02\x00\x00\x00%c%c\x09\x01\x00\x00\x00\x00"
    block = b"".join(entry % (65 + number % 26, 65 + number // 26) for number in range(count))
    return lambda: decode_options(memoryview(block))


def topics_of_permissions(count: int) -> Work:
    flags = bytes(10) + b"\x01" + bytes(4) + bytes(6) + b"\x01"
    topics = b"".join(struct.pack("<I4xB", number, 1) for number in range(count))
    tree = flags + topics[:-1] + b"\x00\x00"
    return lambda: Permissions.decode(memoryview(tree))


def user_headers(count: int) -> Work:
    raw = (b"\x02\x01\x00\x00\x00k" + b"\x09\x01\x00\x00\x00v") * count
    return lambda: decode_user_headers(memoryview(raw))


def small_messages(count: int) -> Work:
    raw = bytes(make_batch([b""] * count))
    return lambda: decode_batches(raw)


def walk_compiled(count: int) -> Work:
    raw = make_batch([b""] * count)

    def work() -> None:
        assert batch.verify_batch(raw, count) == 0
        assert batch.check_stored_batch(raw, len(raw)) == batch.damaged_batch_extent(raw) == len(raw)
        batch.slice_batch(raw, count // 2, count // 2)

    return work


def frames(step: int, body_bytes: int) -> Callable[[int], Work]:
    """count frames in pieces of `step` bytes; 0: all at once. Not the connection's twin, which no server runs."""

    def build(count: int) -> Work:
        frame = encode_request(160, 0, bytes(body_bytes), client=b"\x01" * 16, request=1, session=1)
        return lambda: _feed(frame * count, step)

    return build


def _feed(stream: bytes, step: int) -> None:
    decoder, recorder = FrameDecoder(), Recorder(has_routes=False)
    wire = Wire(WireContext(ARENA, int, IN_FLIGHT_LIMIT), recorder, 1 << 20, IN_FLIGHT_LIMIT)
    for piece in chunks(stream, step):
        decoder.feed(piece)
        while decoder.next_frame() is not None:
            pass
        wire.feed(piece)
        wire.take_output()
    assert recorder.started


def one_frame_in_pieces(count: int) -> Work:
    return frames(7, 64 * count)(1)


def journal_records(count: int) -> Work:
    record = fmt.encode_record_header(fmt.KIND_OFFSET, 0, 0, 1, 1, 16) + fmt.encode_offset(1, 2, 3)
    raw = memoryview(bytearray(fmt.BLOCK_BYTES * (1 + len(record) * count // 2048)))
    raw[fmt.WRITE_HEADER_BYTES :][: len(record) * count] = record * count
    header = fmt.WriteHeader(0, len(raw), 1, 1, 1, 4096, 0, 0, 1, count, len(record) * count)
    fmt.seal_write(raw, header)

    def work() -> None:
        found = fmt.decode_write(raw)
        assert found is not None and len(list(fmt.decode_records(raw, found, "journal"))) == count

    return work


def stored_batches(count: int) -> Work:
    """Back to back in one run, as the walk of a start sees them."""
    content = bytearray()
    for number in range(count):
        one = make_batch([b"x"])
        batch.stamp_batch(one, 1, number, 1)
        content += one
    view = memoryview(bytes(content))

    def work() -> None:
        assert sum(1 for _ in segment.walk_batches(view, 4096, 0)) == count

    return work


def index_entries(count: int) -> Work:
    rows = list(range(count))
    raw = memoryview(index.encode_index(index.SparseIndex(rows, rows, rows), 1, 0))
    return lambda: index.decode_index(raw, 1, 0)


def offset_entries(count: int) -> Work:
    keys = {(1, 1, number): number for number in range(count)}
    raw = memoryview(offsets.encode_snapshot(keys, {1: 1}, 1, 1))
    return lambda: offsets.decode_snapshot(raw, "offsets")


def metadata_records(count: int) -> Work:
    return _replay([metadata_log._encode(2, number + 1, 1, b"x" * 200) for number in range(count)])


def metadata_leftovers(count: int) -> Work:
    """Behind the torn entry stand headers of another generation, each of which claims all that follows."""
    entries = [bytearray(metadata_log._encode(2, number, 7, b"x")) for number in range(count)]
    for number, one in enumerate(entries):
        struct.pack_into("<I", one, 12, (count - number) * 4096 - 40)
    return _replay([bytes(4096), *entries])


def _replay(entries: list[Any]) -> Work:
    raw = bytes(metadata_log._encode(1, 0, 1, b"state")) + b"".join(map(bytes, entries))

    def work() -> None:
        disk = FaultDisk(1)
        disk.files["data/metadata/metadata.1"] = Node(bytearray(raw), bytearray(raw))
        run(metadata_log.MetadataLog(disk, "data/metadata").replay())

    return work


def metadata_events(count: int) -> Work:
    """One change that makes topics and more partitions of one of them, which it moves, applied to a replica."""
    events: list[ev.Event] = [ev.StreamCreated(1, "s", 1)]
    events += [ev.TopicCreated(1, 1 + number, f"t{number}", 1, {}, [1 + number], [0]) for number in range(count)]
    events.append(ev.PartitionsAdded(1, 1, 1, [count + 1 + number for number in range(count)], [0] * count))
    moves = [ev.PartitionMove(1, 1, 1 + number, count + 1 + number, 1, 2) for number in range(count)]
    events.append(ev.PartitionsMoved(moves))
    raw = ev.encode_change(ev.Change(events))

    def work() -> None:
        replica = Metadata()
        ev.apply_change(replica, ev.decode_change(raw))
        assert replica.shard_counts == {0: count, 1: count}

    return work


def metadata_snapshot(count: int) -> Work:
    replica = Metadata()
    ev.apply(replica, ev.StreamCreated(1, "s", 1))
    for number in range(count):
        ev.apply(replica, ev.TopicCreated(1, 1 + number, f"t{number}", 1, {}, [1 + number], [0]))
    raw = encode_snapshot(Snapshot(replica, []))

    def work() -> None:
        assert len(list(decode_snapshot(raw).metadata.live_partitions())) == count

    return work


def journal_ring(count: int) -> Work:
    """The opening of a ring with so many writes in one file."""
    settings = replace(SETTINGS, journal_file_bytes=(count + 64) * BLOCK, journal_files=2)
    world = World(settings=settings).create().live(count)

    async def work() -> None:
        assert len(await numbers_of(await world.open())) == count

    return lambda: run(work())


def poll_walk(count: int) -> Work:
    """Small reads, so that their number grows too."""
    return _walk(count, lambda number, one: one, whole=True)


def poll_walk_over_damage(count: int) -> Work:
    """Every second batch has a wrong message checksum."""

    def damaged(number: int, one: bytearray) -> bytearray:
        one[-1] ^= number & 1
        return one

    return _walk(count, damaged, whole=False)


def _walk(count: int, change: Callable[[int, bytearray], bytearray], *, whole: bool) -> Work:
    content = bytearray(BLOCK)
    for number in range(count):
        one = make_batch([b"x" * 500])
        batch.stamp_batch(one, 1, number, 1)
        content += change(number, one)
    raw = bytes(content.ljust(align_up(len(content), BLOCK), b"\0"))

    async def work() -> None:
        disk, path = FaultDisk(1), segment.segment_path("data", 0)
        disk.files[path] = Node(bytearray(raw), bytearray(raw))
        one = segment.Segment(path, 0, file=await disk.open(path), end=len(raw))
        settings = LogSettings(read_bytes=BLOCK, read_ahead_bytes=2 * BLOCK)
        walk = SegmentWalk(disk, SegmentFiles(disk, 1), settings, HEAP, one, (0, BLOCK), count)
        found = []
        while (met := await walk.next()) is not None:
            found.append(met)
        assert len(found) == count and whole == all(isinstance(met, segment.StoredBatch) for met in found)

    return lambda: run(work())


# Builder and a small count of what it repeats.
LINES: dict[str, tuple[Callable[[int], Work], int]] = {
    "options": (option_block, 100),
    "permissions": (topics_of_permissions, 500),
    "user headers": (user_headers, 500),
    "messages": (small_messages, 200),
    "frames at once": (frames(0, 20), 100),
    "frames in pieces": (frames(9, 20), 30),
    "a frame in pieces": (one_frame_in_pieces, 40),
    "journal records": (journal_records, 200),
    "stored batches": (stored_batches, 100),
    "index": (index_entries, 500),
    "offsets": (offset_entries, 500),
    "metadata records": (metadata_records, 50),
    "metadata leftovers": (metadata_leftovers, 50),
    "metadata events": (metadata_events, 100),
    "metadata snapshot": (metadata_snapshot, 100),
    "journal ring": (journal_ring, 25),
    "poll walk": (poll_walk, 100),
    "poll walk over damage": (poll_walk_over_damage, 100),
}
TIMES: dict[str, tuple[Callable[[int], Work], int]] = LINES | {
    "compiled walk": (walk_compiled, 2000),
    "messages": (small_messages, 500),
    "journal records": (journal_records, 500),
    "index": (index_entries, 5000),
    "offsets": (offset_entries, 2000),
    "options": (option_block, 60),
}


def lines(work: Work) -> int:
    """Run below shardserver/."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        with suppress(ShardServerError):
            work()
    finally:
        sys.settrace(None)
    return count


def thread_ns(work: Work) -> int:
    """The least of several runs: what others do on this processor only adds."""
    found = []
    gc.disable()  # it looks at all objects of the process, again and again while they grow in number
    try:
        for _ in range(5):
            start = time.thread_time_ns()
            with suppress(ShardServerError):
                work()
            found.append(time.thread_time_ns() - start)
    finally:
        gc.enable()
    return min(found)


@pytest.mark.parametrize("name", sorted(LINES))
def test_four_times_the_input_runs_at_most_five_times_the_lines(name: str) -> None:
    build, count = LINES[name]
    few, many = lines(build(count)), lines(build(4 * count))
    assert many <= 5 * few + 100, f"{few} lines, then {many}"


@pytest.mark.parametrize("name", sorted(TIMES))
def test_eight_times_the_input_takes_far_less_than_its_square_of_the_processor(name: str) -> None:
    build, count = TIMES[name]
    few, many = thread_ns(build(count)), thread_ns(build(8 * count))
    assert many <= 32 * few + 1_000_000, f"{few} ns, then {many}"


def test_a_square_is_seen_by_both_measures() -> None:
    def build(count: int) -> Work:
        return lambda: [decode_options(memoryview(b"")) for _ in range(count * count)]

    assert lines(build(40)) > 5 * lines(build(10)) + 100
    assert thread_ns(build(160)) > 32 * thread_ns(build(20)) + 1_000_000


@pytest.mark.parametrize("name", sorted(TIMES))
def test_the_input_is_good_up_to_its_end(name: str) -> None:
    """Else a reader that stops at the first byte would pass."""
    build, count = TIMES[name]
    if name != "metadata leftovers":
        build(count)()
