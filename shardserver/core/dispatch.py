"""From a request to its reply: handlers of the commands in protocol/table.py, the rules before login, errors.

A row without a handler here is a feature not offered (5); what has no row is no command (3).
A reply is a list of buffers, and whether the connection is closed behind it. Sends and data polls answer without a
task where they can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from shardserver.core import group_handlers, handlers, user_handlers
from shardserver.core.changes import ChangeRequest
from shardserver.core.context import ShardContext
from shardserver.core.logins import LoginRefusedError
from shardserver.core.metadata import User
from shardserver.core.permissions import check_right
from shardserver.core.planners import PLANNERS
from shardserver.core.sessions import EVICT_NO_SESSION, Connection, LastLeave
from shardserver.errors import (
    BackpressureError,
    Code,
    CorruptionError,
    DiskFullError,
    NotCommittedError,
    RejectedError,
    ShardServerError,
)
from shardserver.protocol import frame as wire
from shardserver.protocol.frame import Frame, RequestHeader
from shardserver.protocol.login import PROTOCOL_VERSION, LoginReply, LoginRequest
from shardserver.protocol.messages import SendRequest
from shardserver.protocol.table import (
    OP_READ,
    OP_SEND,
    OP_TRUNCATE_PARTITION,
    RETIRED_LOGIN_CODES,
    TABLE,
    Command,
    Right,
    Row,
    find_row,
)

log = logging.getLogger(__name__)

EVICT_PROTOCOL, EVICT_MALFORMED = 14, 15

Buffers = list[bytes | bytearray | memoryview]
Reply = Callable[[Buffers, bool], None]
# The request is a value of the row's request codec.
ReadHandler = Callable[[ShardContext, Connection, Any], "Buffers | Awaitable[Buffers]"]
ChangeHandler = Callable[[ShardContext, Connection, Any], Awaitable[None]]

READS: dict[Command, ReadHandler] = {
    Command.GET_STATS: handlers.get_stats,
    Command.GET_SNAPSHOT: handlers.get_snapshot,
    Command.GET_CLUSTER_METADATA: handlers.get_cluster_metadata,
    Command.DESCRIBE_OPTIONS: handlers.describe_options,
    Command.GET_ME: handlers.get_me,
    Command.GET_CLIENT: handlers.get_client,
    Command.GET_CLIENTS: handlers.get_clients,
    Command.POLL_MESSAGES: handlers.poll_messages,
    Command.GET_OFFSET: handlers.get_consumer_offset,
    Command.GET_STREAM: handlers.get_stream,
    Command.GET_STREAMS: handlers.get_streams,
    Command.GET_TOPIC: handlers.get_topic,
    Command.GET_TOPICS: handlers.get_topics,
    Command.GET_USER: user_handlers.get_user,
    Command.GET_USERS: user_handlers.get_users,
    Command.GET_TOKENS: user_handlers.get_tokens,
    Command.GET_GROUP: group_handlers.get_group,
    Command.GET_GROUPS: group_handlers.get_groups,
    Command.SYNC_GROUP: group_handlers.sync_group,
}
# Changes that do not pass the metadata writer; their replies hold no payload.
CHANGES: dict[Command, ChangeHandler] = {
    Command.STORE_OFFSET: handlers.store_consumer_offset,
    Command.DELETE_OFFSET: handlers.delete_consumer_offset,
    Command.DELETE_SEGMENTS: handlers.delete_segments,
    Command.JOIN_GROUP: group_handlers.join_group,
    Command.LEAVE_GROUP: group_handlers.leave_group,
}
SEND_ROW = TABLE[Command.SEND_MESSAGES]


def code_of(error: ShardServerError) -> Code:
    """What a client is told of one of our errors."""
    match error:
        case RejectedError():
            return error.code
        case DiskFullError():
            return Code.DISK_FULL
        case CorruptionError():
            return Code.DAMAGED_BATCH
        case NotCommittedError():
            return Code.TRANSIENT_NOT_COMMITTED
        case BackpressureError():
            return Code.TRANSIENT_NOT_ACCEPTED
        case _:
            return Code.IO_ERROR


class Dispatcher:
    """Answers requests of one shard."""

    def __init__(self, context: ShardContext) -> None:
        self._context = self.context = context

    def close(self) -> None:
        self._context.logins.close()

    def start(self, connection: Connection, frame: Frame, reply: Reply) -> None:
        """Begin one request; reply is called once, now or later."""
        header = frame.header
        try:
            if not _checksum_is_good(frame):
                reply([wire.encode_status(header, Code.INVALID_FORMAT)], False)
            elif header.operation == OP_SEND and connection.is_bound:
                self._send(connection, frame, reply)
            else:
                self._answer(connection, frame, reply)
        except Exception as error:  # the boundary of decisions: an error of ours, or a bug that must not end the shard
            reply(*self._explain(header, error))

    def _send(self, connection: Connection, frame: Frame, reply: Reply) -> None:
        header = frame.header

        def done(outcome: bytes | ShardServerError) -> None:
            if isinstance(outcome, ShardServerError):
                reply([wire.encode_status(header, code_of(outcome))], False)
            else:
                reply([wire.encode_reply_header(header, len(outcome)) + outcome], False)

        request = SendRequest.decode(frame.body)
        check_right(self._context.metadata, connection.user_id, SEND_ROW, request)
        handlers.send_messages(self._context, connection, request, done)

    def _answer(self, connection: Connection, frame: Frame, reply: Reply) -> None:
        outcome = self._route(connection, frame)
        if isinstance(outcome, list):
            reply(outcome, False)
            return
        task = asyncio.ensure_future(outcome)

        def finished(task: asyncio.Future[Buffers]) -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                reply(task.result(), False)
            else:
                reply(*self._explain(frame.header, error))

        task.add_done_callback(finished)

    def _explain(self, header: RequestHeader, error: BaseException) -> tuple[Buffers, bool]:
        """The reply to what was raised. Anything but our own errors is a bug: answer 1, close, log the traceback."""
        if isinstance(error, ShardServerError):
            return [wire.encode_status(header, code_of(error))], False
        log.error(
            "handler_failed", exc_info=error, extra={"fields": {"operation": header.operation, "code": header.code}}
        )
        return [wire.encode_status(header, Code.ERROR)], True

    def _route(self, connection: Connection, frame: Frame) -> Buffers | Awaitable[Buffers]:
        header = frame.header
        row = find_row(header.operation, header.code)
        if header.operation == OP_READ and header.code in RETIRED_LOGIN_CODES:
            return [wire.encode_eviction(header, EVICT_MALFORMED)]
        if row is not None and row.right is Right.OPEN:
            return self._answer_open(connection, frame, row)
        if not connection.is_bound and header.operation == OP_READ and not connection.ended_by:
            return [wire.encode_status(header, Code.UNAUTHENTICATED)]
        if not connection.is_bound:
            return [wire.encode_eviction(header, connection.ended_by or EVICT_NO_SESSION)]
        if row is None:
            return [wire.encode_status(header, Code.INVALID_COMMAND)]
        return self._answer_bound(connection, frame, row)

    def _answer_open(self, connection: Connection, frame: Frame, row: Row) -> Buffers | Awaitable[Buffers]:
        if row.command is Command.LOGIN:
            return self._login(connection, frame)
        if row.command is Command.LOGOUT:
            self._context.sessions.unbind(connection)
        return [wire.encode_status(frame.header, 0)]

    def _answer_bound(self, connection: Connection, frame: Frame, row: Row) -> Buffers | Awaitable[Buffers]:
        if row.command in READS:
            return self._read(connection, frame, row)
        if row.command in PLANNERS:
            return self._plan(connection, frame, row)
        if row.command in CHANGES:
            return self._change(connection, frame, row)
        return [wire.encode_status(frame.header, Code.FEATURE_UNAVAILABLE)]

    def _read(self, connection: Connection, frame: Frame, row: Row) -> Buffers | Awaitable[Buffers]:
        request = row.request.decode(frame.body)
        check_right(self._context.metadata, connection.user_id, row, request)
        body = READS[row.command](self._context, connection, request)
        return _framed(frame.header, body) if isinstance(body, list) else _framed_later(frame.header, body)

    async def _plan(self, connection: Connection, frame: Frame, row: Row) -> Buffers:
        """A change of metadata. What the plan refuses is told in the result section."""
        header = frame.header
        body, epoch = bytes(frame.body), connection.user_epoch
        asked = ChangeRequest(row.command, connection.user_id, body, header.client, header.request, epoch)
        try:
            payload = await self._context.changes.change(asked)
        except RejectedError as error:
            return _framed(header, [wire.encode_rejection(error.code)])
        return _framed(header, [wire.RESULT_OK, payload])

    async def _change(self, connection: Connection, frame: Frame, row: Row) -> Buffers:
        """Errors travel in the status. Without a result section of its own, a reply takes the operation of one."""
        if row.command is not Command.LEAVE_GROUP:
            await self._carry_out(connection, frame.body, row)
        else:
            await self._leave_once(connection, frame, row)
        operation = row.operation if row.has_result_section else OP_TRUNCATE_PARTITION
        return [wire.encode_reply_header(frame.header, len(wire.RESULT_OK), operation=operation), wire.RESULT_OK]

    async def _carry_out(self, connection: Connection, body: memoryview, row: Row) -> None:
        request = row.request.decode(body)
        check_right(self._context.metadata, connection.user_id, row, request)
        await CHANGES[row.command](self._context, connection, request)

    async def _leave_once(self, connection: Connection, frame: Frame, row: Row) -> None:
        """A repeat of the last one is answered as that was (protocol README 6.2); number 0 is none.

        After 57 it is carried out again: who is no member by then has left. Raises RejectedError(4): another body.
        """
        last = connection.last_leave
        asked = LastLeave(frame.header.client, frame.header.request, wire.request_checksum(frame.body))
        is_repeat = last is not None and asked.repeats(last)
        if last is not None and is_repeat and last.is_done:
            return
        try:
            await self._carry_out(connection, frame.body, row)
        except NotCommittedError:
            connection.last_leave = msgspec.structs.replace(asked, is_done=False)
            raise
        except RejectedError as error:
            if not is_repeat or error.code is not Code.GROUP_MEMBER_NOT_FOUND:
                raise
        connection.last_leave = asked

    async def _login(self, connection: Connection, frame: Frame) -> Buffers:
        header = frame.header
        try:
            request = LoginRequest.decode(frame.body)
        except RejectedError:
            return [wire.encode_eviction(header, EVICT_MALFORMED)]
        version = request.protocol_version
        if version < PROTOCOL_VERSION or version >> 10 > PROTOCOL_VERSION >> 10:
            return [wire.encode_eviction(header, EVICT_PROTOCOL, PROTOCOL_VERSION, PROTOCOL_VERSION)]
        if connection.is_bound and connection.client == header.client:
            return self._login_reply(header, connection)
        try:
            user = await self._authenticate(connection, request)
        except LoginRefusedError as error:
            return [wire.encode_eviction(header, error.reason)]
        self._context.sessions.bind(connection, user.id, header.client, user.epoch)
        return self._login_reply(header, connection)

    async def _authenticate(self, connection: Connection, request: LoginRequest) -> User:
        context = self._context
        if request.username is None:
            return context.logins.by_token(context.metadata, request.password, context.clock())
        return await context.logins.by_password(
            lambda: context.metadata, connection.address, request.username, request.password
        )

    def _login_reply(self, header: RequestHeader, connection: Connection) -> Buffers:
        reply = LoginReply(connection.user_id, connection.session, PROTOCOL_VERSION, self._context.version)
        return _framed(header, [wire.RESULT_OK, reply.encode()])


def _checksum_is_good(frame: Frame) -> bool:
    checksum = frame.header.request_checksum
    return not any(checksum) or checksum == wire.request_checksum(frame.body)


def _framed(header: RequestHeader, body: Buffers) -> Buffers:
    return [wire.encode_reply_header(header, sum(map(len, body))), *body]


async def _framed_later(header: RequestHeader, body: Awaitable[Buffers]) -> Buffers:
    return _framed(header, await body)
