"""A shard's part in the metadata: shard 0 writes it, all others follow. Both offer the rest the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.authentication import PasswordVerifier
from shardserver.core.calls import Operation
from shardserver.core.changes import Changes, FollowerChanges, WriterChanges
from shardserver.core.follower import Follower
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.peer_service import ControlHandler
from shardserver.core.planning import Plan
from shardserver.core.remote_owner import RemoteOwner
from shardserver.core.replication import Replication, take_boot_number
from shardserver.core.shards import decode_uids
from shardserver.router.peers import Peers, Request

log = logging.getLogger(__name__)

OnApplied = Callable[[list[ev.Event] | None], None]
# The replica or what follows it is half changed: end the process, the next one recovers. Must not return.
OnBroken = Callable[[Exception], None]


def _tell(on_applied: OnApplied, events: list[ev.Event] | None, on_broken: OnBroken) -> None:
    try:
        on_applied(events)
    except Exception as error:  # the boundary: whatever it is, the logs are not what the replica says
        on_broken(error)
        raise


class Role(Protocol):
    """on_applied is told of each change of the replica: its events, or None when anything may be new.

    When it fails, here or on a follower, the change is made all the same; so the process ends instead of going on half.
    """

    on_applied: OnApplied

    @property
    def metadata(self) -> Metadata: ...

    @property
    def changes(self) -> Changes: ...

    async def start(self) -> int:
        """Until there is a replica; gives the boot number of this process."""
        ...

    def peer_began(self, number: int, *, is_serving: bool) -> None: ...

    def peer_ended(self, number: int) -> None: ...

    async def report_removed(self, uids: list[int]) -> None:
        """The files of these dying partitions are gone."""
        ...

    def control_handlers(self) -> dict[int, ControlHandler]: ...


class WriterRole:
    """Of shard 0. root: the user of a metadata log that has none yet. peers: None when there is one shard only."""

    def __init__(
        self,
        writer: MetadataWriter,
        peers: Peers | None,
        root: Callable[[], md.User],
        on_broken: OnBroken,
        verifier: PasswordVerifier,
        *,
        read_only: bool,
    ) -> None:
        self.writer, self._root, self._read_only = writer, root, read_only
        self.replication = Replication(writer, peers, read_only=read_only)
        self.changes: Changes = WriterChanges(writer, self.replication, verifier)
        self.on_applied: OnApplied = lambda events: None
        writer.on_applied = lambda events: _tell(self.on_applied, events, on_broken)
        self._on_broken = on_broken
        self._recovered = asyncio.Event()

    @property
    def metadata(self) -> Metadata:
        return self.writer.metadata

    async def start(self) -> int:
        metadata = await self.writer.recover(read_only=self._read_only)
        if md.ROOT_ID not in metadata.users and not self._read_only:
            await self.writer.change(lambda state, context: Plan([ev.UserCreated(self._root())]))
        number = await take_boot_number(self.writer, read_only=self._read_only)
        if not self._read_only:
            self.writer.on_store_failure = self._on_broken
        self._recovered.set()
        return number

    def peer_began(self, number: int, *, is_serving: bool) -> None:
        if is_serving:
            self.replication.await_join(number)

    def peer_ended(self, number: int) -> None:
        self.replication.forget(number)

    async def report_removed(self, uids: list[int]) -> None:
        await self.writer.change(lambda state, context: Plan([ev.DataRemoved(uids)]))

    def control_handlers(self) -> dict[int, ControlHandler]:
        return {
            Operation.CHANGE: self.changes.serve,  # type: ignore[attr-defined]
            Operation.JOIN: self._serve_join,
            Operation.DATA_REMOVED: self._serve_removed,
        }

    async def _serve_join(self, asked: Request) -> bytes:
        await self._recovered.wait()
        return await self.replication.join(asked)

    async def _serve_removed(self, asked: Request) -> bytes:
        await self.report_removed(decode_uids(asked.payload))
        return b""


class FollowerRole:
    """Of all others."""

    def __init__(self, peers: Peers, writer: RemoteOwner, on_broken: OnBroken) -> None:
        self._writer, self._on_broken = writer, on_broken
        self.follower = Follower(peers.peer(0), on_broken)
        self.changes: Changes = FollowerChanges(writer)
        self.on_applied: OnApplied = lambda events: None
        self.follower.on_applied = lambda events: _tell(self.on_applied, events, on_broken)

    @property
    def metadata(self) -> Metadata:
        return self.follower.metadata

    async def start(self) -> int:
        await self.follower.wait_joined()
        return self.follower.boot_number

    def peer_began(self, number: int, *, is_serving: bool) -> None:
        if number == 0:
            self.follower.writer_began()

    def peer_ended(self, number: int) -> None:
        """A follower needs nobody but shard 0, whose next process it joins."""

    async def report_removed(self, uids: list[int]) -> None:
        await self._writer.control(Operation.DATA_REMOVED, msgspec.msgpack.encode(uids))

    def control_handlers(self) -> dict[int, ControlHandler]:
        return {Operation.EVENT: self._serve_event}

    async def _serve_event(self, asked: Request) -> bytes:
        try:
            return await self.follower.apply(asked)
        except Exception as error:  # whatever it is, this replica is not what all others have
            self._on_broken(error)
            raise
