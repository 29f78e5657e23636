"""Polls by a route: what the plane answers is what the handler's way answers, for any poll."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.calls import PollCall
from shardserver.core.handlers import CONSUMER
from shardserver.core.load import LoadMeter
from shardserver.core.local_owner import Buffers, LocalOwner
from shardserver.core.sessions import Connection, Sessions
from shardserver.errors import NotOwnerError, StorageError
from shardserver.memory.heap import heap_arena
from shardserver.net import routes as routes_module
from shardserver.net.frame_reader import WireContext
from shardserver.net.known_routes import Route
from shardserver.net.poll_route import PollRoute
from shardserver.net.routes import Routes
from shardserver.net.wire import Wire
from shardserver.protocol.addresses import CONSUMER_GROUP, CONSUMER_SINGLE, PartitionAddress
from shardserver.protocol.frame import Frame, RequestHeader, encode_reply_header, encode_request
from shardserver.protocol.messages import BY_OFFSET, FIRST, LAST, NEXT, PollRequest
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import ticking_clock

CLIENT = b"\x05" + bytes(15)
SETTINGS = LogSettings(journal_file_bytes=2 << 20, journal_files=3)
ADDRESS = PartitionAddress(CONSUMER_SINGLE, 7, "s", "t", 0)
MAX_BYTES = 2000


class World:
    """One `memory` partition, one connection with a route to it."""

    def __init__(self, local: LocalOwner, log: PartitionLog) -> None:
        self.local, self.log = local, log
        self.unrouted: list[int] = []
        self.local_notes = self.lookups = 0
        committed, commit = partial(local.committed, 1, CONSUMER, 7), partial(local.auto_commit, log, CONSUMER, 7)
        self.route = PollRoute(log, committed, commit, MAX_BYTES)
        self.context = WireContext(heap_arena(1 << 16), int, 1 << 20)
        self.wire = Wire(self.context, self, 1 << 20, 1 << 20)

    def send(self, *sizes: int) -> None:
        batch = make_batch([b"x" * size for size in sizes])
        self.log.send_bytes(self.local.logs.resources.memory, batch, len(sizes), lambda base: None)

    def frame(self, poll: PollRequest, number: int = 1) -> bytes:
        return encode_request(2, 100, poll.encode(), client=CLIENT, request=number, session=1, checked=bool(number % 2))

    def asked(self, frame: bytes) -> bytes:
        self.wire.feed(frame)
        return b"".join(self.wire.take_output())

    def expected(self, poll: PollRequest, frame: bytes) -> bytes:
        call = PollCall(1, poll.value, poll.count, 7, MAX_BYTES, CONSUMER, poll.strategy, poll.auto_commit)
        outcome = self.local.poll(call)
        assert isinstance(outcome, list)
        body = b"".join(outcome)
        return encode_reply_header(RequestHeader.decode(frame), len(body)) + body

    # What the wire asks its owner.

    def start(self, frame: Frame, reply: Callable[[Buffers, bool], None]) -> None:
        self.unrouted.append(frame.header.request)
        reply([encode_reply_header(frame.header, 0, status=1)], False)

    def find_route(self, key: bytes) -> Route | None:
        return None

    def find_poll_route(self, key: bytes) -> PollRoute | None:
        self.lookups += 1
        return self.route if key == ADDRESS.encode() else None

    def note_local(self) -> None:
        self.local_notes += 1

    def on_change(self) -> None:
        raise AssertionError("there is no socket")


def play(work: Callable[[World], None]) -> None:
    async def run() -> None:
        source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0, durability=Durability.MEMORY)])
        logs = await recover_shard(FaultDisk(1), "data", SETTINGS, source, ticking_clock(), lambda error: None)
        local = LocalOwner(LoadMeter(lambda: 0.0))
        local.logs = logs
        work(World(local, logs.partition(1)))

    asyncio.run(run())


polls = st.tuples(
    st.sampled_from([BY_OFFSET, BY_OFFSET, FIRST, LAST, NEXT]),
    st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1)),
    st.booleans(),
)


@given(st.lists(st.lists(st.integers(0, 600), min_size=1, max_size=5), max_size=8), st.lists(polls, max_size=12))
def test_what_a_route_answers_is_what_the_handler_answers(sends: list[list[int]], asked: list[tuple]) -> None:
    def work(world: World) -> None:
        for sizes in sends:
            world.send(*sizes)
        for number, (strategy, value, count, auto_commit) in enumerate(asked):
            poll = PollRequest(ADDRESS, strategy, value, count, auto_commit)
            frame = world.frame(poll, number)
            before = world.local.committed(1, CONSUMER, 7)
            answer = world.asked(frame)
            if number in world.unrouted:
                assert count == 0 or strategy in (FIRST, LAST) or (strategy == NEXT and before is None)
                world.expected(poll, frame)
                continue
            after = world.local.committed(1, CONSUMER, 7)
            world.local.logs.offsets._values.clear()  # type: ignore[union-attr]
            if before is not None:
                world.local.auto_commit(world.log, CONSUMER, 7, before)
            assert answer == world.expected(poll, frame)
            assert world.local.committed(1, CONSUMER, 7) == after

    play(work)


def test_a_poll_behind_a_send_that_waits_is_answered_after_it() -> None:
    def work(world: World) -> None:
        world.send(5)
        replies: list[Callable[[Buffers, bool], None]] = []
        world.start = lambda frame, reply: replies.append(reply)  # type: ignore[method-assign,assignment]
        poll = PollRequest(ADDRESS, BY_OFFSET, 0, 10, False)
        send = encode_request(160, 0, b"no route", client=CLIENT, request=1, session=1)
        frame = world.frame(poll, 2)
        assert world.asked(send + frame + frame) == b""
        replies[0]([b"sent"], False)
        expected = world.expected(poll, frame)
        assert b"".join(world.wire.take_output()) == b"sent" + expected + expected
        assert world.wire.is_idle and world.wire.in_flight_bytes == 0

    play(work)


def test_a_bad_checksum_and_a_spoiled_key_have_no_route() -> None:
    def work(world: World) -> None:
        world.send(5)
        frame = bytearray(world.frame(PollRequest(ADDRESS, BY_OFFSET, 0, 10, False), 1))
        frame[150] ^= 1
        world.asked(bytes(frame))
        world.asked(world.frame(PollRequest(PartitionAddress(1, 8, "s", "t", 0), BY_OFFSET, 0, 1, False), 2))
        world.asked(encode_request(2, 100, b"short", client=CLIENT, request=3, session=1))
        assert world.unrouted == [1, 2, 3] and world.local_notes == 0

    play(work)


@pytest.mark.parametrize("name", ["closed", "set_aside"])
def test_a_partition_that_leaves_or_was_set_aside_is_asked_the_long_way(name: str) -> None:
    def work(world: World) -> None:
        world.send(5)
        frame = world.frame(PollRequest(ADDRESS, BY_OFFSET, 0, 10, False), 1)
        assert world.asked(frame) and world.unrouted == []
        setattr(world.log, name, NotOwnerError("gone") if name == "closed" else StorageError("damaged"))
        world.asked(frame)
        assert world.unrouted == [1]

    play(work)


def test_an_auto_commit_that_is_refused_is_told_the_long_way() -> None:
    def work(world: World) -> None:
        world.send(5)
        world.log.refusal = NotOwnerError("moves")
        world.asked(world.frame(PollRequest(ADDRESS, BY_OFFSET, 0, 10, True), 1))
        world.asked(world.frame(PollRequest(ADDRESS, BY_OFFSET, 0, 10, False), 2))
        assert world.unrouted == [1] and world.route.take_load()[0] == 1

    play(work)


def test_a_route_is_looked_for_once_a_revision() -> None:
    def work(world: World) -> None:
        frame = world.frame(PollRequest(ADDRESS, BY_OFFSET, 0, 10, False), 1)
        for _ in range(3):
            world.asked(frame)
        assert world.lookups == 1
        world.context.revision += 1
        world.asked(frame)
        assert world.lookups == 2 and world.local_notes == 1

    play(work)


def test_what_was_evicted_is_read_the_long_way() -> None:
    def work(world: World) -> None:
        for _ in range(4):
            world.send(5, 5)
        world.log.flushed_end = 4
        assert world.log.tail.evict_oldest(4) and world.log.tail.evict_oldest(4)
        for number, start in enumerate((3, 4, 5)):
            world.asked(world.frame(PollRequest(ADDRESS, BY_OFFSET, start, 10, False), number))
        assert world.unrouted == [0]

    play(work)


# Of a group


GROUP, MEMBER, STRANGER = 3, 99, 98
GROUP_ADDRESS = PartitionAddress(CONSUMER_GROUP, "g", "s", "t", 0)


def routes_of(world: World) -> tuple[Routes, Sessions]:
    """Where topic t of stream s has the world's partition and the group g."""
    metadata = md.Metadata()
    ev.apply(metadata, ev.StreamCreated(0, "s", 1))
    ev.apply(metadata, ev.TopicCreated(0, 0, "t", 1, {}, [1], [0]))
    ev.apply(metadata, ev.GroupCreated(0, 0, GROUP, "g", 1))
    context: Any = SimpleNamespace(
        metadata=metadata, shards=SimpleNamespace(number=0, local=world.local), max_reply_bytes=MAX_BYTES
    )
    return Routes(context), Sessions(0)


