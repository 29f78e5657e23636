"""Golden vectors of the storage formats, written from their pages: through encoder and decoder, whole and broken."""

from __future__ import annotations

import asyncio
import re

import pytest
import xxhash

from shardserver.errors import CorruptionError
from shardserver.storage import journal_format as fmt
from shardserver.storage.metadata_log import MetadataLog
from tests.fault_disk import FaultDisk, Node
from tests.storage.formats import DOCS, FORMATS, VECTORS, Values, load


def test_each_format_has_its_vector() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_of_a_vector_decode_to_its_values(name: str) -> None:
    values, raw = load(name)
    assert FORMATS[name].decode(memoryview(raw)) == values


@pytest.mark.parametrize("name", FORMATS)
def test_the_values_of_a_vector_encode_to_its_bytes(name: str) -> None:
    values, raw = load(name)
    assert FORMATS[name].encode(values) == raw


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "metadata-log"])
def test_bytes_that_follow_change_nothing(name: str) -> None:
    values, raw = load(name)
    assert FORMATS[name].decode(memoryview(raw + b"\xff" * 5000)) == values


@pytest.mark.parametrize("name", FORMATS)
def test_a_vector_cut_short_is_refused_at_every_length(name: str) -> None:
    _, raw = load(name)
    for length in range(FORMATS[name].checked[-1].stop):
        assert FORMATS[name].decode(memoryview(raw)[:length]) is None, length


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_is_seen_wherever_it_is(name: str) -> None:
    _, raw = load(name)
    damaged = bytearray(raw)
    for extent in FORMATS[name].checked:
        for position in extent:
            damaged[position] ^= 1 << position % 8
            assert FORMATS[name].decode(memoryview(damaged)) is None, position
            damaged[position] ^= 1 << position % 8


def sealed(values: Values, raw: bytes, **fields: int) -> memoryview:
    """The journal write with other numbers in its header and a good checksum."""
    changed = bytearray(raw)
    fmt.seal_write(memoryview(changed), fmt.WriteHeader(**values["header"] | fields))
    return memoryview(changed)


@pytest.mark.parametrize("length", [0, 1, 4095, 4097, 8192, fmt.MAX_WRITE_BYTES + 4096, (1 << 32) - 4096])
def test_a_length_that_no_write_has_is_refused(length: int) -> None:
    _, raw = load("journal-write")
    changed = bytearray(raw)
    changed[12:16] = length.to_bytes(4, "little")
    assert fmt.decode_write(memoryview(changed)) is None


def test_records_that_reach_past_their_write_are_refused_though_it_is_sealed() -> None:
    values, raw = load("journal-write")
    assert fmt.decode_write(sealed(values, raw, records_bytes=4096 - fmt.WRITE_HEADER_BYTES)) is not None
    assert fmt.decode_write(sealed(values, raw, records_bytes=4096 - fmt.WRITE_HEADER_BYTES + 1)) is None


@pytest.mark.parametrize("fields", [{"records": 3}, {"records": 5}, {"records_bytes": 468}, {"records_bytes": 470}])
def test_records_that_do_not_fill_their_bytes_are_corruption(fields: dict[str, int]) -> None:
    values, raw = load("journal-write")
    write = sealed(values, raw, **fields)
    header = fmt.decode_write(write)
    assert header is not None
    with pytest.raises(CorruptionError, match="some/path at byte"):
        list(fmt.decode_records(write, header, "some/path"))


@pytest.mark.parametrize("place, kind", [(128, 2), (192, 3), (272, 2), (272, 3)], ids=str)
def test_a_record_whose_size_does_not_suit_its_kind_is_corruption(place: int, kind: int) -> None:
    values, raw = load("journal-write")
    changed = bytearray(raw)
    changed[place] = kind
    write = sealed(values, bytes(changed))
    header = fmt.decode_write(write)
    assert header is not None
    with pytest.raises(CorruptionError, match=f"at byte {4096 + place}"):
        list(fmt.decode_records(write, header, "some/path"))


