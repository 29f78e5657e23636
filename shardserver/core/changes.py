"""Changes of metadata as a connection's shard asks for them: here on shard 0, over its ring elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import msgspec

from shardserver.core.authentication import PasswordVerifier
from shardserver.core.calls import Operation
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.passwords import check_repeat, prepare, without_passwords
from shardserver.core.permissions import check_right
from shardserver.core.planners import PLANNERS
from shardserver.core.planning import Plan, PlanContext
from shardserver.core.remote_owner import RemoteOwner
from shardserver.core.replication import Replication
from shardserver.errors import Code, RejectedError
from shardserver.protocol.frame import request_checksum
from shardserver.protocol.table import TABLE, Command
from shardserver.router.peers import Request


class ChangeRequest(msgspec.Struct, frozen=True):
    """A client's request. client, request: what a repeat has in common with the first one, beside its body.

    user_epoch: of the session, as the user's id may be another one's by the time this is planned; None: of none.
    """

    command: int
    user_id: int
    body: bytes
    client: bytes
    request: int
    user_epoch: int | None = None


class Changes(Protocol):
    async def change(self, request: ChangeRequest) -> bytes:
        """Plan, make durable, apply everywhere; gives the reply's payload.

        Raises:
            RejectedError: the plan refused it.
            BackpressureError: shard 0 is down (58), or has not answered in time (57).
        """
        ...


class WriterChanges:
    """On shard 0. A writer that has just started waits until every shard that serves follows it again."""

    def __init__(self, writer: MetadataWriter, replication: Replication, verifier: PasswordVerifier) -> None:
        self._writer, self._replication, self._verifier = writer, replication, verifier

    async def change(self, request: ChangeRequest) -> bytes:
        await self._replication.wait_complete()
        row = TABLE[Command(request.command)]
        decoded = row.request.decode(memoryview(request.body))

        checksum = request_checksum(without_passwords(row.command, request.body, decoded))
        known = self._writer.find_reply(request.client, request.request, checksum)
        if known is not None:  # what it changed may have taken the right to ask for it again
            await check_repeat(self._writer.metadata, self._verifier, row.command, decoded)
            return known
        check_caller(self._writer.metadata, request)
        check_right(self._writer.metadata, request.user_id, row, decoded)  # before work is put into it
        ready = await prepare(self._writer.metadata, self._verifier, request.user_id, row.command, decoded)

        def plan(metadata: Metadata, context: PlanContext) -> Plan:
            check_caller(metadata, request)
            check_right(metadata, request.user_id, row, decoded)
            asked = replace(context, user_id=request.user_id, client=request.client)
            return PLANNERS[row.command](metadata, ready, asked)

        if row.command is Command.CREATE_TOKEN:  # its reply holds the token, which is written nowhere
            return await self._writer.change(plan)
        return await self._writer.change(
            plan, client=request.client, request=request.request, request_checksum=checksum
        )

    async def serve(self, asked: Request) -> bytes:
        """The same for a peer's connection."""
        return await self.change(msgspec.msgpack.decode(asked.payload, type=ChangeRequest))


def check_caller(metadata: Metadata, request: ChangeRequest) -> None:
    """Raises RejectedError(40): the session that asked has ended, and its user's id may be another user's."""
    user = metadata.users.get(request.user_id)
    if request.user_epoch is None or (user is not None and user.spared == request.client):
        return
    if user is None or user.epoch != request.user_epoch:
        raise RejectedError(Code.UNAUTHENTICATED, f"user {request.user_id}")


class FollowerChanges:
    """On all others. When shard 0 dies in the middle, its next process is asked again, and knows what it has done."""

    def __init__(self, writer: RemoteOwner) -> None:
        self._writer = writer

    async def change(self, request: ChangeRequest) -> bytes:
        return await self._writer.control(Operation.CHANGE, msgspec.msgpack.encode(request))
