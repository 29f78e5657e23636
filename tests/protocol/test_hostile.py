"""Any bytes given to any decoder make values or a RejectedError, and never cost much more memory than their length."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserver.errors import RejectedError
from shardserver.protocol.batch_values import decode_batches
from shardserver.protocol.body import Body
from shardserver.protocol.options import CATALOGUE, decode_options, parse_topic_options
from shardserver.protocol.permissions import MAX_PERMISSIONS_BYTES, GlobalPermissions, Permissions
from shardserver.protocol.table import TABLE, Command
from shardserver.protocol.tlv import decode_user_headers
from shardserver.protocol.users import UpdatePermissionsRequest
from tests.batches import make_batch
from tests.protocol.bodies import REPLIES, REQUESTS

# A decoded topic permission or option is some 20 times its few bytes; an error message and the decoder add a bit.
TIMES_THE_INPUT, BESIDE_BYTES = 40, 32 << 10
COMMANDS = sorted(TABLE)
HUGE = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x04")


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good body with some bytes changed, cut, repeated or added."""
    body = bytearray(draw(st.sampled_from(seeds))) if seeds else bytearray()
    for _ in range(draw(st.integers(0, 5))):
        place = draw(st.integers(0, len(body)))
        match draw(st.integers(0, 4)):
            case 0:
                body[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                body[place : place + 4] = draw(st.sampled_from(HUGE))
            case 2:
                del body[place:]
            case 3:
                body[place:place] = draw(st.binary(max_size=8))
            case 4:
                body += body[place:][:64]
    return bytes(body)


def decoded(codec: type[Body], body: bytes) -> Body | None:
    try:
        return codec.decode(memoryview(body))
    except RejectedError:
        return None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
@settings(max_examples=60)
@given(data=st.data())
def test_a_request_decoder_gives_values_or_rejects(command: Command, data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=200) | damaged(REQUESTS[command]))
    request = decoded(TABLE[command].request, body)
    if request is not None:
        again = decoded(TABLE[command].request, request.encode())
        assert again is not None and again.encode() == request.encode()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
@settings(max_examples=40)
@given(data=st.data())
def test_a_reply_decoder_gives_values_or_rejects(command: Command, data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=200) | damaged(REPLIES[command]))
    reply = decoded(TABLE[command].reply, body)
    if reply is not None:
        again = decoded(TABLE[command].reply, reply.encode())
        assert again is not None and again.encode() == reply.encode()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_body_cut_anywhere_gives_values_or_is_rejected(command: Command) -> None:
    for codec, seeds in ((TABLE[command].request, REQUESTS[command]), (TABLE[command].reply, REPLIES[command])):
        for body in seeds:
            for length in range(min(len(body), 600)):
                decoded(codec, body[:length])


@contextmanager
def little_memory(body: bytes) -> Iterator[None]:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    yield
    used = tracemalloc.get_traced_memory()[1] - before
    assert used <= TIMES_THE_INPUT * len(body) + BESIDE_BYTES, f"{used} bytes for {len(body)}"


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_lengths_and_counts_that_lie_cost_no_memory(command: Command) -> None:
    for codec, seeds in ((TABLE[command].request, REQUESTS[command]), (TABLE[command].reply, REPLIES[command])):
        for good in seeds:
            for place in range(min(len(good), 300)):
                for huge in HUGE:
                    body = good[:place] + huge + good[place + 4 :]
                    with little_memory(body):
                        decoded(codec, body)


@pytest.mark.usefixtures("traced")
def test_the_densest_bodies_cost_a_small_multiple() -> None:
    topic = b"\x01\x00\x00\x00\x00\x00\x00\x00\x01"
    flags = bytes(10) + b"\x01" + bytes(10) + b"\x01"
    topics = b"".join(number.to_bytes(4, "little") + topic[4:] for number in range(MAX_PERMISSIONS_BYTES // 9 - 9))
    tree = flags + topics[:-1] + b"\x00\x00"
    body = b"\x01\x04\x00\x00\x00\x00\x01" + len(tree).to_bytes(4, "little") + tree
    with little_memory(body):
        request = decoded(UpdatePermissionsRequest, body)
    assert isinstance(request, UpdatePermissionsRequest) and request.permissions is not None
    assert len(request.permissions.streams[0].topics) == len(topics) // 9
    entry = b"\x02\x02\x00\x00\x00%c%c\x09\x01\x00\x00\x00\x00"
    options = b"".join(entry % (65 + number % 26, 65 + number // 26) for number in range(600))
    with little_memory(options):
        assert len(decode_options(memoryview(options))) == 600


def test_permissions_beyond_our_bound_are_rejected_before_they_are_read() -> None:
    tree = Permissions(GlobalPermissions(read_streams=True)).encode()
    with pytest.raises(RejectedError):
        Permissions.decode(memoryview(tree + bytes(MAX_PERMISSIONS_BYTES)))


@given(st.dictionaries(st.sampled_from(sorted(CATALOGUE)), st.binary(min_size=1, max_size=20)), st.data())
def test_option_values_become_canonical_or_are_rejected(raw: dict[str, bytes], data: st.DataObject) -> None:
    block = b""
    for key, value in raw.items():
        kind = data.draw(st.integers(0, 17))
        block += b"\x02" + len(key).to_bytes(4, "little") + key.encode()
        block += bytes([kind]) + len(value).to_bytes(4, "little") + value
    try:
        values = parse_topic_options(decode_options(memoryview(block)))
    except RejectedError:
        return
    assert set(values) == set(raw)


@given(st.binary(max_size=300))
def test_user_headers_decode_or_are_rejected(raw: bytes) -> None:
    try:
        decode_user_headers(memoryview(raw))
    except RejectedError:
        return


@settings(max_examples=200)
@given(damaged([bytes(make_batch([b"one", b"", b"three"])), bytes(make_batch([b"x"]) * 2)]))
def test_batches_decode_to_the_same_bytes_or_are_rejected(raw: bytes) -> None:
    try:
        batches = decode_batches(raw)
    except RejectedError:
        return
    assert b"".join(one.encode() for one in batches) == raw
