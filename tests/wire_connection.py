"""Our client, with every command of the table, and frames of one's own making."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shardserver.client.connection import Connection, RequestRefusedError
from shardserver.errors import ProtocolError
from shardserver.protocol import primitives as wire
from shardserver.protocol.addresses import CONSUMER_SINGLE, PartitionAddress
from shardserver.protocol.batch import BATCH_HEADER_BYTES
from shardserver.protocol.body import Body, Empty
from shardserver.protocol.frame import HEADER_BYTES, Eviction, ReplyHeader, decode_answer, encode_request, split_result
from shardserver.protocol.messages import KIND_PARTITION, NEXT, PollRequest, SendRequest
from shardserver.protocol.table import OP_TRUNCATE_PARTITION, TABLE, Command
from tests.batches import make_batch, payloads_of
from tests.server_process import PASSWORD

CONSUMER = 7


@dataclass(frozen=True)
class Answer:
    """header.request: the number that the request had."""

    header: ReplyHeader
    body: memoryview


class WireConnection(Connection):
    """Logged in as root. Every request has a number of its own, growing by one."""

    def __init__(self, address: str, *, timeout_s: float = 40.0) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(host, int(port), timeout_s=timeout_s)
        self.login("iggy", PASSWORD)

    @property
    def session(self) -> int:
        return self._session

    # One request

    def ask(self, command: Command, request: Body | None = None) -> Any:
        """The reply's value; None where an empty payload says that there is none. Raises RequestRefusedError."""
        row = TABLE[command]
        number = self.write(command, request)
        answer = self.read_answer()
        if answer.header.request != number:
            raise ProtocolError(f"a reply to request {answer.header.request}; due: {number}")
        if answer.header.status:
            raise RequestRefusedError(answer.header.status, command.name)
        body = answer.body
        if row.has_result_section or answer.header.operation == OP_TRUNCATE_PARTITION:
            errors, body = split_result(body)
            if errors:
                raise RequestRefusedError(errors[0][1], command.name)
        if row.may_be_missing and not len(body):
            return None
        return row.reply.decode(body)

    # Frames

    def frame(self, command: Command, request: Body | None = None) -> tuple[int, bytes]:
        """The number of a request and its whole frame, not sent."""
        row, number = TABLE[command], self._next_request
        self._next_request += 1
        body = (request or Empty()).encode()
        code = int(command) if row.operation == 2 else 0
        frame = encode_request(row.operation, code, body, client=self._client, request=number, session=self._session)
        return number, frame

    def write(self, command: Command, request: Body | None = None) -> int:
        number, frame = self.frame(command, request)
        self.write_bytes(frame)
        return number

    def write_bytes(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read_answer(self) -> Answer:
        header = decode_answer(self._read(HEADER_BYTES))
        if isinstance(header, Eviction):
            raise RequestRefusedError(255 + header.reason, "evicted")
        return Answer(header, self._read(header.size - HEADER_BYTES))

    # Data

    @property
    def shard(self) -> int:
        """The one that first held this connection; with hand-over off, the one that holds it."""
        return int(self.ask(Command.GET_ME).info.client_id) & 0xFF

    def send_payloads(self, topic: str, partition: int, *payloads: bytes, stream: str = "s") -> int:
        return self.send(stream, topic, partition, bytes(make_batch(list(payloads))), len(payloads))

    def payloads(
        self,
        topic: str,
        partition: int,
        strategy: int = 1,
        value: int = 0,
        count: int = 1000,
        *,
        auto_commit: bool = False,
        stream: str = "s",
    ) -> list[bytes]:
        """Of the messages that one poll gives; whole batches are cut to what was asked for."""
        address = PartitionAddress(CONSUMER_SINGLE, CONSUMER, stream, topic, partition)
        reply = self.ask(Command.POLL_MESSAGES, PollRequest(address, strategy, value, count, auto_commit))
        return payloads_of(bytes(reply.batches))

    def read_all(self, topic: str, partition: int, *, stream: str = "s") -> list[bytes]:
        return [payload for _, payload in self.messages(topic, partition, stream=stream)]

    def messages(self, topic: str, partition: int, *, stream: str = "s") -> Iterator[tuple[int, bytes]]:
        """(offset, payload) of every message. Raises AssertionError: an offset is missing or comes twice."""
        due = 0
        while True:
            reply = self.poll(stream, topic, partition, due, 1000)
            if reply.count == 0:
                return
            for base, payloads in batches_of(reply.batches):
                assert base <= due, f"{topic}/{partition}: offset {base} where {due} was due"
                for offset, payload in enumerate(payloads, base):
                    if offset == due:
                        yield offset, payload
                        due += 1


def batches_of(raw: memoryview) -> Iterator[tuple[int, list[bytes]]]:
    """(base offset, payloads) of stored batches back to back (messages.md 1)."""
    position = 0
    while position < len(raw):
        base, length = struct.unpack_from("<Q", raw, position + 8)[0], struct.unpack_from("<Q", raw, position + 32)[0]
        assert length >= BATCH_HEADER_BYTES
        yield base, payloads_of(bytes(raw[position : position + length]))
        position += length


def send_request(topic: str, partition: int, *payloads: bytes, stream: str = "s") -> SendRequest:
    batch = bytes(make_batch(list(payloads)))
    return SendRequest(stream, topic, KIND_PARTITION, wire.u32(partition), len(payloads), batch)


def poll_request(topic: str, partition: int, offset: int, count: int, *, stream: str = "s") -> PollRequest:
    address = PartitionAddress(CONSUMER_SINGLE, CONSUMER, stream, topic, partition)
    return PollRequest(address, 1, offset, count, False)


def next_request(topic: str, partition: int, count: int, *, stream: str = "s") -> PollRequest:
    """The next for the consumer, committed by the poll."""
    address = PartitionAddress(CONSUMER_SINGLE, CONSUMER, stream, topic, partition)
    return PollRequest(address, NEXT, 0, count, True)
