"""The journal write being built: its bytes are those of the format page's plain Python, whatever is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.memory.aligned import align_up, aligned_buffer
from shardserver.storage import journal_format as fmt
from shardserver.storage.staging import Staging

ROOM = 64 * 1024
U64 = st.integers(0, 2**64 - 1)
RECORDS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 1), st.integers(0, 65535), U64, st.integers(0, 2**32 - 1), st.binary()),
    max_size=12,
)
STAGING = Staging(aligned_buffer(ROOM))


@given(RECORDS, st.integers(0, 7), U64, U64, U64, st.lists(U64, min_size=4, max_size=4))
def test_a_sealed_write_is_what_the_format_says(
    records: list[tuple[int, int, int, int, int, bytes]],
    flags: int,
    journal_id: int,
    nonce: int,
    sequence: int,
    rest: list[int],
) -> None:
    expected = bytearray(fmt.WRITE_HEADER_BYTES)
    STAGING.begin(ROOM)
    for kind, mark, shard, uid, term, payload in records:
        assert STAGING.fits(len(payload))
        STAGING.add(kind, mark, shard, uid, term, payload)
        expected += fmt.encode_record_header(kind, mark, shard, uid, term, len(payload)) + payload
    used = len(expected)
    expected += bytes(align_up(used, fmt.BLOCK_BYTES) - used)
    header = fmt.WriteHeader(
        flags, len(expected), journal_id, nonce, sequence, *rest, len(records), used - fmt.WRITE_HEADER_BYTES
    )
    fmt.seal_write(memoryview(expected), header)
    assert STAGING.seal(flags, journal_id, nonce, sequence, *rest) == expected


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    STAGING.begin(fmt.WRITE_HEADER_BYTES + fmt.RECORD_HEADER_BYTES + 10)
    assert STAGING.fits(10) and not STAGING.fits(11) and not STAGING.fits(2**63)
    with pytest.raises(ValueError, match="11 bytes"):
        STAGING.add(1, 0, 0, 1, 1, bytes(11))
    assert (STAGING.used, STAGING.records) == (fmt.WRITE_HEADER_BYTES, 0)
