"""What a test of the SDK needs: a server behind a tap, clients, a stream of its own, and a look at codes."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apache_iggy import Consumer, IggyClient, PollingStrategy, ReceiveMessage, SendMessage

from shardserver.protocol.body import Body, Empty
from shardserver.protocol.table import TABLE, Command
from tests.conformance.tap import EVICTED, HOST, Exchange, Tap
from tests.server_process import PASSWORD
from tests.sharded_server import ShardedServer

# (shards, net.handover_requests); 4 in a row are few, so that connections of short tests move, too.
QUICK = ((2, 4),)
FULL = ((1, 4), (2, 0), *QUICK, (4, 0), (4, 4))
LAYOUTS = FULL if os.environ.get("CONFORMANCE") == "full" else QUICK
_NUMBERS = itertools.count()


def name_layout(layout: tuple[int, int]) -> str:
    shards, handover = layout
    return f"{shards} shard{'s' * (shards > 1)}{', hand-over' * (shards > 1 and handover > 0)}"


class TappedServer:
    """A server of `cores` shards; clients reach it at `tap.address`, over starts on the same port."""

    def __init__(self, directory: Path, cores: int, handover_requests: int, more: str = "") -> None:
        """handover_requests: so many in a row for another shard, and a connection moves there; 0: never.

        more: sections of the configuration.
        """
        self.cores, self.handover_requests = cores, handover_requests
        config = f'[server]\nadvertised_address = "{HOST}"\n[net]\nhandover_requests = {handover_requests}\n{more}'
        self.server = ShardedServer(directory, cores=cores, config=config).serve()
        self.tap = Tap(lambda: self.server.address)

    def end(self, *, killed: bool) -> None:
        self.tap.refuse()
        if killed:
            self.server.kill()
        else:
            assert self.server.stop() == 0

    def start_again(self) -> None:
        """On the same port; returns when it serves. Raises AssertionError."""
        self.server.start(port=self.server.address.rpartition(":")[2])
        self.server.wait_ready()
        self.tap.listen()

    def close(self) -> None:
        self.tap.close()
        self.server.kill()
        shutil.rmtree(self.server.data)  # 160 MB each


class Site:
    """One test's view of a server. stream: a name that no other test has."""

    def __init__(self, tapped: TappedServer) -> None:
        self.tapped, self.tap = tapped, tapped.tap
        self.address = tapped.tap.address
        self.stream = self.new_name("s")

    def new_name(self, start: str) -> str:
        return f"{start}-{next(_NUMBERS)}"

    async def connect(self, username: str = "iggy", password: str = PASSWORD, *, retries: int = 0) -> IggyClient:
        """Logged in. retries: of a lost connection; with 0 its error is seen."""
        options = f"reconnection_retries={retries}&reconnection_interval=100ms&reestablish_after=1ms"
        client = IggyClient.from_connection_string(f"iggy://{username}:{password}@{self.address}?{options}")
        await client.connect()
        return client

    async def connect_anonymously(self) -> IggyClient:
        client = IggyClient(self.address)
        await client.connect()
        return client

    async def topic(self, partitions: int = 1, name: str = "t", **options: Any) -> IggyClient:
        """A client, and a topic in the test's stream."""
        client = await self.connect()
        await client.create_stream(self.stream)
        await client.create_topic(self.stream, name, partitions_count=partitions, **options)
        return client

    async def send(self, client: IggyClient, *payloads: str, partition: int = 0, topic: str = "t") -> int:
        """Gives the base offset."""
        messages = [SendMessage(payload) for payload in payloads]
        response = await client.send_messages(self.stream, topic, partition, messages)
        return int(response.confirmations[0].base_offset)

    async def poll(
        self, client: IggyClient, strategy: Any = None, count: int = 100, *, consumer: Any = None, **more: Any
    ) -> list[ReceiveMessage]:
        """From the first message on, unless told otherwise."""
        wanted = {"auto_commit": False, "partition_id": 0} | more
        return await client.poll_messages(
            self.stream, "t", consumer=consumer or Consumer.Single(1), count=count,
            polling_strategy=strategy or PollingStrategy.First(), **wanted,
        )  # fmt: skip

    async def ask(self, client: IggyClient, command: Command, request: Body | None = None) -> Any:
        """A command that the SDK has no method for, with our codecs; None for an empty answer that says so."""
        row = TABLE[command]
        raw = bytes(await client.send_binary_request(int(command), (request or Empty()).encode()))
        return None if row.may_be_missing and not raw else row.reply.decode(memoryview(raw))

    # Codes

    @contextmanager
    def refuses(self, code: int, *, eviction: int | None = None) -> Iterator[None]:
        """The block raises, and the server has answered this code, or evicted for this reason."""
        seen = len(self.tap.log)
        with pytest.raises(RuntimeError):
            yield
        wanted: int | str = code if eviction is None else f"{EVICTED} {eviction}"
        assert wanted in [one.code for one in self.tap.log[seen:]], f"{wanted} is not in {self.tap.log[seen:]}"

    @contextmanager
    def client_refuses(self) -> Iterator[None]:
        """The block raises, and the SDK has refused by itself: nothing but its own pings and reads were answered."""
        seen = len(self.tap.log)
        with pytest.raises((RuntimeError, ValueError)):
            yield
        assert all(one.code == 0 for one in self.tap.log[seen:])

    @contextmanager
    def client_or_server_refuses(self) -> Iterator[None]:
        """The block raises; what the server answered, if it was asked, was no success."""
        seen = len(self.tap.log)
        with pytest.raises(RuntimeError):
            yield
        assert all(one.code or one.command == Command.PING.name for one in self.tap.log[seen:])

    def commands(self) -> list[str]:
        """Names of all commands so far, in order."""
        return [one.command for one in self.tap.log]

    def exchanges(self, command: Command) -> list[Exchange]:
        return [one for one in self.tap.log if one.command == command.name]


def payloads(messages: list[ReceiveMessage]) -> list[str]:
    return [bytes(message.payload()).decode() for message in messages]
