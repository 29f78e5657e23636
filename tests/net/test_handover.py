"""Connections that go from one shard to another: state and descriptor, at accept and in use, with a client that waits
for nothing.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import uvloop

from shardserver.core.metadata import Metadata, User
from shardserver.core.sessions import Connection, LastLeave, Sessions
from shardserver.memory.board import BOARD_BYTES, Board
from shardserver.memory.heap import heap_arena
from shardserver.net import handover as handover_module
from shardserver.net.balance import Balance
from shardserver.net.handover import MAX_DATAGRAM_BYTES, MAX_HOPS, MAX_UNREAD_BYTES, Handed, Handover, SessionState
from shardserver.net.listener import Listener, NetLimits
from shardserver.protocol.frame import HEADER_BYTES, Frame, encode_reply_header, encode_request

CLIENT = b"\x01" + bytes(15)
LIMITS = NetLimits(1 << 20, 1 << 20, 1 << 24, 100, 30.0, handover_requests=3)
LEAVE = LastLeave(CLIENT, 2**64 - 1, b"k" * 16)
STATE = SessionState(7, "127.0.0.1:5", "127.0.0.1", 99, 3, CLIENT, 1, b"", LEAVE)
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)

Work = Callable[[], Awaitable[None]]


@pytest.fixture(params=LOOPS, ids=("asyncio", "uvloop"))
def run(request: pytest.FixtureRequest) -> Callable[[Work], None]:
    def runs(work: Work) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(work())  # type: ignore[arg-type]

    return runs


def new_board() -> Board:
    return Board(memoryview(bytearray(BOARD_BYTES)))


def make_inbox() -> tuple[socket.socket, socket.socket]:
    """Read end and write end, as supervisor/endpoint.py makes them."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


