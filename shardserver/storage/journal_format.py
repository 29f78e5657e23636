"""Journal bytes: file header, write header, records. Format: docs/formats/journal.md."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from shardserver.errors import CorruptionError
from shardserver.protocol.batch import BATCH_HEADER_BYTES

BLOCK_BYTES = 4096
# Bounds how far behind a damaged write the next one can begin (journal_reader.py).
MAX_WRITE_BYTES = 1 << 20
FORMAT_VERSION = 1
FILE_MAGIC = b"SSJFILE1"
WRITE_MAGIC = b"SSJWRIT1"

_FILE = struct.Struct("<8sHHIQQQ")  # magic, version, files, file number, journal id, file bytes, checksum
_WRITE = struct.Struct("<8sHHIQQQQQQQII40xQ")
_CHECKSUM_POSITION = 120
WRITE_HEADER_BYTES = _WRITE.size
_RECORD = struct.Struct("<BBHIQII")
RECORD_HEADER_BYTES = _RECORD.size
_OFFSET = struct.Struct("<B3xIQ")
_HINT = struct.Struct("<QQQQQ")

FLAG_OPENING = 1
FLAG_FILE_START = 2
FLAG_CLEAN = 4

KIND_BATCH = 1
KIND_OFFSET = 2
KIND_HINT = 3
KIND_ADOPTION = 4
RECORD_TOMBSTONE = 1


@dataclass(frozen=True, slots=True)
class FileHeader:
    """files: how many the ring had when this one was made."""

    number: int
    files: int
    journal_id: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class WriteHeader:
    """Identity and extent of one journal write; every field is covered by its checksum."""

    flags: int
    length: int
    journal_id: int
    nonce: int
    sequence: int
    position: int
    previous_sequence: int
    previous_end: int
    oldest_live: int
    records: int
    records_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    kind: int
    flags: int
    shard: int
    uid: int
    term: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Hint:
    """A fact that stays true: the segment at `segment_base` is synced up to `position`, where `next_offset` begins.

    answered_offset: all sends below it were answered, and their answers could be seen. In an adoption position 0 means
    that there is no segment.
    """

    segment_base: int
    position: int
    next_offset: int
    last_timestamp: int
    answered_offset: int

    def encode(self) -> bytes:
        place = (self.segment_base, self.position, self.next_offset)
        return _HINT.pack(*place, self.last_timestamp, self.answered_offset)

    @classmethod
    def decode(cls, payload: memoryview) -> Hint:
        return cls(*_HINT.unpack(payload))


def file_name(number: int) -> str:
    return f"{number:05d}.journal"


def encode_file_header(header: FileHeader) -> bytes:
    """The first 4 KiB of a journal file, written once."""
    numbers = (header.files, header.number, header.journal_id, header.file_bytes)
    raw = _FILE.pack(FILE_MAGIC, FORMAT_VERSION, *numbers, 0)
    checksum = xxhash.xxh3_64_intdigest(raw)
    return raw[:-8] + checksum.to_bytes(8, "little") + bytes(BLOCK_BYTES - _FILE.size)


def decode_file_header(raw: memoryview) -> FileHeader | None:
    """The header, or None when the bytes are not one of this version."""
    if len(raw) < _FILE.size:
        return None
    magic, version, files, number, journal_id, file_bytes, checksum = _FILE.unpack_from(raw)
    zeroed = bytes(raw[: _FILE.size - 8]) + bytes(8)
    if magic != FILE_MAGIC or version != FORMAT_VERSION or checksum != xxhash.xxh3_64_intdigest(zeroed):
        return None
    return FileHeader(number, files, journal_id, file_bytes)


def seal_write(buffer: memoryview, header: WriteHeader) -> None:
    """Put the header at the start of buffer (header.length bytes, records and padding in place) and checksum it all."""
    _WRITE.pack_into(
        buffer,
        0,
        WRITE_MAGIC,
        FORMAT_VERSION,
        header.flags,
        header.length,
        header.journal_id,
        header.nonce,
        header.sequence,
        header.position,
        header.previous_sequence,
        header.previous_end,
        header.oldest_live,
        header.records,
        header.records_bytes,
        0,
    )
    checksum = xxhash.xxh3_64_intdigest(buffer[: header.length])
    buffer[_CHECKSUM_POSITION:WRITE_HEADER_BYTES] = checksum.to_bytes(8, "little")


def decode_write_header(raw: memoryview) -> WriteHeader | None:
    """The header at raw[0] if its lengths can be true. Its checksum is not looked at: raw may hold the header only."""
    if len(raw) < WRITE_HEADER_BYTES or raw[:8] != WRITE_MAGIC:
        return None
    _, version, flags, length, *rest, _ = _WRITE.unpack_from(raw)
    header = WriteHeader(flags, length, *rest)
    fits = BLOCK_BYTES <= length <= MAX_WRITE_BYTES and length % BLOCK_BYTES == 0
    if version != FORMAT_VERSION or not fits or WRITE_HEADER_BYTES + header.records_bytes > length:
        return None
    return header


def decode_write(raw: memoryview) -> WriteHeader | None:
    """The header of the valid write that begins at raw[0]; None when there is none."""
    header = decode_write_header(raw)
    if header is None or header.length > len(raw):
        return None
    state = xxhash.xxh3_64(raw[:_CHECKSUM_POSITION])
    state.update(bytes(8))
    state.update(raw[WRITE_HEADER_BYTES : header.length])
    checksum = int.from_bytes(raw[_CHECKSUM_POSITION:WRITE_HEADER_BYTES], "little")
    return header if state.intdigest() == checksum else None


def encode_record_header(kind: int, flags: int, shard: int, uid: int, term: int, payload_bytes: int) -> bytes:
    return _RECORD.pack(kind, flags, shard, payload_bytes, uid, term, 0)


def decode_records(write: memoryview, header: WriteHeader, path: str) -> Iterator[Record]:
    """The records of a write whose checksum was good.

    Raises:
        CorruptionError: they do not fill the bytes that the header states; another program wrote them.
    """
    position, end = WRITE_HEADER_BYTES, WRITE_HEADER_BYTES + header.records_bytes
    for _ in range(header.records):
        start = position + RECORD_HEADER_BYTES
        if start > end:
            raise CorruptionError(path, header.position + position, f"{header.records} records")
        kind, flags, shard, length, uid, term, _ = _RECORD.unpack_from(write, position)
        if start + length > end or not _suits(kind, length):
            raise CorruptionError(path, header.position + position, f"a record of kind {kind}")
        position = start + length
        yield Record(kind, flags, shard, uid, term, write[start:position])
    if position != end:
        raise CorruptionError(path, header.position + position, f"no more than {header.records} records")


def _suits(kind: int, payload_bytes: int) -> bool:
    if kind == KIND_BATCH:
        return payload_bytes >= BATCH_HEADER_BYTES
    sizes = {KIND_OFFSET: _OFFSET.size, KIND_HINT: _HINT.size, KIND_ADOPTION: _HINT.size}
    return payload_bytes == sizes.get(kind, payload_bytes)


def encode_offset(consumer_kind: int, consumer: int, offset: int) -> bytes:
    return _OFFSET.pack(consumer_kind, consumer, offset)


def decode_offset(payload: memoryview) -> tuple[int, int, int]:
    """(consumer kind, consumer id, offset)."""
    kind, consumer, offset = _OFFSET.unpack(payload)
    return kind, consumer, offset
