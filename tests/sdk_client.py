"""The unmodified SDK, connected without reconnecting by itself: an error of a connection is seen, not hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator

from apache_iggy import Consumer, IggyClient, PollingStrategy

from shardserver.protocol.table import Command
from tests.server_process import PASSWORD

BATCH = 500


async def connect(address: str) -> IggyClient:
    """Logged in as root."""
    client = IggyClient.from_connection_string(f"iggy://iggy:{PASSWORD}@{address}?reconnection_retries=0")
    await client.connect()
    return client


async def shard_of(client: IggyClient) -> int:
    """The one that first held the connection (get_me: the low 8 bits of the client id)."""
    reply = bytes(await client.send_binary_request(int(Command.GET_ME), b""))
    return int.from_bytes(reply[:4], "little") & 0xFF


async def payloads(client: IggyClient, stream: str, topic: str, partition: int) -> AsyncIterator[bytes]:
    """Of all messages of a partition. Raises AssertionError: an offset is missing or comes twice."""
    due = 0
    while True:
        messages = await client.poll_messages(
            stream, topic, consumer=Consumer.Single(1), polling_strategy=PollingStrategy.Offset(due), count=BATCH,
            auto_commit=False, partition_id=partition,
        )  # fmt: skip
        if not messages:
            return
        for message in messages:
            assert message.offset() == due, f"partition {partition}: offset {message.offset()} where {due} was due"
            due += 1
            yield bytes(message.payload())