async def until_soon(holds: Callable[[], bool]) -> None:
    """As until, when the kernel has to bring something."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


# The messages


class Ends:
    """Two hand-overs that see each other, and what each of them takes."""

    def __init__(self) -> None:
        self.taken: dict[int, list[tuple[socket.socket, SessionState | None]]] = {0: [], 1: []}
        self.boards = {0: new_board(), 1: new_board()}
        self.balances = {number: Balance(number, self.boards[number]) for number in (0, 1)}
        self.inboxes = {number: make_inbox() for number in (0, 1)}
        self.handovers = {number: self._make(number) for number in (0, 1)}
        for number in (0, 1):
            self.balances[number].attach(1 - number, self.boards[1 - number])
            self.handovers[number].attach(1 - number, self.inboxes[1 - number][1])

    def _make(self, number: int) -> Handover:
        def take(connected: socket.socket, state: SessionState | None) -> None:
            self.taken[number].append((connected, state))

        return Handover(self.balances[number], self.inboxes[number][0], take)

    def close(self) -> None:
        for one in self.handovers.values():
            one.close()
        for taken in self.taken.values():
            for connected, _ in taken:
                connected.close()


@asynccontextmanager
async def two_ends() -> AsyncIterator[Ends]:
    ends = Ends()
    try:
        yield ends
    finally:
        ends.close()


@pytest.mark.parametrize("unread", [b"", b"half a frame", b"x" * MAX_UNREAD_BYTES])
def test_a_connection_and_its_state_arrive_as_they_were(unread: bytes, run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends:
            client, served = socket.socketpair()
            with client, served:
                state = replace_unread(STATE, unread)
                assert ends.handovers[0].try_hand(1, served.fileno(), state)
                served.close()
                assert ends.balances[0].count(1) == 1
                await until_soon(lambda: bool(ends.taken[1]))
                connected, arrived = ends.taken[1][0]
                assert arrived == state and not connected.getblocking()
                assert not os.get_inheritable(connected.fileno())
                client.send(b"still there?")
                assert connected.recv(100) == b"still there?"
                assert (ends.boards[0].handed[1], ends.boards[1].received[0]) == (1, 1)
                assert ends.handovers[0].statistics.handed_in_use == ends.handovers[1].statistics.received == 1

    run(work)


def replace_unread(state: SessionState, unread: bytes) -> SessionState:
    return msgspec.structs.replace(state, unread=unread)


def test_the_largest_message_fits_and_is_read_whole() -> None:
    state = SessionState(
        2**32 - 1, "x" * 60, "y" * 60, 2**64 - 1, 2**32 - 1, b"c" * 16, 2**64 - 1, b"u" * MAX_UNREAD_BYTES, LEAVE
    )
    assert len(msgspec.msgpack.encode(Handed(63, MAX_HOPS, state))) <= MAX_DATAGRAM_BYTES


def test_a_peer_whose_inbox_is_full_gets_nothing_and_the_count_is_right(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends:
            asyncio.get_running_loop().remove_reader(ends.inboxes[1][0].fileno())
            client, served = socket.socketpair()
            with client, served:
                handed = 0
                while ends.handovers[0].try_hand(1, served.fileno(), replace_unread(STATE, b"x" * MAX_UNREAD_BYTES)):
                    handed += 1
                    assert handed < 10_000
                assert handed >= 1 and ends.boards[0].handed[1] == handed
                assert ends.handovers[0].statistics.handed_in_use == handed
                client.send(b"here")
                assert served.recv(10) == b"here"

    run(work)


def test_a_peer_that_is_gone_or_was_never_there_gets_nothing(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends:
            client, served = socket.socketpair()
            with client, served:
                assert not ends.handovers[0].try_hand(5, served.fileno(), STATE)
                ends.handovers[1].close()  # its process has ended, and nobody has said so yet
                assert not ends.handovers[0].try_hand(1, served.fileno(), STATE)
                assert ends.boards[0].handed[1] == 0
                ends.handovers[0].detach(1)
                ends.handovers[0].detach(1)
                assert not ends.handovers[0].try_hand(1, served.fileno(), STATE)

    run(work)


def test_connections_in_the_inbox_of_a_dead_process_are_closed(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends:
            asyncio.get_running_loop().remove_reader(ends.inboxes[1][0].fileno())
            client, served = socket.socketpair()
            with client:
                assert ends.handovers[0].try_hand(1, served.fileno(), STATE)
                served.close()
                ends.handovers[1].close()
                assert client.recv(1) == b""

    run(work)


# Accepting


@asynccontextmanager
async def accepting(ends: Ends, shard: int = 0) -> AsyncIterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    ends.handovers[shard].start_accepting(listening)
    yield address


def test_new_connections_are_spread_at_accept(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends, accepting(ends) as address:
            for number in (0, 1):  # a shard's count is what it has taken
                taken = ends.taken[number]
                ends.handovers[number]._take = lambda connected, state, number=number, taken=taken: (
                    taken.append((connected, state)),
                    setattr(ends.boards[number], "connections", len(taken)),
                )
            clients = [socket.create_connection(address) for _ in range(8)]
            await until_soon(lambda: sum(map(len, ends.taken.values())) == 8)
            assert [len(ends.taken[number]) for number in (0, 1)] == [4, 4]
            assert all(state is None for _, state in ends.taken[1])
            statistics = ends.handovers[0].statistics
            assert (statistics.accepted, statistics.handed_at_accept) == (8, 4)
            for client in clients:
                client.close()

    run(work)


def test_a_new_connection_is_passed_on_a_few_times_at_most(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends, accepting(ends) as address:
            for number in (0, 1):
                ends.balances[number].best = lambda number=number: 1 - number  # type: ignore[method-assign]
            with socket.create_connection(address):
                await until_soon(lambda: any(ends.taken.values()))
            assert sum(one.statistics.received for one in ends.handovers.values()) == MAX_HOPS

    run(work)


def test_a_new_connection_that_cannot_be_handed_over_stays(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with two_ends() as ends, accepting(ends) as address:
            ends.boards[0].connections = 10
            ends.handovers[1].close()
            with socket.create_connection(address):
                await until_soon(lambda: len(ends.taken[0]) == 1)

    run(work)


class ExhaustedSocket:
    """A listening socket whose accept fails as often as told."""

    def __init__(self, listening: socket.socket, failures: list[int]) -> None:
        self._listening, self._failures = listening, failures

    def accept(self) -> Any:
        if self._failures:
            number = self._failures.pop(0)
            raise OSError(number, os.strerror(number))
        return self._listening.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED])
def test_a_failed_accept_loses_no_connection(
    number: int, run: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handover_module, "PAUSE_S", 0.001)

    async def work() -> None:
        async with two_ends() as ends:
            listening = socket.create_server(("127.0.0.1", 0))
            ends.handovers[0].start_accepting(ExhaustedSocket(listening, [number] * 3))  # type: ignore[arg-type]
            with socket.create_connection(listening.getsockname()):
                await until_soon(lambda: bool(ends.taken[0]))

    run(work)
    warned = [record for record in caplog.records if record.message == "accept_failed"]
    assert len(warned) == (0 if number == errno.ECONNABORTED else 3)


def test_accepting_ends_while_it_waits_for_descriptors(
    run: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_module, "PAUSE_S", 0.001)

    async def work() -> None:
        async with two_ends() as ends:
            listening = socket.create_server(("127.0.0.1", 0))
            failures = [errno.EMFILE]
            ends.handovers[0].start_accepting(ExhaustedSocket(listening, failures))  # type: ignore[arg-type]
            with socket.create_connection(listening.getsockname()):
                await until_soon(lambda: not failures)
                ends.handovers[0].stop_accepting()
                await asyncio.sleep(0.01)
            assert ends.taken[0] == []

    run(work)


def test_a_descriptor_that_found_no_place_is_counted_and_logged(
    run: Callable[[Work], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with two_ends() as ends:
            ends.boards[0].handed[1] += 1
            ends.handovers[1]._take_handed(Handed(0, 0, STATE), [])
            assert ends.taken[1] == [] and ends.balances[0].count(1) == 0

    run(work)
    assert "connection_lost_in_handover" in [record.message for record in caplog.records]


# In use


class EchoDispatcher:
    """Answers each request with the shard's number and its body; the partition of all requests is on shard `owner`."""

    def __init__(self, number: int) -> None:
        self.number, self.owner = number, number
        user = User(3, "alice", 0, "")
        self.context = SimpleNamespace(metadata=Metadata(users={3: user}))  # has no topic, so no route is found
        self.held: list[Callable[[], None]] | None = None  # replies that wait, when they are to wait
        self.served = 0

    def start(self, connection: Connection, frame: Frame, reply: Callable[[list[Any], bool], None]) -> None:
        self.served += 1
        connection.note_route(self.owner)
        body = bytes([self.number]) + bytes(frame.body)

        def answer() -> None:
            reply([encode_reply_header(frame.header, len(body)) + body], False)

        if self.held is not None:
            self.held.append(answer)
        else:
            asyncio.get_running_loop().call_soon(answer)

    def release(self) -> None:
        held, self.held = self.held, None
        for answer in held or ():
            answer()


