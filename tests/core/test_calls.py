"""What travels inline in a slot: bytes by hand from docs/formats/ring-messages.md, round trips, and that it fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.core.calls import U64, CutCall, OffsetCall, Operation, PollCall, SendCall
from shardserver.router.ring_python import INLINE_BYTES

U64S, U32S, U8S = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 255)

VECTORS: list[tuple[Any, str]] = [
    (SendCall(0x0102, 3, 0x0A0B0C0D0E0F1011), "02010000 00000000  03000000  11100f0e 0d0c0b0a"),
    (SendCall(7, 1), "07000000 00000000  01000000  00000000 00000000"),
    (
        PollCall(5, 0x1122334455667788, 100, 9, 1 << 20, 2, 5, True, 0x0807060504030201),
        "05000000 00000000  88776655 44332211  64000000  09000000  00001000  01020304 05060708  02 05 01",
    ),
    (
        PollCall(5, 0, 1, 0, 0, 1, 1, False),
        "05000000 00000000  00000000 00000000  01000000  00000000  00000000  00000000 00000000  01 01 00",
    ),
    (
        OffsetCall(6, 2, 0xDEADBEEF, 1000, True, 0x0102, True),
        "06000000 00000000  e8030000 00000000  efbeadde  02010000 00000000  02 01 01",
    ),
    (OffsetCall(6, 1, 4), "06000000 00000000  00000000 00000000  04000000  00000000 00000000  01 00 00"),
    (CutCall(8, 2**40), "08000000 00000000  00000000 00010000"),
]


@pytest.mark.parametrize(("call", "raw"), VECTORS)
def test_golden_bytes(call: Any, raw: str) -> None:
    assert call.encode() == bytes.fromhex(raw)
    assert type(call).decode(bytes.fromhex(raw)) == call
    assert type(call).decode(bytes.fromhex(raw).ljust(INLINE_BYTES, b"\0")) == call  # as it lies in a slot


CALLS = st.one_of(
    st.builds(SendCall, U64S, U32S, U64S),
    st.builds(PollCall, U64S, U64S, U32S, U32S, U32S, U8S, U8S, st.booleans(), U64S),
    st.builds(OffsetCall, U64S, U8S, U32S, U64S, st.booleans(), U64S, st.booleans()),
    st.builds(CutCall, U64S, U64S),
)


@given(CALLS)
def test_every_call_fits_into_a_slot_and_comes_back(call: Any) -> None:
    raw = call.encode()
    assert len(raw) <= INLINE_BYTES
    assert type(call).decode(raw.ljust(INLINE_BYTES, b"\0")) == call


def test_a_plain_number_is_a_little_endian_u64() -> None:
    assert U64.pack(0x0102030405060708) == bytes.fromhex("0807060504030201")


def test_the_operations_have_the_numbers_of_the_page() -> None:
    assert {one.name: int(one) for one in Operation} == {
        "SEND": 1,
        "POLL": 2,
        "STORE_OFFSET": 3,
        "DELETE_OFFSET": 4,
        "GET_OFFSET": 5,
        "FIND_CUT": 6,
        "CUT": 7,
        "CONTROL": 16,
        "CLIENTS": 17,
        "TOTALS": 19,
        "CHANGE": 20,
        "EVENT": 21,
        "JOIN": 22,
        "RELEASE": 23,
        "ADOPT": 24,
        "RESUME": 25,
        "ABANDON": 26,
        "LOADS": 27,
        "DATA_REMOVED": 28,
        "LOGS": 40,
        "GROUP": 41,
        "FENCE": 42,
    }
    assert Operation.INFO == 16
