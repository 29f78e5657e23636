"""Streams of a client into the compiled connection and into its specification: the same requests, the same ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shardserver.memory.heap import heap_arena
from shardserver.net.frame_reader import WireContext
from shardserver.net.known_routes import Route
from shardserver.net.machine import ConnectionMachine
from shardserver.net.wire import Wire
from shardserver.protocol.frame import Frame
from shardserver.protocol.sends import CallbackTarget

MAX_FRAME_BYTES, IN_FLIGHT_LIMIT = 200_000, 1 << 20
ARENA = heap_arena(4 << 20)

Reply = Callable[[list[bytes | bytearray | memoryview], bool], None]


class Recorder:
    """What a connection started; each request is answered at once. has_routes: sends pass Python by."""

    def __init__(self, *, has_routes: bool) -> None:
        self.started: list[tuple[int, int, bytes]] = []
        self._route = Route(CallbackTarget(lambda batch, count, done: done(7)), 1, 1, 1, 1) if has_routes else None

    def start(self, frame: Frame, reply: Reply) -> None:
        self.started.append((frame.header.request, frame.header.operation, bytes(frame.body)))
        reply([b"answer"], False)

    def find_route(self, key: bytes) -> Route | None:
        return self._route if len(key) % 2 == 0 else None

    def find_poll_route(self, key: bytes) -> None:
        return None

    def note_local(self) -> None:
        """Of no interest here."""

    def note_crossings(self, shard: int, count: int) -> None:
        raise AssertionError("no route crosses")

    def on_change(self) -> None:
        """Of no interest here."""


def chunks(stream: bytes, size: int) -> Iterator[bytes]:
    """size 0: all at once."""
    step = size or max(1, len(stream))
    for start in range(0, len(stream), step):
        yield stream[start : start + step]


def fuzz_frames(data: bytes) -> None:
    """The first byte is the length of the chunks in which the rest arrives."""
    size, stream = (data[0] if data else 0), data[1:]
    told, compiled = Recorder(has_routes=False), Recorder(has_routes=False)
    machine = ConnectionMachine(told.start, MAX_FRAME_BYTES, IN_FLIGHT_LIMIT)
    wire = Wire(WireContext(ARENA, int, IN_FLIGHT_LIMIT), compiled, MAX_FRAME_BYTES, IN_FLIGHT_LIMIT)
    for chunk in chunks(stream, size):
        machine.feed(chunk)
        wire.feed(chunk)
    assert compiled.started == told.started
    assert bool(wire.close_reason) == bool(machine.close_reason), (wire.close_reason, machine.close_reason)
    assert b"".join(wire.take_output()) == b"".join(machine.take_output())
    assert machine.unread_bytes <= len(stream) and wire.unread_bytes <= len(stream)
    wire.close("the end")
    _feed_with_routes(stream, size)


def _feed_with_routes(stream: bytes, size: int) -> None:
    """Sends go to the arena: none of it may stay taken, whatever arrived."""
    context = WireContext(ARENA, int, IN_FLIGHT_LIMIT)
    wire = Wire(context, Recorder(has_routes=True), MAX_FRAME_BYTES, IN_FLIGHT_LIMIT)
    for chunk in chunks(stream, size):
        wire.feed(chunk)
        wire.take_output()
    wire.close("the end")
    assert (context.in_flight_bytes, context.arriving_bytes, ARENA.used_bytes) == (0, 0, 0)
