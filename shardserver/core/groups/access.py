"""Groups as one shard takes part in them: memberships of its connections, fences of its partitions, its coordinator.

The coordinator of a group is on shard (topic uid + group id) modulo the number of shards. Which groups a connection is
in stands with the connection, so that a coordinator's next process is told, and that a connection that ends leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from shardserver.core.calls import Operation
from shardserver.core.groups.coordinator import Claim, Coordinator, FenceChange, GroupKey
from shardserver.core.groups.touched import Touched
from shardserver.core.local_owner import LocalOwner
from shardserver.core.metadata import ROOT_ID, Metadata
from shardserver.core.metadata_events import Event
from shardserver.core.peer_service import ControlHandler
from shardserver.core.permissions import may
from shardserver.core.remote_owner import RemoteOwner
from shardserver.core.sessions import NOTHING_TOLD, Connection, Sessions, Told
from shardserver.errors import BackpressureError, NotOwnerError, RejectedError, ShardServerError
from shardserver.protocol.addresses import CONSUMER_GROUP
from shardserver.protocol.table import Right
from shardserver.router.peers import Request

log = logging.getLogger(__name__)

# A new coordinator waits so long for shards that are down or slow to name their members.
GATHER_S = 5.0


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


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    shard: int
    claims: list[Claim]


class Members(msgspec.Struct, frozen=True, tag="members"):
    keys: list[GroupKey]


class Owners(msgspec.Struct, frozen=True, tag="owners"):
    keys: list[GroupKey]


Question = Join | Leave | Sync | Announce | Members | Owners
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
        self._sessions, self._metadata = sessions, metadata
        self.coordinator = Coordinator(metadata, self._change_fence, clock, timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()
        sessions.on_left = self._leave_all

    def begin(self, first_generation: int) -> None:
        """Before peers are told that we serve: then they name their members."""
        self.coordinator.begin(first_generation, self._remote)
        asyncio.get_running_loop().call_later(GATHER_S, self.coordinator.end_gathering)

    def control_handlers(self) -> dict[int, ControlHandler]:
        return {Operation.GROUP: self._serve_question, Operation.FENCE: self._serve_fence}

    def shard_of(self, key: GroupKey) -> int:
        return (key.topic_uid + key.group_id) % self._shards

    # For connections of this shard

    async def join(self, connection: Connection, key: GroupKey) -> None:
        """Raises RejectedError(5000), BackpressureError: its coordinator is down."""
        session = connection.session
        connection.groups.setdefault(key, NOTHING_TOLD)  # before the answer: what is half done ends with the connection
        try:
            await self._ask(key, Join(key, connection.session, self._number), type(None))
        except RejectedError:
            connection.groups.pop(key, None)
            raise
        if (
            connection.session != session or key not in connection.groups
        ):  # it has ended meanwhile, and left before it had come
            self._background(self._leave_quietly(key, session))

    async def leave(self, connection: Connection, key: GroupKey) -> None:
        """Raises RejectedError 5000, 5006; BackpressureError."""
        session, told = connection.session, connection.groups.pop(key, None)  # a coordinator is not told of it again
        try:
            await self._ask(key, Leave(key, session), type(None))
        except BackpressureError:
            if told is not None and connection.session == session:
                connection.groups.setdefault(key, told)
            raise

    async def sync(self, connection: Connection, key: GroupKey) -> Told | None:
        """None: it is no member. Raises BackpressureError: the coordinator is down, or does not know it yet."""
        session = connection.session
        found: Told | None = await self._ask(key, Sync(key, session), Told | None)
        if connection.session == session and key in connection.groups:
            if found is None:
                raise BackpressureError(f"group {key.group_id}: its coordinator has not been told of the member")
            connection.groups[key] = found
        return found

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

    def _leave_all(self, session: int, keys: Iterable[GroupKey]) -> None:
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
        if isinstance(question, Announce):
            return self.coordinator.announce(question.shard, question.claims)
        await self.coordinator.until_gathered()
        match question:
            case Join(key, member, shard):
                return await self.coordinator.join(key, member, shard)
            case Leave(key, member):
                return await self.coordinator.leave(key, member)
            case Sync(key, member):
                await self.coordinator.until_granted(key, member)
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
        gone = [
            fences.revoke(uid, group, self._committed(uid, group), force=force) for uid, group, force in change.revoke
        ]
        return gone + [fences.grant(uid, group, member) for uid, group, member in change.grant]

    def _committed(self, uid: int, group: int) -> int | None:
        try:
            return self._local.committed(uid, CONSUMER_GROUP, group)
        except NotOwnerError:  # it is on its way to another shard, which has no grant of it
            return None

    # What happens around it

    def peer_serves(self, shard: int) -> None:
        """A process of a peer takes requests: it has no grants, and as coordinator no members."""
        self.coordinator.shard_began(shard)
        claims = [
            Claim(key, connection.session, *told)
            for connection in self._sessions.connections.values()
            for key, told in connection.groups.items()
            if self.shard_of(key) == shard
        ]
        self._background(self._announce(shard, Announce(self._number, claims)))

    async def _announce(self, shard: int, members: Announce) -> None:
        try:
            await self._remote[shard].control(Operation.GROUP, _encode(members))
        except ShardServerError as error:  # its next process is told again
            log.warning("members_not_announced", extra={"fields": {"shard": shard, "error": str(error)}})

    def peer_ended(self, shard: int) -> None:
        self.coordinator.shard_ended(shard)

    def metadata_changed(self, events: list[Event] | None) -> None:
        """events: the change that was applied; None: anything may be new."""
        if events is None:
            self._look_at_groups(lambda key: True, lambda user_id: True)
            return
        touched = Touched.by(events)
        if touched != Touched():
            self._look_at_groups(touched.concerns, touched.users.__contains__)

    def _look_at_groups(self, concerns: Callable[[GroupKey], bool], has_new_rights: Callable[[int], bool]) -> None:
        self.coordinator.metadata_changed(concerns)
        for connection in self._sessions.connections.values():
            for key in [key for key in connection.groups if concerns(key) and not self.coordinator.exists(key)]:
                del connection.groups[key]
            if connection.groups and has_new_rights(connection.user_id):
                self._leave_without_right(connection)
        logs = self._local.logs
        if logs is not None:
            gone = {uid for uid in self._local.fences.uids() if logs.find_partition(uid) is None}
            if gone:
                self._local.fences.forget(uids=gone)

    def _leave_without_right(self, connection: Connection) -> None:
        """Who may poll no more would keep its partitions from all others."""
        for key in [key for key in connection.groups if not self._may_poll(connection.user_id, key)]:
            del connection.groups[key]
            self._background(self._leave_quietly(key, connection.session))

    def _may_poll(self, user_id: int, key: GroupKey) -> bool:
        metadata = self._metadata()
        user = metadata.users.get(user_id)
        if user_id == ROOT_ID or user is None:  # without a user its session has ended anyhow
            return True
        return may(user.permissions, Right.POLL, metadata.streams[key.stream_id].uid, key.topic_uid)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
