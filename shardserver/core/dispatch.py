"""From a request to its reply: one table of commands, the rules before login, and how errors travel.

A reply is a list of buffers, or None: close the connection. Sends and data polls answer without a task where they can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import xxhash

from shardserver.core import handlers
from shardserver.core.context import ShardContext
from shardserver.core.metadata_commands import PLANNERS
from shardserver.core.sessions import Connection
from shardserver.errors import (
    BackpressureError,
    Code,
    CorruptionError,
    DiskFullError,
    RejectedError,
    ShardServerError,
)
from shardserver.protocol import frame as wire
from shardserver.protocol.commands import PROTOCOL_VERSION, LoginRequest, encode_login_reply
from shardserver.protocol.frame import Frame, RequestHeader

log = logging.getLogger(__name__)

OP_REGISTER, OP_READ, OP_LOGOUT = 1, 2, 3
OP_DELETE_SEGMENTS, OP_TRUNCATE_PARTITION = 138, 68
OP_SEND, OP_STORE_OFFSET, OP_DELETE_OFFSET = 160, 161, 162
CODE_PING = 1
METADATA_OPERATIONS = range(128, 150)
# Users, tokens and consumer groups: their issue is not done yet.
UNSERVED_OPERATIONS = range(139, 150)
UNSERVED_CODES = frozenset({11, 31, 32, 41, 102, 600, 601, 606})
EVICT_NO_SESSION, EVICT_CREDENTIALS, EVICT_PROTOCOL, EVICT_MALFORMED = 1, 9, 14, 15

Buffers = list[bytes | bytearray | memoryview]
ReadHandler = Callable[[ShardContext, Connection, memoryview], "Buffers | Awaitable[Buffers]"]

READS: dict[int, ReadHandler] = {
    10: handlers.get_stats,
    12: handlers.get_cluster_metadata,
    13: handlers.describe_options,
    20: handlers.get_me,
    21: handlers.get_client,
    22: handlers.get_clients,
    100: handlers.poll_messages,
    120: handlers.get_consumer_offset,
    200: handlers.get_stream,
    201: handlers.get_streams,
    300: handlers.get_topic,
    301: handlers.get_topics,
}


def code_of(error: ShardServerError) -> Code:
    """What a client is told of one of our errors."""
    match error:
        case RejectedError():
            return error.code
        case DiskFullError():
            return Code.DISK_FULL
        case CorruptionError():
            return Code.DAMAGED_BATCH
        case BackpressureError():
            return Code.TRANSIENT_NOT_ACCEPTED
        case _:
            return Code.IO_ERROR


class Dispatcher:
    """Answers requests of one shard."""

    def __init__(self, context: ShardContext) -> None:
        self._context = context

    def start(self, connection: Connection, frame: Frame, reply: Callable[[Buffers | None], None]) -> None:
        """Begin one request; reply is called once, now or later: with buffers, or None to close the connection."""
        header = frame.header
        try:
            if not _checksum_is_good(frame):
                reply([wire.encode_status(header, Code.INVALID_FORMAT)])
            elif header.operation == OP_SEND and connection.is_bound:
                self._send(frame, reply)
            else:
                self._answer(connection, frame, reply)
        except Exception as error:  # the boundary of decisions: an error of ours, or a bug that must not end the shard
            reply(self._explain(header, error))

    def _send(self, frame: Frame, reply: Callable[[Buffers | None], None]) -> None:
        header = frame.header

        def done(outcome: bytes | ShardServerError) -> None:
            if isinstance(outcome, ShardServerError):
                reply([wire.encode_status(header, code_of(outcome))])
            else:
                reply([wire.encode_reply_header(header, len(outcome)) + outcome])

        handlers.send_messages(self._context, frame.body, done)

    def _answer(self, connection: Connection, frame: Frame, reply: Callable[[Buffers | None], None]) -> None:
        outcome = self._route(connection, frame)
        if isinstance(outcome, list):
            reply(outcome)
            return
        task = asyncio.ensure_future(outcome)

        def finished(task: asyncio.Future[Buffers]) -> None:
            if task.cancelled():
                reply(None)
                return
            error = task.exception()
            reply(task.result() if error is None else self._explain(frame.header, error))

        task.add_done_callback(finished)

    def _explain(self, header: RequestHeader, error: BaseException) -> Buffers | None:
        if isinstance(error, ShardServerError):
            return [wire.encode_status(header, code_of(error))]
        log.error(
            "handler_failed", exc_info=error, extra={"fields": {"operation": header.operation, "code": header.code}}
        )
        return None

    def _route(self, connection: Connection, frame: Frame) -> Buffers | Awaitable[Buffers]:
        header = frame.header
        if header.operation == OP_REGISTER:
            return self._login(connection, frame)
        if header.operation == OP_LOGOUT:
            self._context.sessions.unbind(connection)
            return [wire.encode_status(header, 0)]
        if header.operation == OP_READ:
            return self._read(connection, frame)
        if not connection.is_bound:
            return [wire.encode_eviction(header, EVICT_NO_SESSION)]
        if header.operation in PLANNERS:
            return self._change(frame)
        if header.operation == OP_DELETE_SEGMENTS:
            return self._delete_segments(frame)
        if header.operation == OP_STORE_OFFSET:
            return self._result_framed(header, handlers.store_consumer_offset(self._context, frame.body))
        if header.operation == OP_DELETE_OFFSET:
            return self._result_framed(header, handlers.delete_consumer_offset(self._context, frame.body))
        code = Code.FEATURE_UNAVAILABLE if header.operation in UNSERVED_OPERATIONS else Code.INVALID_COMMAND
        return [wire.encode_status(header, code)]

    def _read(self, connection: Connection, frame: Frame) -> Buffers | Awaitable[Buffers]:
        header = frame.header
        if header.code == CODE_PING:
            return [wire.encode_status(header, 0)]
        if header.code in (38, 44):
            return [wire.encode_eviction(header, EVICT_MALFORMED)]
        if not connection.is_bound:
            return [wire.encode_status(header, Code.UNAUTHENTICATED)]
        handler = READS.get(header.code)
        if handler is None:
            code = Code.FEATURE_UNAVAILABLE if header.code in UNSERVED_CODES else Code.INVALID_COMMAND
            return [wire.encode_status(header, code)]
        body = handler(self._context, connection, frame.body)
        return _framed(header, body) if isinstance(body, list) else _framed_later(header, body)

    async def _result_framed(self, header: RequestHeader, work: Awaitable[None]) -> Buffers:
        await work
        return _framed(header, [wire.RESULT_OK])

    async def _change(self, frame: Frame) -> Buffers:
        header, body = frame.header, frame.body
        planner = PLANNERS[header.operation]
        try:
            payload = await self._context.writer.change(
                lambda metadata, now: planner(metadata, body, now),
                client=header.client,
                request=header.request,
                request_checksum=header.request_checksum,
            )
        except RejectedError as error:
            return _framed(header, [wire.encode_rejection(error.code)])
        return _framed(header, [wire.RESULT_OK, payload])

    async def _delete_segments(self, frame: Frame) -> Buffers:
        await handlers.delete_segments(self._context, frame.body)
        head = wire.encode_reply_header(frame.header, len(wire.RESULT_OK), operation=OP_TRUNCATE_PARTITION)
        return [head + wire.RESULT_OK]

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
        users = self._context.metadata.users.values()
        user = next((one for one in users if one.name == request.username and one.status == 1), None)
        good = await self._context.verifier.verify(user.password_hash if user else None, request.password)
        if not good or user is None:
            return [wire.encode_eviction(header, EVICT_CREDENTIALS if request.username else 10)]
        self._context.sessions.bind(connection, user.id, header.client)
        return self._login_reply(header, connection)

    def _login_reply(self, header: RequestHeader, connection: Connection) -> Buffers:
        payload = encode_login_reply(connection.user_id, connection.session, self._context.version)
        return _framed(header, [wire.RESULT_OK, payload])


def _checksum_is_good(frame: Frame) -> bool:
    checksum = int.from_bytes(frame.header.request_checksum, "little")
    return checksum == 0 or checksum == xxhash.xxh3_64_intdigest(frame.body)


def _framed(header: RequestHeader, body: Buffers) -> Buffers:
    return [wire.encode_reply_header(header, sum(map(len, body))), *body]


async def _framed_later(header: RequestHeader, body: Awaitable[Buffers]) -> Buffers:
    return _framed(header, await body)
