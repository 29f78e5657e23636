"""Decoders of storage formats on any bytes: values or a refusal, never a foreign error, little memory."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardserver.errors import CorruptionError, StorageError
from shardserver.storage.metadata_log import MetadataLog
from tests.fault_disk import FaultDisk, Node
from tests.storage.formats import FORMATS, load
from tests.storage.journal_world import BLOCK, World

NAMES = sorted(FORMATS)
# What a decoder may take beside a few times its input: an index of n bytes becomes lists of integers.
FACTOR, SLACK = 12, 64 * 1024


def decode_within_bounds(name: str, raw: bytes) -> None:
    tracemalloc.start()
    try:
        FORMATS[name].decode(memoryview(raw))
    except CorruptionError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= FACTOR * len(raw) + SLACK, f"{peak} bytes for {len(raw)}"


@pytest.mark.parametrize("name", NAMES)
@given(raw=st.binary(max_size=10_000))
def test_any_bytes(name: str, raw: bytes) -> None:
    decode_within_bounds(name, raw)


NEW_BYTES = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(8)]))
# Other bytes at some places, most of them in the header, and where the file is cut.
CHANGES = st.tuples(
    st.lists(st.tuples(st.one_of(st.integers(0, 200), st.integers(0, 8191)), NEW_BYTES), min_size=1, max_size=4),
    st.one_of(st.just(8192), st.integers(0, 8192)),
)
Changes = tuple[list[tuple[int, bytes]], int]


def changed(raw: bytes, changes: Changes) -> bytes:
    found = bytearray(raw)
    for position, new in changes[0]:
        found[position : position + len(new)] = new
    return bytes(found[: changes[1]])


@pytest.mark.parametrize("name", NAMES)
@given(changes=CHANGES)
def test_changed_and_cut_files(name: str, changes: Changes) -> None:
    decode_within_bounds(name, changed(load(name)[1], changes))


CHECKSUM_AT = {"journal-file-header": 32, "journal-write": 120, "index": 32, "offsets": 32, "metadata-log": 32}


@pytest.mark.parametrize("name", sorted(CHECKSUM_AT))
@given(changes=CHANGES)
@example(changes=([(12, b"\xff\xff\xff\x07")], 8192))  # the count of entries, or the length of the payload
@example(changes=([(10, b"\xff\xff")], 8192))
def test_changed_files_with_a_good_checksum(name: str, changes: Changes) -> None:
    """Another program may have sealed them: counts and lengths that lie reach past the checksum."""
    raw = bytearray(changed(load(name)[1], changes))
    place = CHECKSUM_AT[name]
    ends = {"journal-file-header": 40, "index": 88, "offsets": 104, "metadata-log": 40}
    for end in (ends.get(name, len(raw)), len(raw)):
        raw[place : place + 8] = bytes(8)
        raw[place : place + 8] = xxhash.xxh3_64_intdigest(bytes(raw[:end])).to_bytes(8, "little")
        decode_within_bounds(name, bytes(raw))


@given(changes=CHANGES)
def test_a_metadata_log_with_changed_bytes_replays_its_records_or_refuses(changes: Changes) -> None:
    values, raw = load("metadata-log")
    content = changed(raw, changes)
    disk = FaultDisk(1)
    disk.files["data/metadata/metadata.1"] = Node(bytearray(content), bytearray(content))
    try:
        _, records = asyncio.run(MetadataLog(disk, "data/metadata").replay())
    except StorageError:
        return
    assert [one.hex() for one in records] in ([], [values["entries"][1]["payload"]])


def test_a_metadata_log_cut_in_the_padding_of_its_last_record_keeps_it() -> None:
    values, raw = load("metadata-log")
    disk = FaultDisk(1)
    content = raw[: 4096 + 100]
    disk.files["data/metadata/metadata.1"] = Node(bytearray(content), bytearray(content))
    _, records = asyncio.run(MetadataLog(disk, "data/metadata").replay())
    assert [one.hex() for one in records] == [values["entries"][1]["payload"]]
    assert bytes(disk.files["data/metadata/metadata.1"].durable) == raw


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(data=st.data())
def test_a_damaged_stretch_of_the_ring_costs_no_write_that_it_does_not_touch(data: st.DataObject) -> None:
    """What a start finds is what was acknowledged, less damaged writes at its very end; or it is refused."""
    world = World().create().live(3).live(2, blocks=3).live(data.draw(st.integers(1, 3)))
    path = data.draw(st.sampled_from(sorted(world.disk.files)))
    position = data.draw(st.integers(0, 8 * BLOCK))
    length = data.draw(st.sampled_from([1, 8, BLOCK, 3 * BLOCK, 40 * 1024, 100 * 1024]))
    new = data.draw(st.sampled_from([b"\0", b"\xff", b"SSJWRIT1"])) * length
    world.put(path, position, new[: min(length, world.settings.journal_file_bytes - position)])
    touched = {
        one.number
        for one in world.writes
        if one.path == path and one.position < position + length and position < one.position + one.length
    }
    try:
        found = world.recovered()
    except CorruptionError as refused:
        # A file with nothing but zeros looks unused; then the one that needs it is named.
        assert refused.path == path or "a ring that holds" in str(refused)
        return
    expected = world.expected()
    assert found == expected[: len(found)]
    assert set(expected[len(found) :]) <= touched
