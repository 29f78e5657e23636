"""Shard 0's one writer of metadata: plan, append, apply, tell the listeners, answer; one change after another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_events import Change, Event
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot, encode_snapshot
from shardserver.core.placement import Placement
from shardserver.core.planning import Plan, PlanContext
from shardserver.core.replies import RepliesKept
from shardserver.errors import CorruptionError, DiskFullError, StorageError
from shardserver.protocol.options import PLAIN_DEFAULTS

log = logging.getLogger(__name__)

SNAPSHOT_EVERY_BYTES = 4 << 20


class MetadataStore(Protocol):
    """The seam: a consensus service can hold the same records."""

    async def append(self, payload: bytes) -> int:
        """Make one record durable; gives its revision."""
        ...

    async def replay(self, *, read_only: bool = False) -> tuple[bytes | None, list[bytes]]:
        """The newest snapshot, if any, and the records after it."""
        ...

    async def snapshot(self, payload: bytes) -> None:
        """Replace all records so far by this state."""
        ...

    def corruption(self, record: int | None, reason: str) -> CorruptionError:
        """What to raise when a record that `replay` gave, by its place there, means nothing; None: its snapshot."""
        ...

    @property
    def record_bytes(self) -> int:
        """Bytes of records since the last snapshot."""
        ...


class MetadataWriter:
    """Owns the store and the replica that is never behind it.

    Args:
        placement: where new partitions go.
        partition_limit: the most partitions that may live at a time; None: no limit.
    """

    def __init__(
        self,
        store: MetadataStore,
        clock: Callable[[], int],
        *,
        placement: Placement | None = None,
        partition_limit: int | None = None,
    ) -> None:
        self._store, self._clock = store, clock
        self._placement, self.partition_limit = placement or Placement(), partition_limit
        self.topic_defaults = PLAIN_DEFAULTS
        self.order = asyncio.Lock()
        self._replies = RepliesKept()
        self.metadata = Metadata()
        # Called after each change with its events.
        self.on_applied: Callable[[list[Event]], None] = lambda events: None
        # Told when nobody knows whether a change is durable: only a restart shows, so it must not return.
        self.on_store_failure: Callable[[StorageError], None] = lambda error: None
        # Awaited with the revision after the change and the encoded change, in order; then the client is answered.
        self.replicate: Callable[[int, bytes], Awaitable[None]] | None = None

    async def recover(self, *, read_only: bool = False) -> Metadata:
        """Replay the store into the replica. read_only: it takes no change then.

        Raises:
            CorruptionError: of the store; or a record is whole and cannot be decoded or applied.
        """
        raw, records = await self._store.replay(read_only=read_only)
        number: int | None = None
        try:
            if raw is not None:
                snapshot = decode_snapshot(raw)
                self.metadata, self._replies = snapshot.metadata, RepliesKept(snapshot.replies)
            for number, record in enumerate(records):  # noqa: B007 - for the error
                change = ev.decode_change(record)
                ev.apply_change(self.metadata, change)
                self._replies.keep(change)
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            raise self._store.corruption(number, f"a change that makes sense, found {error!r}") from error
        return self.metadata

    async def change(
        self,
        plan: Callable[[Metadata, PlanContext], Plan],
        *,
        client: bytes = b"",
        request: int = 0,
        request_checksum: bytes = b"",
    ) -> bytes:
        """Make one change durable, apply it, replicate it; gives the reply's payload.

        Raises:
            RejectedError: the plan refused, or the repeat cannot be answered.
            StorageError: the store failed; nothing was applied.
        """
        async with self.order:
            known = self.find_reply(client, request, request_checksum)
            if known is not None:
                return known
            made = plan(self.metadata, self._plan_context())
            kept = made.reply if client and request else b""  # for its repeats, and nobody else
            change = Change(made.events, client, request, request_checksum, kept)
            if made.events:
                await self._take(change)
            else:
                self._replies.keep(change)
            return made.reply

    def _plan_context(self) -> PlanContext:
        return PlanContext(self._clock(), self._placement, self.partition_limit, self.topic_defaults)

    def find_reply(self, client: bytes, request: int, checksum: bytes) -> bytes | None:
        """What this request was answered before. Raises RejectedError 4, 59: the repeat cannot be answered."""
        return self._replies.find(client, request, checksum) if client and request else None

    async def _take(self, change: Change) -> None:
        raw = ev.encode_change(change)
        try:
            await self._store.append(raw)
        except DiskFullError:
            raise  # nothing was written
        except StorageError as error:
            self.on_store_failure(error)
            raise
        ev.apply_change(self.metadata, change)
        # Durable from here on: whatever fails below, a repeat gets this reply and changes nothing.
        self._replies.keep(change)
        self.on_applied(change.events)
        follow: list[Awaitable[None]] = []
        if self.replicate is not None:
            follow.append(self.replicate(self.metadata.revision, raw))
        if self._store.record_bytes > SNAPSHOT_EVERY_BYTES:
            follow.append(self._snapshot())
        # Beside each other: the snapshot is of what is durable here, whoever else has it. Both end before the next
        # change, also when one fails, so that neither meets another record.
        for outcome in await asyncio.gather(*follow, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def snapshot_payload(self) -> bytes:
        """Replica and replies, as `decode_snapshot` takes them."""
        return encode_snapshot(Snapshot(self.metadata, self._replies.rows()))

    async def _snapshot(self) -> None:
        """Bound the replay. The change before it is durable already, so a full disk only puts this off."""
        try:
            await self._store.snapshot(self.snapshot_payload())
        except StorageError as error:
            log.warning("metadata_snapshot_failed", extra={"fields": {"error": str(error)}})