def bound(sessions: Sessions, session: int) -> Connection:
    made = sessions.connect("127.0.0.1:1", "127.0.0.1")
    made.session, made.user_id = session, md.ROOT_ID
    return made


def with_member_route(world: World) -> None:
    """Polls of the member, which has the partition."""
    routes, sessions = routes_of(world)
    member = bound(sessions, MEMBER)
    world.find_poll_route = lambda key: routes.find_poll(member, key)  # type: ignore[method-assign]
    world.local.fences.grant(1, GROUP, MEMBER)


def test_a_members_poll_is_answered_as_the_handler_answers_and_its_fence_told() -> None:
    def work(world: World) -> None:
        with_member_route(world)
        world.send(5, 5, 5)
        for auto_commit in (False, True):
            poll = PollRequest(GROUP_ADDRESS, BY_OFFSET, 0, 2, auto_commit)
            frame = world.frame(poll)
            call = PollCall(1, 0, 2, GROUP, MAX_BYTES, CONSUMER_GROUP, BY_OFFSET, False, MEMBER)
            answer = world.asked(frame)
            assert not world.local.fences.revoke(1, GROUP, 0, force=False)  # offset 1 is in the member's hand
            world.local.fences.grant(1, GROUP, MEMBER)
            body = b"".join(world.local.poll(call))  # type: ignore[arg-type]
            assert answer == encode_reply_header(RequestHeader.decode(frame), len(body)) + body
            assert world.local.committed(1, CONSUMER_GROUP, GROUP) == (1 if auto_commit else None)
        assert world.unrouted == []

    play(work)


