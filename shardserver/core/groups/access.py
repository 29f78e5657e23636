"""Groups as one shard takes part in them: memberships of its connections, fences of its partitions, its coordinator.

The coordinator of a group is on shard (topic uid + group id) modulo the number of shards. Which groups a connection is
in stands with the connection, so that a coordinator's next process is told, and that a connection that ends leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from shardserver.core.calls import Operation
from shardserver.core.groups.coordinator import Coordinator, FenceChange, GroupKey
from shardserver.core.local_owner import LocalOwner
from shardserver.core.metadata import Metadata
from shardserver.core.peer_service import ControlHandler
from shardserver.core.remote_owner import RemoteOwner
from shardserver.core.sessions import Connection, Sessions
from shardserver.errors import BackpressureError, NotOwnerError, RejectedError, ShardServerError
from shardserver.protocol.addresses import CONSUMER_GROUP
from shardserver.router.peers import Request

log = logging.getLogger(__name__)


class Join(msgspec.Struct, frozen=True, tag="join"):
    """member: session of the connection, which no other one ever has; shard: where that is."""

    key: GroupKey
    member: int
    shard: int


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    key: GroupKey
    member: int


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    key: GroupKey
    member: int


class Members(msgspec.Struct, frozen=True, tag="members"):
    keys: list[GroupKey]


class Owners(msgspec.Struct, frozen=True, tag="owners"):
    keys: list[GroupKey]


Question = Join | Leave | Sync | Members | Owners
MembersOf = list[list[tuple[int, list[int]]]]
_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(Question).decode
_decode_change = msgspec.msgpack.Decoder(FenceChange).decode


class GroupAccess:
    """Owned by one shard's loop."""

    def __init__(
        self,
        number: int,
        shards: int,
        local: LocalOwner,
        remote: dict[int, RemoteOwner],
        sessions: Sessions,
        metadata: Callable[[], Metadata],
        clock: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._number, self._shards, self._local, self._remote = number, shards, local, remote
        self._sessions = sessions
        self.coordinator = Coordinator(metadata, self._change_fence, clock, timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()
        sessions.on_left = self._leave_all

    def control_handlers(self) -> dict[int, ControlHandler]:
        return {Operation.GROUP: self._serve_question, Operation.FENCE: self._serve_fence}

    def shard_of(self, key: GroupKey) -> int:
        return (key.topic_uid + key.group_id) % self._shards

    # For connections of this shard

    async def join(self, connection: Connection, key: GroupKey) -> None:
        """Raises RejectedError(5000), BackpressureError: its coordinator is down."""
        session = connection.session
        connection.groups.add(key)  # before the answer: what is half done ends with the connection
        try:
            await self._ask(key, Join(key, connection.session, self._number), type(None))
        except RejectedError:
            connection.groups.discard(key)
            raise
        if (
            connection.session != session or key not in connection.groups
        ):  # it has ended meanwhile, and left before it had come
            self._background(self._leave_quietly(key, session))

    async def leave(self, connection: Connection, key: GroupKey) -> None:
        """Raises RejectedError 5000, 5006; BackpressureError."""
        await self._ask(key, Leave(key, connection.session), type(None))
        connection.groups.discard(key)

    async def sync(self, connection: Connection, key: GroupKey) -> tuple[int, list[int]] | None:
        found: Any = await self._ask(key, Sync(key, connection.session), tuple[int, list[int]] | None)
        return found  # type: ignore[no-any-return]

    async def members(self, keys: list[GroupKey]) -> dict[GroupKey, list[tuple[int, list[int]]]]:
        """Of each group: [(number, partitions)]."""
        return await self._gather(keys, Members, MembersOf)

    async def owners(self, keys: list[GroupKey]) -> dict[GroupKey, list[int | None]]:
        """Of each group: the number of the member that has a partition, by partition id; [] when it has no members."""
        return await self._gather(keys, Owners, list[list[int | None]])

    async def _gather(
        self, keys: list[GroupKey], kind: type[Members] | type[Owners], answer: Any
    ) -> dict[GroupKey, Any]:
        by_shard: dict[int, list[GroupKey]] = {}
        for key in keys:
            by_shard.setdefault(self.shard_of(key), []).append(key)
        parts = await asyncio.gather(*(self._ask(some[0], kind(some), answer) for some in by_shard.values()))
        return {
            key: found
            for some, part in zip(by_shard.values(), parts, strict=True)
            for key, found in zip(some, part, strict=True)
        }

    def _leave_all(self, session: int, keys: set[GroupKey]) -> None:
        """A connection has ended, or its session."""
        for key in keys:
            self._background(self._leave_quietly(key, session))

    async def _leave_quietly(self, key: GroupKey, session: int) -> None:
        try:
            await self._ask(key, Leave(key, session), type(None))
        except ShardServerError:  # it is left already, or its coordinator is gone and knows nobody
            return

    async def _ask(self, key: GroupKey, question: Question, answer: Any) -> Any:
        shard = self.shard_of(key)
        if shard == self._number:
            return await self._answer(question)
        owner = self._remote.get(shard)
        if owner is None:
            raise BackpressureError(f"there is no shard {shard}")
        raw = await owner.control(Operation.GROUP, _encode(question))
        return msgspec.msgpack.decode(raw, type=answer)

    # As coordinator

    async def _answer(self, question: Question) -> Any:
        match question:
            case Join(key, member, shard):
                return await self.coordinator.join(key, member, shard)
            case Leave(key, member):
                return await self.coordinator.leave(key, member)
            case Sync(key, member):
                return self.coordinator.sync(key, member)
            case Members(keys):
                return [self.coordinator.members(key) for key in keys]
            case Owners(keys):
                return [self.coordinator.owners(key) for key in keys]

    async def _serve_question(self, asked: Request) -> bytes:
        return _encode(await self._answer(_decode_question(asked.payload)))

    async def _change_fence(self, shard: int, change: FenceChange) -> list[bool]:
        if shard == self._number:
            return self._fence(change)
        owner = self._remote.get(shard)
        if owner is None:
            raise BackpressureError(f"there is no shard {shard}")
        raw = await owner.control(Operation.FENCE, _encode(change))
        return msgspec.msgpack.decode(raw, type=list[bool])

    # As owner of partitions

    async def _serve_fence(self, asked: Request) -> bytes:
        return _encode(self._fence(_decode_change(asked.payload)))

    def _fence(self, change: FenceChange) -> list[bool]:
        fences = self._local.fences
        gone = []
        for uid, group, force in change.revoke:
            gone.append(fences.revoke(uid, group, self._committed(uid, group), force=force))
        for uid, group, member in change.grant:
            fences.grant(uid, group, member)
        return gone

    def _committed(self, uid: int, group: int) -> int | None:
        try:
            return self._local.committed(uid, CONSUMER_GROUP, group)
        except NotOwnerError:  # it is on its way to another shard, which has no grant of it
            return None

    # What happens around it

    def peer_serves(self, shard: int) -> None:
        """A process of a peer takes requests: it has no grants, and as coordinator no members."""
        self.coordinator.shard_began(shard)
        for connection in list(self._sessions.connections.values()):
            for key in connection.groups:
                if self.shard_of(key) == shard:
                    self._background(self._announce(key, connection.session))

    async def _announce(self, key: GroupKey, session: int) -> None:
        try:
            await self._ask(key, Join(key, session, self._number), type(None))
        except RejectedError:  # the group is gone: the member learns it by its next sync
            return
        except ShardServerError as error:  # its next process is told again
            log.warning("group_not_announced", extra={"fields": {"group": key.group_id, "error": str(error)}})

    def peer_ended(self, shard: int) -> None:
        self.coordinator.shard_ended(shard)

    def metadata_changed(self) -> None:
        self.coordinator.metadata_changed()
        for connection in self._sessions.connections.values():
            if connection.groups:
                connection.groups = {key for key in connection.groups if self.coordinator.exists(key)}
        logs = self._local.logs
        if logs is not None:
            gone = {uid for uid in self._local.fences.uids() if logs.find_partition(uid) is None}
            if gone:
                self._local.fences.forget(uids=gone)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
