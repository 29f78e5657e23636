"""The replica of a shard that does not write metadata: a snapshot when it joins shard 0, then every change in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from shardserver.core import metadata_events as ev
from shardserver.core.calls import U64, Operation
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_snapshot import decode_snapshot
from shardserver.core.msgpack import decode_value
from shardserver.core.replication import JoinAnswer, JoinRequest
from shardserver.errors import BackpressureError, CorruptionError, PeerGoneError, ShardServerError
from shardserver.router.answers import Answer
from shardserver.router.peer import Peer, Request

JOIN_AGAIN_S = 1.0
_decoder = msgspec.msgpack.Decoder(JoinAnswer)


class Follower:
    """on_applied is called with the events of each change; with None when the whole replica is new.

    on_broken: a snapshot cannot be read; must not return.
    """

    def __init__(self, writer: Peer, on_broken: Callable[[Exception], None]) -> None:
        self._writer, self._on_broken = writer, on_broken
        self.metadata = Metadata()
        self.boot_number = 0
        self.on_applied: Callable[[list[ev.Event] | None], None] = lambda events: None
        self._joined = asyncio.Event()
        self._started = False
        self._joins = 0

    async def wait_joined(self) -> None:
        await self._joined.wait()

    def writer_began(self) -> None:
        """Shard 0 has a new process: join it. Changes wait for the snapshot, and those that it holds are skipped."""
        self._joined.clear()
        self._joins += 1
        request = msgspec.msgpack.encode(JoinRequest(is_start=not self._started))
        self._writer.ask(Operation.JOIN, b"", request, partial(self._on_join, self._joins), survives=False)

    def _on_join(self, join: int, outcome: Answer | ShardServerError) -> None:
        if join != self._joins or isinstance(outcome, PeerGoneError | BackpressureError):
            return  # its next process is joined when it begins
        if isinstance(outcome, ShardServerError):  # such as a full disk: the boot number has to be durable
            asyncio.get_running_loop().call_later(JOIN_AGAIN_S, self._join_again, join)
            return
        try:
            answer = decode_value(_decoder, outcome.joined())
            self.metadata = decode_snapshot(answer.snapshot).metadata
        except msgspec.DecodeError as error:
            self._on_broken(error)
            raise
        if not self._started:
            self.boot_number, self._started = answer.boot_number, True
        self._joined.set()
        self.on_applied(None)

    def _join_again(self, join: int) -> None:
        if join == self._joins and self._writer.rings is not None:
            self.writer_began()

    async def apply(self, asked: Request) -> bytes:
        """Serve an EVENT: its change, and the revision of the replica after it; returns when it is applied.

        Raises:
            CorruptionError: this replica is not what the change was made for.
        """
        revision, raw = U64.unpack_from(asked.inline)[0], bytes(asked.payload)
        await self._joined.wait()
        if revision <= self.metadata.revision:
            return b""
        change = ev.decode_change(raw)
        ev.apply_change(self.metadata, change)
        if self.metadata.revision != revision:
            raise CorruptionError("metadata replica", 0, f"revision {revision}, found {self.metadata.revision}")
        self.on_applied(change.events)
        return b""
