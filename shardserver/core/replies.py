"""At most once: the replies to a client's last changes, for when it repeats one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from shardserver.core.metadata_events import Change
from shardserver.errors import Code, RejectedError

REPLIES_KEPT = 5
CLIENTS_KEPT = 8192


class KeptReply(msgspec.Struct, frozen=True, array_like=True):
    """The row of a snapshot. Format: docs/formats/metadata-log.md, "Payloads"."""

    client: bytes
    request: int
    request_checksum: bytes
    reply: bytes


class RepliesKept:
    """The last replies of each client, by request number (protocol README 6.2).

    Rejections are not kept: nothing was changed, so a repeat is simply judged again.
    """

    def __init__(self, rows: Iterable[KeptReply] = ()) -> None:
        self._clients: OrderedDict[bytes, OrderedDict[int, KeptReply]] = OrderedDict()
        for row in rows:
            self._add(row)

    def find(self, client: bytes, request: int, checksum: bytes) -> bytes | None:
        """The first reply to this request. Raises RejectedError 4 (another body) or 59 (no longer kept)."""
        replies = self._clients.get(client)
        if not replies:
            return None
        if request in replies:
            known = replies[request]
            if any(known.request_checksum) and any(checksum) and known.request_checksum != checksum:
                raise RejectedError(Code.INVALID_FORMAT, f"request {request} with another body")
            return known.reply
        if len(replies) == REPLIES_KEPT and request < min(replies):
            raise RejectedError(Code.REQUEST_ALREADY_APPLIED, f"request {request}")
        return None

    def keep(self, change: Change) -> None:
        if change.client and change.request:
            self._add(KeptReply(change.client, change.request, change.request_checksum, change.reply))

    def _add(self, row: KeptReply) -> None:
        replies = self._clients.setdefault(row.client, OrderedDict())
        replies[row.request] = row
        self._clients.move_to_end(row.client)
        if len(replies) > REPLIES_KEPT:
            replies.popitem(last=False)
        if len(self._clients) > CLIENTS_KEPT:
            self._clients.popitem(last=False)

    def rows(self) -> list[KeptReply]:
        """All of them, those that are forgotten first in front; RepliesKept(rows) is the same again."""
        return [row for replies in self._clients.values() for row in replies.values()]
