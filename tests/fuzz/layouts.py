"""Where each input has its lengths, counts and offsets. Byte 0 belongs to the target. Sources: docs/formats/."""

from __future__ import annotations

from tests.fuzz.mutator import Field


def _fields(start: int, *fields: Field) -> tuple[Field, ...]:
    return tuple((start + place, size) for place, size in fields)


# Header: base offset, length, count. Then the first two words that say how long the first frame is, and its delta.
_BATCH: tuple[Field, ...] = ((8, 8), (32, 8), (32, 4), (48, 4), (256 + 8, 4), (256 + 32, 4), (256 + 36, 4))
BATCH = _fields(1, *_BATCH)
# Of the batch, and of its first frame.
BATCH_NESTED = _fields(1, (32, 8), (256 + 32, 4))
# Base offset; then the first batch, in the first block behind the header.
SEGMENT = _fields(1, (24, 8)) + _fields(1 + 4096, *_BATCH)
SEGMENT_NESTED = _fields(4096, *BATCH_NESTED)
# Frame length, operation; then the batch header of a send may follow.
FRAMES = _fields(1, (48, 4), (60, 1), (176, 4))
# Version, length, position, records and their bytes; kind, payload bytes and term of the first record.
JOURNAL = _fields(1, (8, 2), (12, 4), (40, 8), (72, 4), (76, 4), (128, 1), (132, 4), (144, 4))
# Of the write, of its records, of the first one.
JOURNAL_NESTED = _fields(1, (12, 4), (76, 4), (132, 4))
# Number of entries; then the first two entries.
INDEX = _fields(1, (12, 4), (40, 8), (48, 8), (64, 8))
OFFSETS = _fields(1, (12, 4), (40, 8), (52, 4), (64, 8))
# Kind, payload bytes, revision, generation.
METADATA_LOG = _fields(1, (8, 4), (12, 4), (16, 8), (24, 8))
