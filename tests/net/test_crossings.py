"""Sends by routes of other shards: when the owner of a connection is told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardserver.memory.heap import heap_arena
from shardserver.net.frame_reader import WireContext
from shardserver.net.known_routes import Route
from shardserver.net.wire import Wire
from shardserver.protocol.frame import Frame, encode_reply_header, encode_request
from shardserver.protocol.messages import SendRequest
from shardserver.protocol.sends import CallbackTarget
from tests.batches import make_batch

CLIENT = b"\x05" + bytes(15)
OP_READ, OP_SEND = 2, 160
HERE, MAX_FRAME = -1, 1 << 20


class Owner:
    """Partition n belongs to shard n, and partition 0 to this one. told: in order, (shard, count) or what it was."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        context = WireContext(heap_arena(1 << 20), lambda error: 1, MAX_FRAME)
        self.wire = Wire(context, self, MAX_FRAME, MAX_FRAME)
        self.number = 0

    def find_route(self, key: bytes) -> Route:
        shard = int.from_bytes(key[-4:], "little")
        target = CallbackTarget(lambda batch, count, done: done(0))
        return Route(target, 10 + shard, 1, 1, shard, crosses_to=shard or HERE)

    def find_poll_route(self, key: bytes) -> None:
        return None

    def start(self, frame: Frame, reply: Callable[[list[bytes | bytearray | memoryview], bool], None]) -> None:
        self.told.append("frame")
        reply([encode_reply_header(frame.header, 0)], False)

    def note_local(self) -> None:
        self.told.append("local")

    def note_crossings(self, shard: int, count: int) -> None:
        self.told.append((shard, count))

    def on_change(self) -> None:
        raise AssertionError("there is no socket")

    def send(self, shard: int, times: int = 1) -> None:
        for _ in range(times):
            self.number += 1
            body = SendRequest(1, "t", 2, shard.to_bytes(4, "little"), 1, bytes(make_batch([b"x"]))).encode()
            self.wire.feed(encode_request(OP_SEND, 0, body, client=CLIENT, request=self.number, session=1))

    def ask(self) -> None:
        self.number += 1
        self.wire.feed(encode_request(OP_READ, 11, b"", client=CLIENT, request=self.number, session=1))


def test_the_owner_is_told_of_crossings_after_so_many_and_not_of_each() -> None:
    owner = Owner()
    owner.wire.crossings_told = 16
    owner.send(1, 15)
    assert owner.told == []
    owner.send(1)
    assert owner.told == [(1, 16)]
    owner.send(1, 33)
    assert owner.told == [(1, 16)] * 3


def test_it_is_told_of_those_before_a_frame_another_shard_or_a_send_that_stays_here() -> None:
    owner = Owner()
    owner.send(1, 3)
    owner.ask()
    owner.send(1, 2)
    owner.send(2, 4)
    owner.send(0, 3)
    owner.send(1)
    owner.send(0)
    assert owner.told == [(1, 3), "frame", (1, 2), (2, 4), "local", (1, 1), "local"]


def test_a_crossing_send_is_answered_with_its_place() -> None:
    owner = Owner()
    owner.send(3)
    reply = b"".join(owner.wire.take_output())
    assert len(reply) == 256 + 24 and reply[256 + 12 : 256 + 16] == (3).to_bytes(4, "little")
