"""The connection machine: any chunking, order of replies, hostile bytes."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from shardserver.net.machine import ConnectionMachine
from shardserver.protocol.frame import Frame, encode_request

CLIENT = b"\x01" + bytes(15)
LIMIT = 4096


def request(operation: int, number: int, body: bytes = b"") -> bytes:
    return encode_request(operation, 1, body, client=CLIENT, request=number, session=1)


class Recorder:
    """Starts requests and completes them when told."""

    def __init__(self) -> None:
        self.machine = ConnectionMachine(self.start, LIMIT, 1 << 20)
        self.started: list[int] = []
        self.open: dict[int, Callable] = {}

    def start(self, frame: Frame, reply: Callable) -> None:
        self.started.append(frame.header.request)
        self.open[frame.header.request] = reply

    def complete(self, number: int, closing: tuple[int, ...] = ()) -> None:
        self.open.pop(number)([b"%d " % number], number in closing)

    def output(self) -> bytes:
        return b"".join(self.machine.take_output())


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8), st.data())
def test_any_chunking_starts_the_same_requests(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(request(160, number, body) for number, body in enumerate(bodies))
    recorder = Recorder()
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        recorder.machine.feed(stream[:cut])
        stream = stream[cut:]
    assert recorder.started == list(range(len(bodies)))


def test_sends_overlap_and_other_requests_wait_for_all_before_them() -> None:
    recorder = Recorder()
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


def test_a_late_completion_of_a_closed_connection_is_ignored() -> None:
    recorder = Recorder()
    recorder.machine.feed(request(160, 1))
    recorder.machine.close("gone")
    recorder.complete(1)
    assert recorder.output() == b"" and not recorder.machine.wants_more


@given(st.binary(min_size=256, max_size=600))
def test_random_bytes_close_the_connection_or_wait_and_buffer_no_more_than_a_frame(raw: bytes) -> None:
    recorder = Recorder()
    recorder.machine.feed(raw)
    assert recorder.machine.close_reason or recorder.started or recorder.machine._decoder.buffered_bytes <= LIMIT


def test_a_length_that_lies_closes_before_the_body_is_buffered() -> None:
    recorder = Recorder()
    head = bytearray(request(160, 1))
    head[48:52] = (LIMIT + 1).to_bytes(4, "little")
    recorder.machine.feed(bytes(head))
    assert "frame of 4097 bytes" in recorder.machine.close_reason
    for first, word in ((b"\x16\x03\x01", "TLS"), (b"GET / HTTP/1.1\r\n\r\n", "HTTP")):
        other = Recorder()
        other.machine.feed(first)
        assert word in other.machine.close_reason


def test_a_request_that_failed_inside_is_answered_in_its_turn_and_nothing_behind_it() -> None:
    recorder = Recorder()
    recorder.machine.feed(request(160, 1) + request(160, 2) + request(160, 3))
    recorder.complete(2, closing=(2,))
    recorder.complete(3)
    assert recorder.output() == b"" and not recorder.machine.is_closed
    recorder.complete(1)
    assert recorder.output() == b"1 2 " and recorder.machine.is_closed
