"""What a server must refuse however busy it is: so that no row is met by leaving a check out.

Each probe has a stream of its own, whose sends were answered before, so that the server knows the way to its partition;
then something changes, and the very next request must get its code. Nothing refused may leave a trace.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from shardserver.bench.plan import STREAM, TOPIC, Shape
from shardserver.client.batch import encode_batch
from shardserver.client.connection import RequestRefusedError
from shardserver.client.requests import PollReply
from shardserver.errors import Code, ShardServerError
from shardserver.protocol.options import OptionValue
from shardserver.protocol.permissions import Permissions, StreamPermissions

BATCH_HEADER_BYTES, MESSAGE_HEADER_BYTES, AT_BATCH_CHECKSUM, AT_MESSAGE_ID = 256, 48, 40, 8
# An eviction is answered to who has no session: 255 + reason 1 (framing.md 7).
NO_SESSION = 256


class Client(Protocol):
    """What is asked of a connection (client/connection.py)."""

    def create_stream(self, name: str) -> int: ...
    def delete_stream(self, stream: str) -> None: ...
    def create_topic(self, stream: str, name: str, partitions: int, options: dict[str, OptionValue] | None) -> int: ...
    def delete_topic(self, stream: str, topic: str) -> None: ...
    def purge_topic(self, stream: str, topic: str) -> None: ...
    def create_user(self, username: str, password: str, permissions: Permissions | None) -> None: ...
    def delete_user(self, user: str) -> None: ...
    def set_permissions(self, user: str, permissions: Permissions | None) -> None: ...
    def log_out(self) -> None: ...
    def send(self, stream: str, topic: str, partition: int, batch: bytes, count: int) -> int: ...
    def poll(self, stream: str, topic: str, partition: int, offset: int, count: int) -> PollReply: ...


class Connect(Protocol):
    """Gives a connection, logged in: as root, or as the user that is named."""

    def __call__(self, username: str | None = None, password: str | None = None) -> AbstractContextManager[Client]: ...


class _Fault(ShardServerError):
    """A probe's answer was not the one due."""


def probe_refusals(connect: Connect, shape: Shape, options: Mapping[str, OptionValue]) -> list[str]:
    """Sends batches of this shape to topics with these options.

    Gives the faults: what was not refused, or not as it should be. A probe that fails in any way is one.
    """
    found: list[str] = []
    for name, probe in PROBES.items():
        try:
            with connect() as root:
                _run(probe, _Place(connect, root, f"{STREAM}-{name}", shape), options)
        except (ShardServerError, OSError) as error:
            found.append(f"{name}: {error}")
    return found


def _run(probe: Callable[[_Place], None], place: _Place, options: Mapping[str, OptionValue]) -> None:
    place.stream_id = place.root.create_stream(place.stream)
    try:
        place.root.create_topic(place.stream, TOPIC, 1, dict(options))
        probe(place)
    finally:
        place.root.delete_stream(place.stream)


class _Place:
    """Where one probe sends: partition 0 of TOPIC."""

    def __init__(self, connect: Connect, root: Client, stream: str, shape: Shape) -> None:
        self.connect, self.root, self.stream, self.stream_id = connect, root, stream, 0
        self.count, self._message_bytes = shape.messages_per_batch, MESSAGE_HEADER_BYTES + shape.most_bytes
        self.batch = encode_batch([os.urandom(shape.most_bytes) for _ in range(self.count)])

    def with_damaged_message(self, index: int) -> bytes:
        """Only that message's checksum tells: the batch's covers the stored checksums."""
        return _flipped(self.batch, BATCH_HEADER_BYTES + index * self._message_bytes + AT_MESSAGE_ID)

    def with_damaged_checksum(self) -> bytes:
        return _flipped(self.batch, AT_BATCH_CHECKSUM)

    def send(self, client: Client, base_offset: int) -> None:
        """A good batch. Raises _Fault when it gets another base offset."""
        found = client.send(self.stream, TOPIC, 0, self.batch, self.count)
        if found != base_offset:
            raise _Fault(f"a good batch was acknowledged at offset {found}, due at {base_offset}")

    def make_known(self, client: Client) -> int:
        """Two good batches, so that the server knows the way; gives the next offset."""
        self.send(client, 0)
        self.send(client, self.count)
        return 2 * self.count

    def must_refuse(self, client: Client, batch: bytes, code: int, what: str) -> None:
        try:
            client.send(self.stream, TOPIC, 0, batch, self.count)
        except RequestRefusedError as error:
            if error.code != code:
                raise _Fault(f"{what} was answered {error.code}, due: {code}") from error
        else:
            raise _Fault(f"{what} was acknowledged, due: {code}")


def _flipped(batch: bytes, place: int) -> bytes:
    made = bytearray(batch)
    made[place] ^= 1
    return bytes(made)


def _checksums(place: _Place) -> None:
    """Bad ones between good ones, wherever in the batch; those acknowledged follow each other without a gap."""
    with place.connect() as client:
        offset = place.make_known(client)
        for index in sorted({0, place.count // 2, place.count - 1}):
            what = f"a bad checksum of message {index}"
            place.must_refuse(client, place.with_damaged_message(index), Code.INVALID_MESSAGE_CHECKSUM, what)
        place.must_refuse(client, place.with_damaged_checksum(), Code.INVALID_BATCH_CHECKSUM, "a bad batch checksum")
        place.send(client, offset)


def _permission(place: _Place) -> None:
    """Withdrawn between two sends of one connection."""
    name, password = f"bench-{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    may_send = Permissions(streams={place.stream_id: StreamPermissions(send_messages=True)})
    place.root.create_user(name, password, may_send)
    try:
        with place.connect(name, password) as client:
            offset = place.make_known(client)
            place.root.set_permissions(name, None)
            place.must_refuse(client, place.batch, Code.UNAUTHORIZED, "a send without permission")
        place.send(place.root, offset)
    finally:
        place.root.delete_user(name)


def _logout(place: _Place) -> None:
    """Of a connection whose sends were answered: it has no right any more."""
    with place.connect() as client:
        offset = place.make_known(client)
        client.log_out()
        place.must_refuse(client, place.batch, NO_SESSION, "a send after the logout")
    place.send(place.root, offset)


def _purge(place: _Place) -> None:
    """The next send is the first message again, and what was before is gone."""
    with place.connect() as client:
        place.make_known(client)
        place.root.purge_topic(place.stream, TOPIC)
        place.send(client, 0)
        left = client.poll(place.stream, TOPIC, 0, place.count, 1).count
        if left:
            raise _Fault(f"behind the purge and {place.count} messages there is one at offset {place.count}")


def _delete(place: _Place) -> None:
    with place.connect() as client:
        place.make_known(client)
        place.root.delete_topic(place.stream, TOPIC)
        place.must_refuse(client, place.batch, Code.TOPIC_NOT_FOUND, "a send to a deleted topic")


PROBES: dict[str, Callable[[_Place], None]] = {
    "checksums": _checksums,
    "permission": _permission,
    "logout": _logout,
    "purge": _purge,
    "delete": _delete,
}
