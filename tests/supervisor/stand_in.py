"""A shard that knows its supervisor and its peers, and has no storage: the supervisor's promises as a shard sees them.

Greets every peer on its ring and through its inbox, accepts connections with its number, and recovers as long as the
file DATA/hold-N is there.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from pathlib import Path
from typing import Any

from shardserver.memory.board import Board
from shardserver.memory.shared import map_memory, map_read_only
from shardserver.router.ring import Consumer, Producer
from shardserver.supervisor.descriptors import OwnDescriptors, PeerDescriptors
from shardserver.supervisor.shard_process import ShardArguments, ShardLink, run_process


def run_stand_in(arguments: ShardArguments) -> None:
    run_process(arguments, run)


async def run(arguments: ShardArguments, link: ShardLink) -> int:
    return await StandIn(arguments, link).run()


class StandIn:
    def __init__(self, arguments: ShardArguments, link: ShardLink) -> None:
        self._arguments, self._link, self._number = arguments, link, arguments.shard
        self._stop, self._may_serve = asyncio.Event(), asyncio.Event()
        self._consumers: dict[int, Consumer] = {}
        self._boards: dict[int, Board] = {}
        self._heard: dict[int, list[int]] = {}
        self._inbox: socket.socket | None = None
        self._greeted_by: list[int] = []
        self._gone: list[int] = []

    async def run(self) -> int:
        link = self._link
        link.on_own, link.on_peer, link.on_peer_gone = self._on_own, self._on_peer, self._gone_peer
        link.on_stop, link.on_serve, link.on_query = lambda: os._exit(0), self._may_serve.set, self._on_query
        link.start()
        while (Path(self._arguments.data_directory) / f"hold-{self._number}").exists():
            await asyncio.sleep(0.02)
        link.send_recovered("none", degraded=False)
        await self._may_serve.wait()
        server = None
        if self._arguments.listener is not None:
            server = await asyncio.start_server(self._accept, sock=self._arguments.listener)
        link.on_stop = self._stop.set
        link.send_ready()
        await self._stop.wait()
        if server is not None:
            server.close()
        return 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d\n" % self._number)
        writer.close()

    def _on_own(self, own: OwnDescriptors) -> None:
        self._board = Board(_take(own.arena, map_memory))
        self._doorbell = own.doorbell
        self._inbox = socket.socket(fileno=own.inbox)
        loop = asyncio.get_running_loop()
        loop.add_reader(own.doorbell, self._on_doorbell)
        loop.add_reader(own.inbox, self._on_inbox)

    def _on_peer(self, number: int, is_serving: bool, peer: PeerDescriptors) -> None:
        self._consumers[number] = Consumer(memoryview(_take(peer.ring_from, map_memory)))
        self._boards[number] = Board(_take(peer.arena, map_read_only))
        producer = Producer(memoryview(_take(peer.ring_to, map_memory)))
        assert producer.try_push(1, 0, 0, self._number, 0, b"hello", True)
        producer.publish()
        with socket.socket(fileno=peer.inbox) as inbox:
            inbox.send(bytes([self._number]))
        self._board.handed[number] += 1
        os.eventfd_write(peer.doorbell, 1)
        os.close(peer.doorbell)
        self._listen()  # it may have rung before this line was read

    def _gone_peer(self, number: int) -> None:
        self._gone.append(number)
        del self._consumers[number], self._boards[number]

    def _on_doorbell(self) -> None:
        os.eventfd_read(self._doorbell)
        self._listen()

    def _listen(self) -> None:
        for number, consumer in self._consumers.items():
            self._heard.setdefault(number, []).extend(slot[3] for slot in consumer.take(16))

    def _on_inbox(self) -> None:
        assert self._inbox is not None
        sender = self._inbox.recv(16)[0]
        self._greeted_by.append(sender)
        self._board.received[sender] += 1

    def _on_query(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "stats":
            return {
                "shard": self._number,
                "heard": {str(number): found for number, found in sorted(self._heard.items())},
                "greeted_by": sorted(self._greeted_by),
                "gone": self._gone,
                "peers": sorted(self._consumers),
                "beating": sorted(number for number, board in self._boards.items() if board.beats),
                "shards": self._arguments.shards,
                "partition_limit": self._arguments.partition_limit,
                "is_restart": self._arguments.is_restart,
                "has_listener": self._arguments.listener is not None,
                "port": self._arguments.port,
            }
        return self._later(command, arguments)

    async def _later(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if command == "rebalance":
            raise ValueError("no")
        return {"command": command, "arguments": arguments}


def _take(descriptor: int, mapped: Any) -> mmap.mmap:
    found: mmap.mmap = mapped(descriptor)
    os.close(descriptor)
    return found