def test_a_record_that_would_begin_at_the_very_end_of_a_write_is_corruption() -> None:
    values, raw = load("journal-write")
    room = 4096 - fmt.WRITE_HEADER_BYTES - fmt.RECORD_HEADER_BYTES
    full = raw[: fmt.WRITE_HEADER_BYTES] + fmt.encode_record_header(77, 0, 0, 1, 1, room) + bytes(room)
    for records in (1, 2):
        write = sealed(values, full, records=records, records_bytes=4096 - fmt.WRITE_HEADER_BYTES)
        header = fmt.decode_write(write)
        assert header is not None
        if records == 1:
            assert len(list(fmt.decode_records(write, header, "some/path"))) == 1
            continue
        with pytest.raises(CorruptionError, match="at byte 8192"):
            list(fmt.decode_records(write, header, "some/path"))


@pytest.mark.parametrize("name", ["index", "offsets", "metadata-log"])
def test_a_count_that_reaches_past_the_end_is_refused_though_it_is_sealed(name: str) -> None:
    _, raw = load(name)
    for count, length in ((0x07FFFFFF, len(raw)), (0x07FFFFFF, 110), (170, 4096), (2**32 - 1, len(raw))):
        changed = bytearray(raw[:length])
        changed[12:16], changed[32:40] = count.to_bytes(4, "little"), bytes(8)
        changed[32:40] = xxhash.xxh3_64_intdigest(bytes(changed)).to_bytes(8, "little")
        assert FORMATS[name].decode(memoryview(changed)) is None, (count, length)


def test_a_journal_file_header_of_a_ring_that_did_not_tell_its_files_is_read() -> None:
    """Version 1 had a 32-bit version field; its upper half is the count of files now."""
    values, _ = load("journal-file-header")
    former = fmt.encode_file_header(fmt.FileHeader(**values | {"files": 0}))
    assert former[8:12] == b"\1\0\0\0"
    found = fmt.decode_file_header(memoryview(former))
    assert found is not None and found.files == 0


# The metadata log as a file


def test_a_metadata_log_with_the_vectors_bytes_replays_its_record() -> None:
    values, raw = load("metadata-log")
    disk = FaultDisk(1)
    disk.files["data/metadata/metadata.1"] = Node(bytearray(raw), bytearray(raw))
    snapshot, records = asyncio.run(MetadataLog(disk, "data/metadata").replay())
    assert snapshot is None and [one.hex() for one in records] == [values["entries"][1]["payload"]]


def test_a_metadata_log_writes_the_vectors_bytes() -> None:
    values, raw = load("metadata-log")
    disk = FaultDisk(1)

    async def write() -> None:
        log = MetadataLog(disk, "data/metadata")
        await log.replay()
        await log.append(bytes.fromhex(values["entries"][1]["payload"]))

    asyncio.run(write())
    assert bytes(disk.files["data/metadata/metadata.1"].current) == raw


# The worked examples of the pages


def example(page: str) -> bytes:
    """The hex digits of the page's block of code; `....` before them is a position, words behind them a remark."""
    block = (DOCS / page).read_text().split("## Worked example")[1].split("```")[1]
    rows = [re.sub(r"^[0-9a-f]{4}  ", "", line) for line in block.splitlines()]
    return b"".join(bytes.fromhex(re.match(r"(?:[0-9a-f]{2} {1,2})*(?:[0-9a-f]{2})?", row)[0]) for row in rows)  # type: ignore[index]


def test_the_journal_pages_example_is_a_valid_write() -> None:
    raw = example("journal.md").ljust(4096, b"\0")
    values = FORMATS["journal-write"].decode(memoryview(raw))
    assert values is not None and FORMATS["journal-write"].encode(values) == raw
    offset = {"kind": 2, "flags": 0, "shard": 0, "uid": 3, "term": 1, "offset": [1, 7, 41]}
    assert values["records"] == [offset]
    assert [values["header"][name] for name in ("sequence", "position", "length", "oldest_live")] == [1, 4096, 4096, 1]


@pytest.mark.parametrize("page", ["identity", "index", "offsets", "segment", "metadata-log"])
def test_the_pages_examples_begin_as_the_vectors(page: str) -> None:
    found = example(f"{page}.md")
    assert len(found) >= 40 and load(page)[1].startswith(found)
