"""A small blocking client: one connection, requests in order, sends pipelined."""

from __future__ import annotations

import secrets
import socket
import struct
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from shardserver.client import requests
from shardserver.client.requests import PollReply
from shardserver.errors import ProtocolError, ShardServerError
from shardserver.protocol import primitives as wire
from shardserver.protocol.addresses import CONSUMER_SINGLE, PartitionAddress, TopicAddress, UserAddress
from shardserver.protocol.frame import (
    COMMAND_EVICTION,
    COMMAND_REPLY,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    encode_request,
)
from shardserver.protocol.offsets import ACK_COMMITTED, StoreOffsetRequest
from shardserver.protocol.options import OptionValue
from shardserver.protocol.permissions import Permissions
from shardserver.protocol.primitives import Identifier, Reader
from shardserver.protocol.system import SnapshotRequest
from shardserver.protocol.users import STATUS_ACTIVE, CreateUserRequest, UpdatePermissionsRequest

OP_LOGIN, OP_READ, OP_LOGOUT, OP_SEND = 1, 2, 3, 160
OP_CREATE_STREAM, OP_DELETE_STREAM, OP_CREATE_TOPIC, OP_CREATE_PARTITIONS = 128, 130, 132, 136
OP_DELETE_TOPIC, OP_PURGE_TOPIC = 134, 135
OP_STORE_OFFSET = 161
OP_CREATE_USER, OP_DELETE_USER, OP_UPDATE_PERMISSIONS = 141, 143, 145
CODE_SNAPSHOT, CODE_POLL, CODE_TOPIC = 11, 100, 300
# Operations with a number of their own, whose reply starts with a result section (README 6.1, framing.md 5).
METADATA_OPERATIONS = range(128, 150)
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_DEPTH = 16

# size 48, command 60, request 200, operation 208, status 216 (framing.md 3).
_REPLY = struct.Struct("<48xI8xB139xQB7xI36x")
assert _REPLY.size == HEADER_BYTES


