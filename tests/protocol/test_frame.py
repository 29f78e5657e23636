"""Headers in both directions, and the decoder that cuts a stream: any chunking, good frames and hostile ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import ProtocolError, RejectedError
from shardserver.protocol.frame import (
    HEADER_BYTES,
    RESULT_OK,
    Eviction,
    FrameDecoder,
    ReplyHeader,
    RequestHeader,
    decode_answer,
    encode_rejection,
    encode_request,
    request_checksum,
    split_result,
)

LIMIT = 2048
CLIENT = b"\x09" + bytes(15)
u32, u64, u128 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1), st.binary(min_size=16, max_size=16)
u8 = st.integers(0, 255)


def frame(body: bytes, number: int = 1) -> bytes:
    return encode_request(128, 0, body, client=CLIENT, request=number, session=1, checked=True)


def changed(raw: bytes, position: int, value: bytes) -> bytes:
    return raw[:position] + value + raw[position + len(value) :]


@given(st.builds(RequestHeader, u32, u128, u128, u64, u64, u8, u64, u32, u32))
def test_a_request_header_survives_its_bytes(header: RequestHeader) -> None:
    raw = header.encode()
    assert len(raw) == HEADER_BYTES and RequestHeader.decode(raw) == header


@given(st.builds(ReplyHeader, st.integers(256, 64 << 20), u128, u128, u64, u64, u64, u64, u8, u32))
def test_a_reply_header_survives_its_bytes(header: ReplyHeader) -> None:
    raw = header.encode()
    assert len(raw) == HEADER_BYTES and decode_answer(raw) == header


@given(st.builds(Eviction, u128, u32, u32, u8))
def test_an_eviction_survives_its_bytes(eviction: Eviction) -> None:
    raw = eviction.encode()
    assert len(raw) == HEADER_BYTES and decode_answer(raw) == eviction


@given(st.binary(min_size=256, max_size=256))
def test_any_256_bytes_are_an_answer_or_a_protocol_error(raw: bytes) -> None:
    for command in (raw[60], 8, 13):
        try:
            decode_answer(changed(raw, 60, bytes([command])))
        except ProtocolError:
            continue


def test_a_request_checksum_is_that_of_the_body() -> None:
    header = RequestHeader.decode(frame(b"\x06orders"))
    assert header.request_checksum == request_checksum(b"\x06orders")
    assert request_checksum(b"").hex() == "c294d3380580062d" + "00" * 8


@given(st.binary(max_size=64))
def test_a_result_section_splits_or_is_rejected(body: bytes) -> None:
    try:
        errors, payload = split_result(memoryview(body))
    except RejectedError:
        return
    assert 4 + 8 * len(errors) + len(payload) == len(body)


def test_a_result_section_is_ok_or_one_code() -> None:
    assert split_result(memoryview(RESULT_OK + b"tail")) == ([], b"tail")
    assert split_result(memoryview(encode_rejection(1012))) == ([(0, 1012)], b"")


# The stream


GOOD = st.binary(max_size=LIMIT - HEADER_BYTES).map(frame)
HOSTILE = st.sampled_from(
    [
        changed(frame(b""), 48, (255).to_bytes(4, "little")),
        changed(frame(b""), 48, bytes(4)),
        changed(frame(b""), 48, (LIMIT + 1).to_bytes(4, "little")),
        changed(frame(b""), 48, b"\xff\xff\xff\xff"),
        changed(frame(b""), 60, b"\x08"),
        changed(frame(b""), 60, b"\x00"),
        changed(frame(b""), 128, bytes(16)),
        b"\x16\x03\x01\x02\x00\x01" + bytes(300),
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + bytes(300),
        b"\x00\x00\x00\x2b\x00\x12\x00\x03" + bytes(300),
    ]
)


def drain(decoder: FrameDecoder) -> tuple[list[bytes], bool]:
    """Frames that are there, and whether the stream is broken."""
    got = []
    try:
        while (one := decoder.next_frame()) is not None:
            got.append(one.header.encode() + one.body)
    except ProtocolError:
        return got, True
    return got, False


def feed_in_chunks(stream: bytes, data: st.DataObject) -> tuple[list[bytes], bool, int]:
    """Frames, whether the stream broke, and how many bytes had been fed then."""
    decoder, got, fed = FrameDecoder(LIMIT), list[bytes](), 0
    while fed < len(stream):
        cut = data.draw(st.integers(1, len(stream) - fed) | st.integers(1, min(300, len(stream) - fed)))
        decoder.feed(stream[fed : fed + cut])
        fed += cut
        more, broken = drain(decoder)
        got += more
        if broken:
            return got, True, fed
        assert decoder.buffered_bytes < LIMIT
    return got, False, fed


@given(st.lists(GOOD, max_size=6), st.data())
def test_any_chunking_gives_the_same_frames(frames: list[bytes], data: st.DataObject) -> None:
    got, broken, _ = feed_in_chunks(b"".join(frames), data)
    assert got == frames and not broken


@given(st.lists(GOOD, max_size=3), HOSTILE, st.binary(max_size=600), st.data())
def test_a_hostile_frame_breaks_the_stream_after_the_good_ones(
    frames: list[bytes], hostile: bytes, after: bytes, data: st.DataObject
) -> None:
    got, broken, _ = feed_in_chunks(b"".join(frames) + hostile + after, data)
    assert got == frames and broken


@given(st.binary(max_size=1200), st.data())
def test_random_bytes_make_no_other_error(stream: bytes, data: st.DataObject) -> None:
    feed_in_chunks(stream, data)


@pytest.mark.parametrize("size", [LIMIT + 1, 0xFFFFFFFF])
def test_a_size_above_the_limit_is_refused_at_the_header(size: int) -> None:
    decoder = FrameDecoder(LIMIT)
    decoder.feed(changed(frame(b""), 48, size.to_bytes(4, "little")))
    with pytest.raises(ProtocolError):
        decoder.next_frame()


def test_a_frame_of_exactly_the_limit_is_good() -> None:
    decoder = FrameDecoder(LIMIT)
    decoder.feed(frame(bytes(LIMIT - HEADER_BYTES)))
    got = decoder.next_frame()
    assert got is not None and len(got.body) == LIMIT - HEADER_BYTES
