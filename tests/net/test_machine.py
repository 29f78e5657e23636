"""One connection without its socket: any chunking, order of replies, hostile bytes. The compiled plane and its
specification pass one suite, and do the same whatever comes.
"""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.memory.heap import heap_arena
from shardserver.net.machine import ConnectionMachine
from shardserver.net.plane import Plane, PlaneConnection
from shardserver.protocol.frame import Frame, encode_request

CLIENT = b"\x01" + bytes(15)
LIMIT = 4096


def request(operation: int, number: int, body: bytes = b"") -> bytes:
    return encode_request(operation, 1, body, client=CLIENT, request=number, session=1)


IN_FLIGHT_LIMIT = 1 << 20
ARENA = heap_arena(1 << 16)
both = pytest.mark.parametrize("compiled", [False, True], ids=("specification", "plane"))


class Recorder:
    """Starts requests and completes them when told."""

    def __init__(self, compiled: bool = False) -> None:
        self.started: list[int] = []
        self.open: dict[int, Callable] = {}
        self.machine: ConnectionMachine | PlaneConnection
        if compiled:
            self.plane = Plane(ARENA, int, IN_FLIGHT_LIMIT)
            self.machine = PlaneConnection(self.plane, self, LIMIT, IN_FLIGHT_LIMIT)
        else:
            self.machine = ConnectionMachine(self.start, LIMIT, IN_FLIGHT_LIMIT)

    # What a plane asks its owner beside `start`.

    def find_route(self, key: bytes) -> None:
        return None

    def find_poll_route(self, key: bytes) -> None:
        return None

    def note_local(self) -> None:
        raise AssertionError("there are no routes")

    def note_crossings(self, shard: int, count: int) -> None:
        raise AssertionError("there are no routes")

    def on_change(self) -> None:
        raise AssertionError("there is no socket")

    def start(self, frame: Frame, reply: Callable) -> None:
        self.started.append(frame.header.request)
        self.open[frame.header.request] = reply

    def complete(self, number: int, closing: tuple[int, ...] = ()) -> None:
        self.open.pop(number)([b"%d " % number], number in closing)

    def output(self) -> bytes:
        return b"".join(self.machine.take_output())


@both
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8), st.data())
def test_any_chunking_starts_the_same_requests(compiled: bool, bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(request(160, number, body) for number, body in enumerate(bodies))
    recorder = Recorder(compiled)
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        recorder.machine.feed(stream[:cut])
        stream = stream[cut:]
    assert recorder.started == list(range(len(bodies)))


@both
def test_sends_overlap_and_other_requests_wait_for_all_before_them(compiled: bool) -> None:
    recorder = Recorder(compiled)
    recorder.machine.feed(request(160, 1) + request(160, 2) + request(2, 3) + request(160, 4))
    assert recorder.started == [1, 2]
    recorder.complete(2)
    assert recorder.output() == b""
    recorder.complete(1)
    assert recorder.output() == b"1 2 "
    assert recorder.started == [1, 2, 3]
    recorder.complete(3)
    recorder.complete(4)
    assert recorder.output() == b"3 4 "


@both
def test_a_late_completion_of_a_closed_connection_is_ignored(compiled: bool) -> None:
    recorder = Recorder(compiled)
    recorder.machine.feed(request(160, 1))
    recorder.machine.close("gone")
    recorder.complete(1)
    assert recorder.output() == b"" and not recorder.machine.wants_more


@both
@given(st.binary(min_size=256, max_size=600))
def test_random_bytes_close_the_connection_or_wait_and_buffer_no_more_than_a_frame(compiled: bool, raw: bytes) -> None:
    recorder = Recorder(compiled)
    recorder.machine.feed(raw)
    assert recorder.machine.close_reason or recorder.started or recorder.machine.unread_bytes <= LIMIT


@both
def test_a_length_that_lies_closes_before_the_body_is_buffered(compiled: bool) -> None:
    recorder = Recorder(compiled)
    head = bytearray(request(160, 1))
    head[48:52] = (LIMIT + 1).to_bytes(4, "little")
    recorder.machine.feed(bytes(head))
    assert "frame of 4097 bytes" in recorder.machine.close_reason
    for first, word in ((b"\x16\x03\x01", "TLS"), (b"GET / HTTP/1.1\r\n\r\n", "HTTP")):
        other = Recorder(compiled)
        other.machine.feed(first)
        assert word in other.machine.close_reason


@both
def test_a_request_that_failed_inside_is_answered_in_its_turn_and_nothing_behind_it(compiled: bool) -> None:
    recorder = Recorder(compiled)
    recorder.machine.feed(request(160, 1) + request(160, 2) + request(160, 3))
    recorder.complete(2, closing=(2,))
    recorder.complete(3)
    assert recorder.output() == b"" and not recorder.machine.is_closed
    recorder.complete(1)
    assert recorder.output() == b"1 2 " and recorder.machine.is_closed


OPERATIONS = st.sampled_from([160, 160, 160, 2, 128, 0, 255])
REQUESTS = st.tuples(OPERATIONS, st.integers(0, 9), st.binary(max_size=300))


def as_bytes(what: tuple[int, int, bytes]) -> bytes:
    return request(*what)


# Whole requests, some with a byte that is wrong, and noise.
def spoiled(raw: bytes, place: int, byte: int) -> bytes:
    place %= len(raw)
    return raw[:place] + bytes([byte]) + raw[place + 1 :]


GOOD = REQUESTS.map(as_bytes)
BAD = st.builds(spoiled, GOOD, st.integers(0, 600), st.integers(0, 255))
STREAMS = st.lists(st.one_of(GOOD, GOOD, GOOD, BAD, st.binary(max_size=40)), min_size=1, max_size=10).map(b"".join)


@given(STREAMS, st.data())
def test_plane_and_specification_do_the_same_with_any_bytes_in_any_pieces(stream: bytes, data: st.DataObject) -> None:
    ends = [Recorder(compiled) for compiled in (False, True)]

    def seen(end: Recorder) -> tuple:
        machine = end.machine
        in_flight = 0 if machine.is_closed else machine.in_flight_bytes
        state = (machine.close_reason, machine.is_idle, machine.wants_more, in_flight, machine.frames)
        return (end.started, sorted(end.open), end.output(), *state)

    while stream or ends[0].open:
        if stream and (not ends[0].open or data.draw(st.booleans())):
            cut = data.draw(st.integers(1, len(stream)))
            piece, stream = stream[:cut], stream[cut:]
            for end in ends:
                end.machine.feed(piece)
        else:
            number = data.draw(st.sampled_from(sorted(ends[0].open)))
            closing = (number,) if data.draw(st.integers(0, 19)) == 0 else ()
            for end in ends:
                end.complete(number, closing)
        assert seen(ends[0]) == seen(ends[1])
        if ends[0].machine.is_closed:
            break


@both
@given(st.lists(REQUESTS, max_size=3), st.integers(0, 299))
def test_the_beginning_of_a_frame_goes_on_elsewhere(compiled: bool, before: list, cut: int) -> None:
    first, second = Recorder(compiled), Recorder(compiled)
    last = request(160, 9, bytes(44))
    first.machine.feed(b"".join(map(as_bytes, before)) + last[:cut])
    assert first.machine.unread_bytes == cut
    second.machine.feed(first.machine.take_unread())
    assert first.machine.unread_bytes == 0
    second.machine.feed(last[cut:])
    assert second.started == [9]