def test_a_member_that_has_lost_the_partition_is_answered_the_long_way() -> None:
    def work(world: World) -> None:
        with_member_route(world)
        world.send(5)
        frame = world.frame(PollRequest(GROUP_ADDRESS, BY_OFFSET, 0, 1, False))
        world.asked(frame)
        world.local.fences.revoke(1, GROUP, None, force=False)
        world.asked(frame)
        assert world.unrouted == [1]
        world.local.fences.grant(1, GROUP, STRANGER)
        world.asked(frame)
        assert world.unrouted == [1, 1]

    play(work)


def test_no_other_connection_of_the_user_has_the_members_route() -> None:
    def work(world: World) -> None:
        routes, sessions = routes_of(world)
        key, single = GROUP_ADDRESS.encode(), ADDRESS.encode()
        member, stranger = bound(sessions, MEMBER), bound(sessions, STRANGER)
        assert routes.find_poll(member, single) is routes.find_poll(stranger, single)
        found = routes.find_poll(member, key)
        assert found is not None and found is routes.find_poll(member, key) is not routes.find_poll(stranger, key)
        assert len(routes.shared(stranger)[1]) == 1  # the single consumer's

    play(work)


def test_routes_of_members_that_come_and_go_are_bounded_and_their_load_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes_module, "SHARED_KEYS", 2)

    def work(world: World) -> None:
        routes, sessions = routes_of(world)
        world.send(5)
        for session in range(1, 8):
            member = bound(sessions, session)
            world.local.fences.grant(1, GROUP, session)
            world.wire.forget_routes()
            world.find_poll_route = lambda key, member=member: routes.find_poll(member, key)  # type: ignore[misc]
            world.asked(world.frame(PollRequest(GROUP_ADDRESS, BY_OFFSET, 0, 1, False)))
            assert len(routes._polls) <= 2
        assert sum(requests for _, requests, _ in routes.take_loads()) == 7

    play(work)
