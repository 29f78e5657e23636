"""The shard's side of the link, on a loop of its own: descriptors, the beat, queries that take their time."""

import asyncio
import mmap
import os
import socket
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from shardserver.config import Config, LogConfig, PlacementConfig, PlacementRule, ServerConfig
from shardserver.memory.board import Board
from shardserver.memory.shared import make_memory
from shardserver.supervisor.descriptors import OwnDescriptors, PeerDescriptors, close_all, copies
from shardserver.supervisor.lines import LineSocket
from shardserver.supervisor.messages import (
    Answer,
    FromShard,
    NewConfig,
    Own,
    Peer,
    PeerGone,
    Query,
    Recovered,
    Recovering,
    Serve,
)
from shardserver.supervisor.shard_process import ShardLink


class World:
    """A link and the supervisor's end of it."""

    def __init__(self, **config: Any) -> None:
        ours, theirs = socket.socketpair()
        self.supervisor = LineSocket(ours, 1 << 20)
        self.link = ShardLink(theirs, 3, 1, ServerConfig(**config))
        self.arena = make_memory("arena", 8192)

    async def receive(self) -> Any:
        """The shard's next message."""
        for _ in range(1000):
            line = self.supervisor.take()
            if line is not None:
                return msgspec.json.decode(line, type=FromShard)
            await asyncio.sleep(0.001)
            assert self.supervisor.receive()
        raise AssertionError("no message")

    async def ask(self, number: int, command: str, **arguments: Any) -> Any:
        self.supervisor.send(Query(number, command, arguments))
        return await self.receive()

    def five(self) -> list[int]:
        return copies([self.arena] * 5)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.link._lines.fileno())
        self.supervisor.close()
        self.link._lines.close()
        os.close(self.arena)


def run(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(test)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_nobody_handles_is_closed() -> None:
    async def body() -> None:
        world = World(stall_limit_s=0, recovery_stall_limit_s=0)
        world.link.start()
        assert await world.receive() == Recovering()
        before = open_files()
        world.supervisor.send(Own(), copies([world.arena] * 3))
        world.supervisor.send(Peer(1, True), world.five())
        for message in (PeerGone(1), Serve()):
            world.supervisor.send(message)
        answer = await world.ask(9, "stats")
        assert answer == Answer(9, {"shard": 3, "state": "recovering"})
        assert open_files() == before
        world.close()

    run(body())


def test_peers_and_own_descriptors_reach_their_callbacks_in_order() -> None:
    async def body() -> None:
        world, seen = World(), []

        def on_own(own: OwnDescriptors) -> None:
            seen.append("own")
            close_all(own)

        def on_peer(number: int, is_serving: bool, peer: PeerDescriptors) -> None:
            seen.append((number, is_serving, os.fstat(peer.inbox).st_size))
            close_all(peer)

        world.link.on_own, world.link.on_peer = on_own, on_peer
        world.link.on_peer_gone, world.link.on_serve = seen.append, lambda: seen.append("serve")
        world.link.start()
        world.supervisor.send(Own(), copies([world.arena] * 3))
        world.supervisor.send(Peer(0, True), world.five())
        world.supervisor.send(PeerGone(0))
        world.supervisor.send(Peer(0, False), world.five())
        world.supervisor.send(Serve())
        await world.receive()
        await world.ask(1, "stats")
        assert seen == ["own", (0, True, 8192), 0, (0, False, 8192), "serve"]
        world.close()

    run(body())


def test_a_reload_arrives_whole_and_before_the_question_behind_it_even_while_the_shard_recovers() -> None:
    async def body() -> None:
        world, seen = World(), []
        world.link.on_config = seen.append
        world.link.start()
        placement = PlacementConfig(rules=(PlacementRule("s*", "\N{PILE OF POO}", (1,)),))
        sent = NewConfig(Config(placement=placement, log=LogConfig("debug")), 7)
        world.supervisor.send(sent)
        assert await world.receive() == Recovering()
        assert await world.ask(1, "reload") == Answer(1, {"shard": 3, "state": "recovering"})
        assert seen == [sent]
        world.close()

    run(body())


def test_a_running_loop_beats() -> None:
    async def body() -> None:
        world = World(stall_limit_s=1)
        world.link._beat_interval_s = 0.001
        world.link.start()
        world.supervisor.send(Own(), copies([world.arena] * 3))
        with mmap.mmap(world.arena, 4096, prot=mmap.PROT_READ) as memory:
            board = Board(memory)
            while board.beats < 3:
                await asyncio.sleep(0.001)
            board.release()
        world.close()

    run(asyncio.wait_for(body(), 30))


def test_a_query_may_take_its_time_and_others_are_answered_meanwhile() -> None:
    async def body() -> None:
        world, gate = World(), asyncio.Event()

        async def later(arguments: dict[str, Any]) -> dict[str, Any]:
            await gate.wait()
            return arguments

        world.link.on_query = lambda command, arguments: later(arguments) if command == "move" else {"of": command}
        world.link.start()
        await world.receive()
        world.supervisor.send(Query(1, "move", {"to": 2}))
        assert await world.ask(2, "stats") == Answer(2, {"of": "stats"})
        gate.set()
        assert await world.receive() == Answer(1, {"to": 2})
        world.close()

    run(body())


@pytest.mark.parametrize("is_late", [False, True])
def test_a_query_that_fails_is_answered(is_late: bool) -> None:
    async def failing() -> dict[str, Any]:
        raise ValueError("no")

    def failing_now() -> dict[str, Any]:
        raise ValueError("no")

    async def body() -> None:
        world = World()
        world.link.on_query = lambda command, arguments: failing() if is_late else failing_now()
        world.link.start()
        await world.receive()
        assert await world.ask(1, "stats") == Answer(1, {"shard": 3, "error": "the query failed: ValueError('no')"})
        world.close()

    run(body())


def test_progress_and_recovery_are_told() -> None:
    async def body() -> None:
        world = World()
        world.link.start()
        world.link.send_progress(Recovering(3, 8))
        world.link.send_recovered("threads", degraded=True)
        told = [await world.receive() for _ in range(3)]
        assert told == [Recovering(), Recovering(3, 8), Recovered("threads", 1, True)]
        world.close()

    run(body())