class RequestRefusedError(ShardServerError):
    """The server answered an error; `code` is the number on the wire (255 + reason for an eviction)."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: the server answered code {code}")
        self.code = code


class Connection:
    """Owns its socket. Not for use from two threads.

    Raises, from every method that waits: OSError (also when timeout_s passes), ProtocolError for a reply that breaks
    the framing, RequestRefusedError for an error in a reply.
    """

    def __init__(self, host: str, port: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._socket = socket.create_connection((host, port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = secrets.token_bytes(16)
        self._session = 0
        self._next_request = 1
        self._sends: deque[int] = deque()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def detach_socket(self) -> socket.socket:
        """The socket, for a caller that speaks the frames itself; this object is of no further use."""
        assert not self._sends
        return self._socket

    def login(self, username: str, password: str) -> int:
        """Gives the session."""
        reader = Reader(self._ask(OP_LOGIN, requests.encode_login(username, password)))
        reader.u32()
        self._session = reader.u64()
        return self._session

    def log_out(self) -> None:
        """The connection stays open, without a user."""
        self._ask(OP_LOGOUT, b"")

    def create_user(self, username: str, password: str, permissions: Permissions | None) -> None:
        self._ask(OP_CREATE_USER, CreateUserRequest(username, password, STATUS_ACTIVE, permissions, {}).encode())

    def delete_user(self, user: Identifier) -> None:
        self._ask(OP_DELETE_USER, UserAddress(user).encode())

    def set_permissions(self, user: Identifier, permissions: Permissions | None) -> None:
        """None: takes them all."""
        self._ask(OP_UPDATE_PERMISSIONS, UpdatePermissionsRequest(user, permissions).encode())

    def create_stream(self, name: str) -> int:
        """Gives the stream's id."""
        return Reader(self._ask(OP_CREATE_STREAM, wire.name(name))).u32()

    def delete_stream(self, stream: Identifier) -> None:
        self._ask(OP_DELETE_STREAM, wire.identifier(stream))

    def create_topic(
        self, stream: Identifier, name: str, partitions: int, options: dict[str, OptionValue] | None = None
    ) -> int:
        """Gives the topic's id. options: keys of the catalogue, commands.md 6.3."""
        return Reader(
            self._ask(OP_CREATE_TOPIC, requests.encode_create_topic(stream, name, partitions, options or {}))
        ).u32()

    def delete_topic(self, stream: Identifier, topic: Identifier) -> None:
        self._ask(OP_DELETE_TOPIC, TopicAddress(stream, topic).encode())

    def purge_topic(self, stream: Identifier, topic: Identifier) -> None:
        """Delete its messages: offsets start again at 0."""
        self._ask(OP_PURGE_TOPIC, TopicAddress(stream, topic).encode())

    def create_partitions(self, stream: Identifier, topic: Identifier, count: int) -> None:
        """Add so many, at most 1000 a request."""
        self._ask(OP_CREATE_PARTITIONS, wire.identifier(stream) + wire.identifier(topic) + wire.u32(count))

    def read(self, code: int, body: bytes) -> memoryview:
        """The reply of a command that changes nothing."""
        return self._ask(OP_READ, body, code)

    def topic_message_count(self, stream: Identifier, topic: Identifier) -> int:
        """Messages in all partitions. Raises RequestRefusedError(2010) when there is no such topic."""
        body = self._ask(OP_READ, wire.identifier(stream) + wire.identifier(topic), CODE_TOPIC)
        if not len(body):
            raise RequestRefusedError(2010, f"topic {topic!r} of stream {stream!r}")
        return requests.decode_message_count(body)

    def poll(self, stream: Identifier, topic: Identifier, partition: int, offset: int, count: int) -> PollReply:
        """At most `count` messages from `offset` on; none are waited for."""
        return PollReply.decode(
            self._ask(OP_READ, requests.encode_poll(stream, topic, partition, offset, count), CODE_POLL)
        )

    def store_offset(self, stream: Identifier, topic: Identifier, partition: int, consumer: int, offset: int) -> None:
        """Of a single consumer; returns once it is as durable as the topic's offsets are."""
        address = PartitionAddress(CONSUMER_SINGLE, consumer, stream, topic, partition)
        self._ask(OP_STORE_OFFSET, StoreOffsetRequest(address, offset, ACK_COMMITTED).encode())

    def snapshot(self) -> bytes:
        """The ZIP archive of get_snapshot, deflated, with all parts."""
        return bytes(self.read(CODE_SNAPSHOT, SnapshotRequest(2, ()).encode()))

    def send(self, stream: Identifier, topic: Identifier, partition: int, batch: bytes, count: int) -> int:
        """Gives the base offset, once the batch is as durable as its topic says."""
        return requests.decode_base_offset(
            self._ask(OP_SEND, requests.encode_send(stream, topic, partition, batch, count))
        )

    def send_all(
        self,
        stream: Identifier,
        topic: Identifier,
        partition: int,
        batches: Iterable[tuple[bytes, int]],
        *,
        depth: int = DEFAULT_DEPTH,
    ) -> list[int]:
        """Send (batch, message count) pairs with at most `depth` unanswered; gives the base offsets in order.

        After an error the connection must be closed: later answers are still under way.
        """
        offsets = []
        for batch, count in batches:
            if len(self._sends) == depth:
                offsets.append(self._take_send())
            self._sends.append(self._write(OP_SEND, requests.encode_send(stream, topic, partition, batch, count)))
        while self._sends:
            offsets.append(self._take_send())
        return offsets

    def send_frame(self, stream: Identifier, topic: Identifier, partition: int, batch: bytes, count: int) -> bytes:
        """A whole request frame of this session, not sent."""
        return self._encode(OP_SEND, requests.encode_send(stream, topic, partition, batch, count))

    def poll_frame(self, stream: Identifier, topic: Identifier, partition: int, offset: int, count: int) -> bytes:
        """A whole request frame of this session, not sent; its offset lies POLL_OFFSET_FROM_END before the end."""
        return self._encode(OP_READ, requests.encode_poll(stream, topic, partition, offset, count), CODE_POLL)

    def _encode(self, operation: int, body: bytes, code: int = 0) -> bytes:
        number = 0 if operation == OP_LOGIN else self._next_request
        return encode_request(operation, code, body, client=self._client, request=number, session=self._session)

    def _write(self, operation: int, body: bytes, code: int = 0) -> int:
        """Gives the request's number."""
        self._socket.sendall(self._encode(operation, body, code))
        number = 0 if operation == OP_LOGIN else self._next_request
        self._next_request += operation in METADATA_OPERATIONS
        return number

    def _ask(self, operation: int, body: bytes, code: int = 0) -> memoryview:
        """The reply's payload, behind the result section."""
        assert not self._sends
        reply = self._read_reply(operation, self._write(operation, body, code))
        if operation != OP_LOGIN and operation not in METADATA_OPERATIONS:
            return reply
        reader = Reader(reply)
        if reader.u32():
            reader.u32()
            raise RequestRefusedError(reader.u32(), f"operation {operation}")
        return reader.rest()

    def _take_send(self) -> int:
        return requests.decode_base_offset(self._read_reply(OP_SEND, self._sends.popleft()))

    def _read_reply(self, operation: int, number: int) -> memoryview:
        head = self._read(HEADER_BYTES)
        size, command, request, replied, status = _REPLY.unpack(head)
        if command == COMMAND_EVICTION:
            raise RequestRefusedError(255 + head[255], f"operation {operation}, evicted")
        if command != COMMAND_REPLY or not HEADER_BYTES <= size <= MAX_FRAME_BYTES:
            raise ProtocolError(f"a reply of command {command}, {size} bytes")
        if (replied, request) != (operation, number):
            raise ProtocolError(f"a reply to operation {replied}, request {request}; due: {operation}, {number}")
        body = self._read(size - HEADER_BYTES)
        if status:
            raise RequestRefusedError(status, f"operation {operation}")
        return body

    def _read(self, length: int) -> memoryview:
        view = memoryview(bytearray(length))
        have = 0
        while have < length:
            count = self._socket.recv_into(view[have:])
            if count == 0:
                raise ProtocolError("the server closed the connection")
            have += count
        return view