class Server:
    """Two listeners with inboxes of their own; the first one accepts."""

    def __init__(self, limits: NetLimits = LIMITS) -> None:
        self.dispatchers = {number: EchoDispatcher(number) for number in (0, 1)}
        self.sessions = {number: Sessions(number) for number in (0, 1)}
        inboxes = {number: make_inbox() for number in (0, 1)}
        boards = {number: new_board() for number in (0, 1)}
        self.listeners = {
            number: Listener(
                self.dispatchers[number],  # type: ignore[arg-type]
                self.sessions[number],
                limits,
                number,
                boards[number],
                inboxes[number][0],
                arena=heap_arena(1 << 20),
            )
            for number in (0, 1)
        }
        for number in (0, 1):
            self.listeners[number].attach_peer(1 - number, boards[1 - number], inboxes[1 - number][1])
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = listening.getsockname()
        self.listeners[0].start_accepting(listening)

    def connections(self) -> list[int]:
        return [len(self.listeners[number].clients) for number in (0, 1)]

    async def close(self) -> None:
        for listener in self.listeners.values():
            await listener.drain(0)
            listener.handover.close()
            listener.close()


class Client:
    """Sends numbered requests and checks that their replies come in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.sent = self.received = 0
        self.shards: list[int] = []

    def frame(self, body_bytes: int = 10) -> bytes:
        self.sent += 1
        body = self.sent.to_bytes(4, "little") + b"b" * body_bytes
        return encode_request(160, 0, body, client=CLIENT, request=self.sent, session=1)

    def send(self, count: int = 1) -> None:
        self.writer.write(b"".join(self.frame() for _ in range(count)))

    async def take(self, count: int = 1) -> None:
        async with asyncio.timeout(20):
            for _ in range(count):
                head = await self.reader.readexactly(HEADER_BYTES)
                body = await self.reader.readexactly(int.from_bytes(head[48:52], "little") - HEADER_BYTES)
                self.received += 1
                assert int.from_bytes(body[1:5], "little") == self.received
                self.shards.append(body[0])


@asynccontextmanager
async def served(limits: NetLimits = LIMITS) -> AsyncIterator[tuple[Server, Client]]:
    server = Server(limits)
    reader, writer = await asyncio.open_connection(*server.address)
    await until_soon(lambda: sum(server.connections()) == 1)
    try:
        yield server, Client(reader, writer)
    finally:
        writer.close()
        await server.close()
        await until_soon(lambda: sum(server.connections()) == 0)


def test_a_connection_goes_where_its_requests_go(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = 1
            (before,) = server.sessions[0].connections.values()
            server.sessions[0].bind(before, 3, CLIENT)
            before.last_leave = LEAVE
            for _ in range(6):
                client.send()
                await client.take()
            assert client.shards == [0, 0, 0, 1, 1, 1]
            assert server.connections() == [0, 1]
            (after,) = server.sessions[1].connections.values()
            assert after.details() == before.details()
            assert (after.session, after.user_id, after.client) == (before.session, 3, CLIENT)
            assert after.last_leave == LEAVE
            assert server.sessions[0].connections == {}
            assert [server.listeners[number].balance.count(number) for number in (0, 1)] == [0, 1]
            assert [listener.in_flight_bytes for listener in server.listeners.values()] == [0, 0]

    run(work)


def test_a_connection_whose_partitions_are_here_or_on_several_shards_stays(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (server, client):
            for owner in (0, 0, 0, 0, 1, 1, 0, 1, 1, 0):
                server.dispatchers[0].owner = owner
                client.send()
                await client.take()
            assert set(client.shards) == {0}

    run(work)


def test_0_switches_it_off(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served(replace(LIMITS, handover_requests=0)) as (server, client):
            server.dispatchers[0].owner = 1
            client.send(10)
            await client.take(10)
            assert set(client.shards) == {0}

    run(work)


def test_a_client_that_waits_for_nothing_loses_no_reply_and_sees_no_close(run: Callable[[Work], None]) -> None:
    """To and fro, as each shard says that the partition is on the other."""

    async def work() -> None:
        async with served() as (server, client):
            for number in (0, 1):
                server.dispatchers[number].owner = 1 - number
            count = 3000

            async def send_all() -> None:
                while client.sent < count:
                    client.send(min(7, count - client.sent))
                    await client.writer.drain()
                    await asyncio.sleep(0)

            await asyncio.gather(send_all(), client.take(count))
            moves = sum(listener.handover.statistics.handed_in_use for listener in server.listeners.values())
            assert moves >= 10 and client.received == count
            assert sum(dispatcher.served for dispatcher in server.dispatchers.values()) == count
            assert not client.reader.at_eof()

    run(work)


@pytest.mark.parametrize("cut", [1, 100, HEADER_BYTES, HEADER_BYTES + 5, 30_000])
def test_half_a_frame_travels_along(cut: int, run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = 1
            whole = b"".join(client.frame() for _ in range(3))
            half = client.frame(40_000)
            client.writer.write(whole + half[:cut])
            await client.take(3)
            await until_soon(lambda: server.connections() == [0, 1])
            client.writer.write(half[cut:])
            client.send(2)
            await client.take(3)
            assert client.shards == [0, 0, 0, 1, 1, 1]

    run(work)


def test_more_than_fits_into_a_message_keeps_the_connection(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (server, client):
            first, half = client.frame(), client.frame(100_000)
            server.dispatchers[0].held = []
            client.writer.write(first + half[: MAX_UNREAD_BYTES + 1000])
            (served_here,) = server.listeners[0].clients
            await until_soon(lambda: served_here.wire.unread_bytes > MAX_UNREAD_BYTES)
            (connection,) = server.sessions[0].connections.values()
            server.dispatchers[0].owner = connection.routed_to = 1
            connection.in_a_row = 10
            server.dispatchers[0].release()
            await client.take()
            assert server.connections() == [1, 0]
            client.writer.write(half[MAX_UNREAD_BYTES + 1000 :])
            await client.take()
            assert client.shards == [0, 0]
            await until_soon(lambda: server.connections() == [0, 1])

    run(work)


def test_what_is_in_hand_is_answered_before_the_connection_goes(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = 1
            server.dispatchers[0].held = []
            client.send(5)
            await until_soon(lambda: server.dispatchers[0].served == 5)
            held = server.dispatchers[0].held
            held.pop(0)()  # one of five: the connection wants to go, and may not yet
            await client.take()
            client.send(2)
            await asyncio.sleep(0.01)
            assert server.dispatchers[0].served == 5 and server.connections() == [1, 0]
            server.dispatchers[0].release()
            await client.take(6)
            assert client.shards == [0] * 5 + [1] * 2

    run(work)


@pytest.mark.parametrize("is_known", [False, True])
def test_with_its_peer_down_a_connection_stays_and_is_served(is_known: bool, run: Callable[[Work], None]) -> None:
    """Half a frame is put back where it was."""

    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = 1
            if is_known:
                server.listeners[0].detach_peer(1)
            else:
                server.listeners[1].handover.close()
            whole = b"".join(client.frame() for _ in range(20))
            half = client.frame()
            client.writer.write(whole + half[:100])
            await client.take(20)
            client.writer.write(half[100:])
            client.send(20)
            await client.take(21)
            assert set(client.shards) == {0} and server.connections() == [1, 0]
            assert server.listeners[0].in_flight_bytes == 0

    run(work)


def test_a_connection_with_a_send_that_was_answered_57_stays(run: Callable[[Work], None]) -> None:
    """Its shard knows the frame, and an identical one has to come there."""

    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = 1
            (connection,) = server.sessions[0].connections.values()
            connection.unanswered.append(object())  # type: ignore[arg-type]
            client.send(10)
            await client.take(10)
            assert set(client.shards) == {0}
            connection.unanswered.clear()
            client.send(1)
            await client.take(1)
            client.send(1)
            await client.take(1)
            assert client.shards[-1] == 1

    run(work)


def test_nothing_of_a_connection_stays_behind_when_its_client_leaves_after_a_handover(
    run: Callable[[Work], None],
) -> None:
    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = 1
            descriptors = len(os.listdir("/proc/self/fd"))
            client.send(3)
            await client.take(3)
            await until_soon(lambda: server.connections() == [0, 1])
            client.send()
            await client.take()
            assert len(os.listdir("/proc/self/fd")) == descriptors
            client.writer.close()
            await until_soon(lambda: server.connections() == [0, 0])
            assert server.sessions[0].connections == server.sessions[1].connections == {}
            assert server.listeners[1].balance.count(1) == 0

    run(work)


def test_a_shard_that_is_full_is_handed_nothing_in_use(run: Callable[[Work], None]) -> None:
    """It would close the connection."""

    async def work() -> None:
        async with served(replace(LIMITS, max_connections=2)) as (server, client):
            server.dispatchers[0].owner = 1
            server.listeners[1].balance.own.connections = 2
            client.send(10)
            await client.take(10)
            assert server.connections() == [1, 0] and set(client.shards) == {0}
            server.listeners[1].balance.own.connections = 1
            client.send()
            await client.take()
            await until_soon(lambda: server.connections() == [0, 1])

    run(work)


# Memory


class Body(bytearray):
    """Can be watched."""


@pytest.mark.parametrize("handed", [False, True])
def test_a_connection_that_has_ended_leaves_no_cycle_behind(handed: bool, run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (server, client):
            server.dispatchers[0].owner = int(handed)
            watched = [weakref.ref(one) for one in server.listeners[0].clients]
            gc.collect()
            gc.disable()
            try:
                client.send(5)
                await client.take(5)
                client.writer.close()
                await until_soon(lambda: server.connections() == [0, 0])
                await until_soon(lambda: all(one() is None for one in watched))
            finally:
                gc.enable()

    run(work)


@pytest.mark.parametrize("waits", [False, True])
def test_replies_that_a_client_did_not_take_are_let_go_with_it(waits: bool, run: Callable[[Work], None]) -> None:
    """They may be lent by another shard, which gets them back when the last view is gone."""

    async def work() -> None:
        async with served() as (server, client):
            watched: list[weakref.ref[Body]] = []
            held: list[Callable[[], None]] = []

            def start(connection: Connection, frame: Frame, reply: Callable[[list[Any], bool], None]) -> None:
                body = Body(8 << 20)
                watched.append(weakref.ref(body))
                if waits and not held:  # the replies behind it wait for this one
                    held.append(lambda: reply([], False))
                else:
                    reply([encode_reply_header(frame.header, len(body)), memoryview(body)], False)

            server.dispatchers[0].start = start  # type: ignore[method-assign]
            gc.collect()
            gc.disable()
            try:
                client.send(3)
                await until_soon(lambda: len(watched) == 3)
                client.writer.transport.abort()
                await until_soon(lambda: all(one() is None for one in watched))
            finally:
                gc.enable()

    run(work)


def test_requests_leave_no_cycles_behind(run: Callable[[Work], None]) -> None:
    async def work() -> None:
        async with served() as (_, client):
            client.send(10)
            await client.take(10)
            gc.collect()
            gc.disable()
            try:
                for _ in range(100):
                    client.send(10)
                    await client.take(10)
                assert gc.collect() == 0
            finally:
                gc.enable()

    run(work)
