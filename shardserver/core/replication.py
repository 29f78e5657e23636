"""Shard 0's side of the replicas: every change goes to all followers, and is answered when all have applied it.

A process that joins gets a snapshot and from then on each change, without a gap: both happen between two changes. One
whose process has ended is waited for no more. After a start of shard 0 the shards that served meanwhile have to join
again before a client's change is taken: else they would not see it when the client is told that it is done.
"""

from __future__ import annotations

import asyncio

import msgspec

from shardserver.core import metadata_events as ev
from shardserver.core.calls import U64, Operation
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.planning import Plan, PlanContext
from shardserver.errors import BackpressureError, PeerGoneError, ShardServerError
from shardserver.router.answers import Answer
from shardserver.router.peers import Peers, Request


class JoinRequest(msgspec.Struct, frozen=True):
    """is_start: the follower's process has just begun, and needs a boot number."""

    is_start: bool


class JoinAnswer(msgspec.Struct, frozen=True):
    """snapshot: as metadata_snapshot encodes it."""

    boot_number: int
    snapshot: bytes


class Replication:
    """Owned by shard 0's loop. peers: None on a server with one shard."""

    def __init__(self, writer: MetadataWriter, peers: Peers | None, *, read_only: bool) -> None:
        self._writer, self._peers, self._read_only = writer, peers, read_only
        self._joined: set[int] = set()
        self._awaited: set[int] = set()
        self._complete = asyncio.Event()
        self._complete.set()
        writer.replicate = self._replicate

    # Processes of peers

    def await_join(self, peer: int) -> None:
        """A process that served already when we began."""
        self._awaited.add(peer)
        self._complete.clear()

    def forget(self, peer: int) -> None:
        self._joined.discard(peer)
        self._no_longer_await(peer)

    def _no_longer_await(self, peer: int) -> None:
        self._awaited.discard(peer)
        if not self._awaited:
            self._complete.set()

    async def wait_complete(self) -> None:
        await self._complete.wait()

    async def join(self, asked: Request) -> bytes:
        """Serve a JOIN."""
        boot_number = 0
        if msgspec.msgpack.decode(asked.payload, type=JoinRequest).is_start:
            boot_number = await take_boot_number(self._writer, read_only=self._read_only)
        async with self._writer.order:  # between two changes
            self._add_joined(asked)
            snapshot = self._writer.snapshot_payload()
        self._no_longer_await(asked.peer)
        return msgspec.msgpack.encode(JoinAnswer(boot_number, snapshot))

    def _add_joined(self, asked: Request) -> None:
        """Not when who asked has died: its next process would be told of changes before it has joined.

        It could not apply them, so that they would wait for its join, and its join for them.
        """
        assert self._peers is not None
        peer = self._peers.peer(asked.peer)
        if peer.rings is None or peer.generation != asked.generation:
            raise PeerGoneError(f"shard {asked.peer} died while it joined")
        self._joined.add(asked.peer)

    # Changes

    async def _replicate(self, revision: int, raw: bytes) -> None:
        waits = [self._tell(peer, revision, raw) for peer in sorted(self._joined)]
        if waits:
            await asyncio.wait(waits)

    def _tell(self, number: int, revision: int, raw: bytes) -> asyncio.Future[None]:
        """Done when the follower has applied it, or is gone."""
        assert self._peers is not None
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(outcome: Answer | ShardServerError) -> None:
            if isinstance(outcome, ShardServerError) and not isinstance(outcome, PeerGoneError):
                # It could not apply what all others have: it ends itself, and joins anew.
                self._joined.discard(number)
            if not applied.done():
                applied.set_result(None)

        try:
            self._peers.peer(number).ask(Operation.EVENT, U64.pack(revision), raw, answered, survives=False)
        except BackpressureError:  # it has no process
            applied.set_result(None)
        return applied


async def take_boot_number(writer: MetadataWriter, *, read_only: bool) -> int:
    """The number of one start of a shard's process, durable before any session carries it.

    read_only: the log takes nothing, so the number holds for this life of shard 0 only.
    """
    taken = 0
    if read_only:
        ev.apply(writer.metadata, ev.BootEvent())
        return writer.metadata.boot_number

    def boot(metadata: Metadata, context: PlanContext) -> Plan:
        nonlocal taken
        taken = metadata.boot_number + 1
        return Plan([ev.BootEvent()])

    await writer.change(boot)
    return taken
