"""Shard 0's one writer of metadata: plan, append, apply, tell the listeners, answer; one change after another."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from shardserver.core import metadata as md
from shardserver.core.metadata import Change, Event, Metadata
from shardserver.core.metadata_commands import Plan
from shardserver.errors import Code, RejectedError, StorageError

log = logging.getLogger(__name__)

REPLIES_KEPT = 5
CLIENTS_KEPT = 8192
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

    @property
    def record_bytes(self) -> int:
        """Bytes of records since the last snapshot."""
        ...


class RepliesKept:
    """At most once: the last replies of each client, by request number (protocol README 6.2).

    Rejections are not kept: nothing was changed, so a repeat is simply judged again.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, OrderedDict[int, tuple[bytes, bytes]]] = OrderedDict()

    def find(self, client: bytes, request: int, checksum: bytes) -> bytes | None:
        """The first reply to this request. Raises RejectedError 4 (another body) or 59 (no longer kept)."""
        replies = self._clients.get(client)
        if not replies:
            return None
        if request in replies:
            known, reply = replies[request]
            if any(known) and any(checksum) and known != checksum:
                raise RejectedError(Code.INVALID_FORMAT, f"request {request} with another body")
            return reply
        if request < max(replies) and len(replies) == REPLIES_KEPT and request < min(replies):
            raise RejectedError(Code.REQUEST_ALREADY_APPLIED, f"request {request}")
        return None

    def keep(self, change: Change) -> None:
        if not change.client or not change.request:
            return
        replies = self._clients.setdefault(change.client, OrderedDict())
        replies[change.request] = (change.request_checksum, change.reply)
        self._clients.move_to_end(change.client)
        if len(replies) > REPLIES_KEPT:
            replies.popitem(last=False)
        if len(self._clients) > CLIENTS_KEPT:
            self._clients.popitem(last=False)


class MetadataWriter:
    """Owns the store. `on_applied` is called after each change with its events."""

    def __init__(self, store: MetadataStore, clock: Callable[[], int]) -> None:
        self._store, self._clock = store, clock
        self._order = asyncio.Lock()
        self._replies = RepliesKept()
        self.metadata = Metadata()
        self.on_applied: Callable[[list[Event]], None] = lambda events: None

    async def recover(self, *, read_only: bool = False) -> Metadata:
        """Replay the store into the replica. read_only: it takes no change then."""
        snapshot, records = await self._store.replay(read_only=read_only)
        if snapshot is not None:
            self.metadata = md.decode_snapshot(snapshot)
        for raw in records:
            change = md.decode_change(raw)
            for event in change.events:
                md.apply(self.metadata, event)
            self._replies.keep(change)
        return self.metadata

    async def change(
        self,
        plan: Callable[[Metadata, int], Plan],
        *,
        client: bytes = b"",
        request: int = 0,
        request_checksum: bytes = b"",
    ) -> bytes:
        """Make one change durable and apply it; gives the reply's payload.

        Raises:
            RejectedError: the plan refused, or the repeat cannot be answered.
            StorageError: the store failed; nothing was applied.
        """
        async with self._order:
            if client and request:
                known = self._replies.find(client, request, request_checksum)
                if known is not None:
                    return known
            made = plan(self.metadata, self._clock())
            change = Change(made.events, client, request, request_checksum, made.reply)
            if made.events:
                await self._store.append(md.encode_change(change))
                for event in made.events:
                    md.apply(self.metadata, event)
                self.on_applied(made.events)
            self._replies.keep(change)
            if self._store.record_bytes > SNAPSHOT_EVERY_BYTES:
                await self._snapshot()
            return made.reply

    async def _snapshot(self) -> None:
        """Bound the replay. The change before it is durable already, so a full disk only puts this off."""
        try:
            await self._store.snapshot(md.encode_snapshot(self.metadata))
        except StorageError as error:
            log.warning("metadata_snapshot_failed", extra={"fields": {"error": str(error)}})
