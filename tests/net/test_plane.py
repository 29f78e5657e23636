"""The plane on real sockets: many connections, slow readers, bounds, sends by a route, connections that end anyhow."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import BackpressureError, Code
from shardserver.memory.heap import heap_arena
from shardserver.net.known_routes import Route
from shardserver.net.plane import Plane, PlaneConnection
from shardserver.protocol.frame import (
    HEADER_BYTES,
    Frame,
    ReplyHeader,
    RequestHeader,
    encode_reply_header,
    encode_request,
)
from shardserver.protocol.messages import SendReply, SendRequest
from shardserver.protocol.sends import CallbackTarget
from tests.batches import make_batch, payloads_of

CLIENT = b"\x05" + bytes(15)
OP_READ, OP_SEND = 2, 160
MAX_FRAME = 1 << 20
ONE_READ = 256 * 1024  # SCRATCH of plane.pyx


def send_frame(number: int, payload: bytes = b"hello", partition: int = 2, spoil: int | None = None) -> bytes:
    batch = bytearray(make_batch([payload]))
    if spoil is not None:
        batch[spoil] ^= 0xFF
    body = SendRequest(1, "t", 2, partition.to_bytes(4, "little"), 1, bytes(batch)).encode()
    return encode_request(OP_SEND, 0, body, client=CLIENT, request=number, session=1, checked=bool(number % 2))


class Server:
    """Connections of one plane; requests that are no routed sends are answered with their body, `repeated` times."""

    def __init__(self, in_flight_limit: int = 1 << 20, connection_limit: int = 1 << 20) -> None:
        self.arena = heap_arena(1 << 22)
        self.plane = Plane(self.arena, self.code_of, in_flight_limit)
        loop = asyncio.get_running_loop()
        self.plane.set_schedule(loop.call_soon)
        loop.add_reader(self.plane.fileno(), self.plane.drain)
        self._limit = connection_limit
        self.owners: list[Owner] = []
        self.appended: list[bytes] = []
        self.refusal: Exception | None = None
        self.held: list[Callable[[], None]] | None = None

    @staticmethod
    def code_of(error: Exception) -> int:
        return int(Code.TRANSIENT_NOT_ACCEPTED if isinstance(error, BackpressureError) else Code.IO_ERROR)

    def connect(self) -> tuple[socket.socket, Owner]:
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
        owner = Owner(self, ours, self._limit)
        self.owners.append(owner)
        return theirs, owner

    def append(self, batch: Any, count: int, done: Callable[[Any], None]) -> None:
        if self.refusal is not None:
            done(self.refusal)
            return
        self.appended.append(bytes(batch))
        offset = len(self.appended) - 1
        if self.held is None:
            done(offset)
        else:
            self.held.append(lambda: done(offset))

    def close(self) -> None:
        for owner in self.owners:
            owner.end()
        asyncio.get_running_loop().remove_reader(self.plane.fileno())
        self.plane.close()


class Owner:
    def __init__(self, server: Server, connected: socket.socket, limit: int) -> None:
        self.server, self.socket = server, connected
        self.wire = PlaneConnection(server.plane, self, MAX_FRAME, limit)
        self.repeated, self.asked, self.lookups, self.local = 1, 0, 0, 0
        self.reason = ""
        self.sends: list[tuple[RequestHeader, bytes]] = []
        self.on_start: Callable[[], None] = lambda: None
        server.plane.add(self.wire, connected.fileno())

    def start(self, frame: Frame, reply: Callable[[list, bool], None]) -> None:
        self.asked += 1
        self.on_start()
        if frame.header.operation == OP_SEND:
            self.sends.append((frame.header, bytes(frame.body)))
            reply([encode_reply_header(frame.header, 0, status=3)], False)
            return
        body = [frame.body] * self.repeated
        reply([encode_reply_header(frame.header, sum(map(len, body))), *body], False)

    def find_route(self, key: bytes) -> Route | None:
        self.lookups += 1
        known = SendRequest(1, "t", 2, (2).to_bytes(4, "little"), 1, b"").encode()[4:-4]
        return Route(CallbackTarget(self.server.append), 77, 1, 4, 2) if key == known else None

    def find_poll_route(self, key: bytes) -> None:
        return None

    def note_local(self) -> None:
        self.local += 1

    def note_crossings(self, shard: int, count: int) -> None:
        raise AssertionError("all routes stay here")

    def on_change(self) -> None:
        if self.wire.is_broken or (self.wire.close_reason and self.wire.is_idle):
            self.end()

    def end(self) -> None:
        if self.wire.fd >= 0:
            self.reason = self.wire.close_reason
            self.server.plane.remove(self.wire)
            self.wire.close("ended")
            self.socket.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(whole())


async def take(client: socket.socket, size: int) -> bytes:
    loop, taken = asyncio.get_running_loop(), b""
    while len(taken) < size:
        piece = await loop.sock_recv(client, size - len(taken))
        assert piece, f"the connection ended after {len(taken)} of {size} bytes"
        taken += piece
    return taken


async def take_reply(client: socket.socket) -> tuple[ReplyHeader, bytes]:
    header = ReplyHeader.decode(await take(client, HEADER_BYTES))
    return header, await take(client, header.size - HEADER_BYTES)


def test_sends_by_a_route_are_stored_and_confirmed_in_order() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        await asyncio.get_running_loop().sock_sendall(client, b"".join(send_frame(n, b"m%d" % n) for n in range(100)))
        for number in range(100):
            header, body = await take_reply(client)
            (confirmed,) = SendReply.decode(memoryview(body)).confirmations
            assert (header.request, header.status, header.operation, header.client) == (number, 0, OP_SEND, CLIENT)
            place = (confirmed.stream_id, confirmed.topic_id, confirmed.partition_id, confirmed.base_offset)
            assert place == (1, 4, 2, number)
        assert server.appended == [bytes(make_batch([b"m%d" % n])) for n in range(100)]
        assert (owner.lookups, owner.local, owner.asked) == (1, 1, 0)
        assert server.plane.in_flight_bytes == 0 and owner.wire.is_idle
        server.close()
        client.close()
        assert server.arena.used_bytes == 0

    run(work)


def test_what_came_before_a_request_for_python_is_stored_when_python_gets_it() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        stored: list[int] = []
        owner.on_start = lambda: stored.append(len(server.appended))
        routed = [False, True, True, False, True, False, False]  # three of them may be on their way at a time
        client.send(b"".join(send_frame(n, partition=2 if known else 5) for n, known in enumerate(routed)))
        for number in range(len(routed)):
            assert (await take_reply(client))[0].request == number
        assert stored == [0, 2, 3, 3] and len(server.appended) == 3
        server.close()
        client.close()

    run(work)


def test_what_came_before_a_bug_that_closes_its_connection_is_stored() -> None:
    async def work() -> None:
        server = Server()
        (client, broken), (other, _) = server.connect(), server.connect()
        find = broken.find_route

        def find_route(key: bytes) -> Route | None:
            if broken.lookups:
                raise ZeroDivisionError
            return find(key)

        broken.find_route = find_route  # type: ignore[method-assign]
        client.send(send_frame(0) + send_frame(1, partition=5))
        other.send(send_frame(2))
        assert (await take_reply(other))[0].request == 2
        assert broken.reason == "a request failed inside the server" and len(server.appended) == 2
        server.close()
        client.close()
        other.close()
        assert server.arena.used_bytes == 0

    run(work)


def test_what_one_read_leaves_in_a_socket_is_read_without_more_coming() -> None:
    async def work() -> None:
        server = Server()
        client, _ = server.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        payload = bytes(1024 - len(send_frame(0, b"")))
        frames = b"".join(send_frame(number, payload) for number in range(320))  # the first read ends with a frame
        assert client.send(frames) == 320 * 1024 > ONE_READ  # before the plane looks for the first time
        for number in range(320):
            assert (await take_reply(client))[0].request == number
        assert len(server.appended) == 320
        server.close()
        client.close()

    run(work)


@pytest.mark.parametrize("is_gone", [False, True])
def test_an_end_of_the_stream_that_came_with_the_last_bytes_is_seen(is_gone: bool) -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        client.send(send_frame(0))
        client.close() if is_gone else client.shutdown(socket.SHUT_WR)
        while owner.wire.fd >= 0:
            await asyncio.sleep(0.001)
        assert len(server.appended) == 1 and owner.reason == "the peer closed"
        server.close()
        client.close()

    run(work)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(305, Code.INVALID_MESSAGE_CHECKSUM), (40, Code.INVALID_BATCH_CHECKSUM), (32, Code.INVALID_COMMAND)],
)
def test_a_spoiled_batch_is_refused_and_nothing_of_it_is_kept(spoil: int, code: Code) -> None:
    async def work() -> None:
        server = Server()
        client, _ = server.connect()
        frames = send_frame(0) + send_frame(2, spoil=spoil) + send_frame(4)
        await asyncio.get_running_loop().sock_sendall(client, frames)
        assert [(await take_reply(client))[0].status for _ in range(3)] == [0, code, 0]
        assert len(server.appended) == 2
        server.close()
        client.close()
        assert server.arena.used_bytes == 0

    run(work)


def test_a_request_checksum_that_does_not_hold_goes_the_long_way() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        spoiled = bytearray(send_frame(1))
        spoiled[150] ^= 1
        await asyncio.get_running_loop().sock_sendall(client, bytes(spoiled))
        assert (await take_reply(client))[0].status == 3
        assert owner.asked == 1 and server.appended == []
        server.close()
        client.close()

    run(work)


def test_a_new_revision_forgets_all_routes() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        loop = asyncio.get_running_loop()
        for number in range(3):
            await loop.sock_sendall(client, send_frame(number))
            await take_reply(client)
            server.plane.revision += number  # the second request finds the same one, the third another
        assert owner.lookups == 2
        await loop.sock_sendall(client, send_frame(9, partition=5))  # no route: remembered too
        await loop.sock_sendall(client, send_frame(10, partition=5))
        await take_reply(client)
        await take_reply(client)
        assert (owner.lookups, owner.asked) == (3, 2)
        server.close()
        client.close()

    run(work)


def test_refusals_of_the_partition_and_of_the_arena_are_answered() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        loop = asyncio.get_running_loop()
        server.refusal = BackpressureError("not now")
        await loop.sock_sendall(client, send_frame(0))
        assert (await take_reply(client))[0].status == Code.TRANSIENT_NOT_ACCEPTED
        server.refusal = None
        blocks = [server.arena.allocate(1 << 20) for _ in range(3)]
        blocks += [server.arena.allocate(1 << 12) for _ in range(server.arena.statistics().largest_free_bytes >> 12)]
        while server.arena.statistics().largest_free_bytes:
            blocks.append(server.arena.allocate(256))
        await loop.sock_sendall(client, send_frame(2))
        await take_reply(client)
        assert owner.asked == 1  # Python makes room or refuses
        server.close()
        client.close()

    run(work)


@pytest.mark.parametrize("between", range(6))
def test_a_send_on_its_way_keeps_its_bytes_while_other_sockets_are_read(between: int) -> None:
    """Between two sends in one drain come pieces of frames, which are read to the same memory and start nothing."""

    async def work() -> None:
        server = Server()
        clients = [server.connect()[0] for _ in range(6 * (between + 1))]
        frames = [send_frame(1, b"%d" % number * 300) for number in range(len(clients))]
        for number, (client, frame) in enumerate(zip(clients, frames, strict=True)):
            client.send(frame[: 100 + 300 * (number % 2)] if number % (between + 1) else frame)
        while len(server.appended) < 6:
            await asyncio.sleep(0)
        for number, (client, frame) in enumerate(zip(clients, frames, strict=True)):
            if number % (between + 1):
                client.send(frame[100 + 300 * (number % 2) :])
            assert (await take_reply(client))[0].status == 0
            client.close()
        stored = sorted(payloads_of(b"".join(server.appended)))
        assert stored == sorted(b"%d" % number * 300 for number in range(len(clients)))
        server.close()

    run(work)


def test_sends_that_find_no_room_go_to_python_whole_and_in_their_turn() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        held = []
        while server.arena.statistics().largest_free_bytes:
            held.append(server.arena.allocate(server.arena.statistics().largest_free_bytes))
        frames = [send_frame(number, bytes([number]) * 900) for number in range(1, 9)]
        await asyncio.get_running_loop().sock_sendall(client, b"".join(frames))
        for number in range(1, 9):
            header, _ = await take_reply(client)
            assert (header.status, header.request) == (3, number)
        assert [one[0].request for one in owner.sends] == list(range(1, 9))
        assert [encoded for _, encoded in owner.sends] == [frame[HEADER_BYTES:] for frame in frames]
        assert server.appended == []
        client.close()
        server.close()

    run(work)


def test_a_client_that_does_not_read_is_read_no_more_and_gets_all_in_the_end() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        owner.repeated = 50
        body = bytes(range(256)) * 80
        frame = encode_request(OP_READ, 1, body, client=CLIENT, request=1, session=1)
        sent = 0
        loop = asyncio.get_running_loop()
        while True:
            try:
                sent += client.send((frame * 40)[sent % len(frame) :])
            except BlockingIOError:
                if owner.wire.unsent_bytes > 1 << 20:
                    break
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        asked = owner.asked
        assert owner.wire.unsent_bytes < (1 << 20) + 20 * 50 * len(frame)  # a read's worth above the mark at most
        reading = [asyncio.ensure_future(take_reply(client)) for _ in range(1)]
        replies = [await reading[0]]
        replies += [await take_reply(client) for _ in range(asked - 1)]
        assert all(reply[1] == body * 50 for reply in replies)
        await loop.sock_sendall(client, frame[sent % len(frame) :] if sent % len(frame) else b"")
        server.close()
        client.close()

    run(work)


def test_a_drain_ends_by_its_bytes_and_the_next_one_goes_on_behind_them() -> None:
    """A thousand connections with large requests once kept the loop for the better part of a second."""

    async def work() -> None:
        server = Server(in_flight_limit=1 << 30)
        asyncio.get_running_loop().remove_reader(server.plane.fileno())
        frame = encode_request(OP_READ, 0, bytes(100 << 10), client=CLIENT, request=1, session=1)
        clients = []
        for _ in range(230):
            client, owner = server.connect()
            owner.repeated = 0
            assert client.send(frame) == len(frame)
            clients.append(client)
        asked = []
        for _ in range(2):
            server.plane.drain()
            asked.append(sum(owner.asked for owner in server.owners))
        assert asked == [192, 230]  # 64 at a time, until 16 MiB have come
        server.close()
        for client in clients:
            client.close()

    run(work)


def test_with_its_bytes_in_flight_at_the_limit_a_connection_waits_and_others_go_on() -> None:
    async def work() -> None:
        frame = len(send_frame(0))
        server = Server(connection_limit=2 * frame)
        server.held = []
        busy, owner = server.connect()
        other, _ = server.connect()
        loop = asyncio.get_running_loop()
        for number in range(4):
            await loop.sock_sendall(busy, send_frame(number))
            await asyncio.sleep(0.01)
        assert len(server.appended) == 2 and not owner.wire.wants_more
        await loop.sock_sendall(other, encode_request(OP_READ, 1, b"x", client=CLIENT, request=1, session=1))
        assert (await take_reply(other))[1] == b"x"
        held, server.held = server.held, None
        for one in held:
            one()
        for number in range(4):
            assert (await take_reply(busy))[0].request == number
        server.close()
        busy.close()
        other.close()

    run(work)


def test_with_the_shards_bytes_in_flight_at_the_limit_all_wait_but_those_with_none() -> None:
    async def work() -> None:
        frame = len(send_frame(0))
        server = Server(in_flight_limit=2 * frame)
        server.held = []
        clients = [server.connect()[0] for _ in range(3)]
        loop = asyncio.get_running_loop()
        for client in clients:
            await loop.sock_sendall(client, send_frame(0))
            await asyncio.sleep(0.01)
        assert len(server.appended) == 3  # the third had nothing in flight
        for client in clients:
            await loop.sock_sendall(client, send_frame(2))
        await asyncio.sleep(0.02)
        assert len(server.appended) == 3
        held, server.held = server.held, None
        for one in held:
            one()
        for client in clients:
            assert [(await take_reply(client))[0].request for _ in range(2)] == [0, 2]
        server.close()
        for client in clients:
            client.close()

    run(work)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_frees_all_whatever_it_was_waiting_for(reset: bool) -> None:
    async def work() -> None:
        server = Server()
        server.held = []
        client, owner = server.connect()
        loop = asyncio.get_running_loop()
        half = encode_request(OP_READ, 1, bytes(50_000), client=CLIENT, request=9, session=1)[:30_000]
        await loop.sock_sendall(client, send_frame(0) + send_frame(2) + half)
        while len(server.appended) < 2:
            await asyncio.sleep(0)
        if reset:
            client.shutdown(socket.SHUT_RDWR)
        client.close()
        while owner.wire.fd >= 0:
            await asyncio.sleep(0)
        assert server.plane.in_flight_bytes == 0 and owner.reason == "the peer closed"
        held, server.held = server.held, None
        for one in held:
            one()  # late: nobody hears of it
        held.clear()
        server.close()
        assert server.arena.used_bytes == 0

    run(work)


def test_a_bug_in_a_handler_closes_its_connection_only() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        other, _ = server.connect()

        def start(frame: Frame, reply: Callable) -> None:
            raise ZeroDivisionError

        owner.start = start  # type: ignore[method-assign]
        loop = asyncio.get_running_loop()
        request = encode_request(OP_READ, 1, b"x", client=CLIENT, request=1, session=1)
        await loop.sock_sendall(client, request)
        assert await loop.sock_recv(client, 1) == b""
        await loop.sock_sendall(other, request)
        assert (await take_reply(other))[1] == b"x"
        server.close()
        client.close()
        other.close()

    run(work)


# Large batches, which arrive where they stay

LARGE = b"y" * 70_000


def large_frames(count: int, first: int = 0) -> list[bytes]:
    """The first one of a connection goes the other way: its route is not known yet."""
    return [send_frame(number, LARGE + b"%d" % number) for number in range(first, first + count)]


PIECES = st.lists(st.one_of(st.integers(1, 600), st.integers(1, 90_000)), min_size=1, max_size=12)


@given(PIECES, st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4)), st.sets(st.integers(0, 4)))
def test_large_batches_are_stored_alike_however_they_are_cut(
    pieces: list[int], spoiled: set[int], unchecked: set[int], followed: set[int]
) -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        stream, expected = b"", []
        for number, frame in enumerate(large_frames(5)):
            batch = bytes(make_batch([LARGE + b"%d" % number]))
            if number in spoiled:
                frame = frame[:-1] + b"!"
            elif number in unchecked and number % 2:
                frame = frame[:150] + bytes([frame[150] ^ 1]) + frame[151:]
            else:
                expected.append(batch)
            stream += frame
            if number in followed:
                stream += encode_request(OP_READ, 0, b"between", client=CLIENT, request=90, session=1)
        cuts = itertools.cycle(pieces)
        place = 0
        while place < len(stream):
            end = place + next(cuts)
            owner.wire.feed(stream[place:end])
            place = end
        assert server.appended == expected
        assert owner.wire.is_idle == (owner.wire.unsent_bytes == 0) and owner.wire.unread_bytes == 0
        assert (server.plane.in_flight_bytes, server.plane.arriving_bytes) == (0, 0)
        server.close()
        client.close()
        assert server.arena.used_bytes == 0

    run(work)


def test_large_batches_arrive_in_blocks_through_a_socket() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        frames = large_frames(6)
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(client, b"".join(frames)))
        for number in range(6):
            assert (await take_reply(client))[0].request == number
        await sending
        half = frames[0][:50_000]
        await asyncio.get_running_loop().sock_sendall(client, half)
        while owner.wire.unread_bytes < len(half):
            await asyncio.sleep(0)
        assert server.plane.arriving_bytes == len(make_batch([LARGE + b"0"])) <= server.arena.used_bytes
        assert owner.wire.take_unread() == half
        assert server.plane.arriving_bytes == server.arena.used_bytes == 0
        server.close()
        client.close()

    run(work)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_amid_a_large_batch_gives_its_block_back(reset: bool) -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, send_frame(0))
        await take_reply(client)
        await loop.sock_sendall(client, large_frames(1)[0][:50_000])
        while not server.plane.arriving_bytes:
            await asyncio.sleep(0)
        if reset:
            client.shutdown(socket.SHUT_RDWR)
        client.close()
        while owner.wire.fd >= 0:
            await asyncio.sleep(0)
        assert server.plane.arriving_bytes == server.arena.used_bytes == 0
        server.close()

    run(work)


def test_a_header_alone_takes_no_memory_of_the_arena() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        owner.wire.feed(large_frames(1)[0][:1000])  # no route is known
        owner.wire.take_unread()
        owner.wire.feed(send_frame(0))
        owner.wire.take_output()
        owner.wire.feed(send_frame(1, LARGE, partition=5)[:1000])  # not that one
        owner.wire.take_unread()
        owner.wire.feed(large_frames(1)[0][:257])  # not so far that one could know
        assert server.plane.arriving_bytes == server.arena.used_bytes == 0
        server.close()
        client.close()

    run(work)


def test_without_room_for_its_block_a_large_batch_goes_the_other_way() -> None:
    async def work() -> None:
        frame = large_frames(1)[0]
        server = Server(in_flight_limit=len(frame) + 1000)
        connections = [server.connect() for _ in range(2)]
        for _, owner in connections:
            owner.wire.feed(send_frame(0))
            owner.wire.take_output()
            owner.wire.feed(frame[:1000])
        assert server.plane.arriving_bytes < len(frame)  # one block for both
        for _, owner in connections:
            owner.wire.feed(frame[1000:])
        assert server.appended[2:] == [bytes(make_batch([LARGE + b"0"]))] * 2
        held = [server.arena.allocate(1 << 20) for _ in range(3)]
        while server.arena.statistics().largest_free_bytes > 64 << 10:
            held.append(server.arena.allocate(64 << 10))
        _, owner = connections[0]
        owner.wire.feed(frame[:1000])
        assert server.plane.arriving_bytes == 0
        held.clear()
        owner.wire.feed(frame[1000:])
        assert len(server.appended) == 5 and owner.asked == 0
        server.close()
        for client, _ in connections:
            client.close()

    run(work)


def test_a_route_that_is_gone_when_the_batch_is_whole_is_looked_for_anew() -> None:
    async def work() -> None:
        server = Server()
        client, owner = server.connect()
        owner.wire.feed(send_frame(0))
        owner.wire.feed(large_frames(1)[0][:1000])
        server.plane.revision += 1
        owner.wire.feed(large_frames(1)[0][1000:])
        assert owner.lookups == 2 and len(server.appended) == 2
        server.close()
        client.close()

    run(work)
