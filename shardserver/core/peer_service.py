"""What this shard does for its peers: one table from operation to handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from shardserver.core.calls import U64, CutCall, OffsetCall, Operation, PollCall, SendCall
from shardserver.core.local_owner import LocalOwner
from shardserver.errors import RejectedError, ShardServerError, StorageError
from shardserver.router.answers import Answer
from shardserver.router.peer import Answered, Request

log = logging.getLogger(__name__)

ControlHandler = Callable[[Request], "bytes | Awaitable[bytes]"]


class PeerService:
    """Serves requests of peers. `control`: handlers of control operations; they answer msgpack."""

    def __init__(self, owner: LocalOwner) -> None:
        self._owner = owner
        self.control: dict[int, ControlHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, request: Request, answer: Answered) -> None:
        """answer is called once, now or later, whatever happens."""
        try:
            self._start(request, answer)
        except Exception as error:  # the boundary: an error of ours travels, a bug is logged and travels as one
            answer(_explain(request, error))

    def _start(self, request: Request, answer: Answered) -> None:
        if request.operation == Operation.SEND:
            self._send(request, answer)
        elif request.operation == Operation.POLL:
            outcome = self._owner.poll(PollCall.decode(request.inline))
            if isinstance(outcome, list):
                answer(Answer(b"", outcome))
            else:
                self._later(request, answer, _poll_answer(outcome))
        elif request.operation < Operation.CONTROL:
            self._later(request, answer, self._partition_call(request))
        else:
            self._later(request, answer, self._control_call(request))

    def _later(self, request: Request, answer: Answered, work: Awaitable[Answer]) -> None:
        task = asyncio.get_running_loop().create_task(_answer_later(request, answer, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, request: Request, answer: Answered) -> None:
        """The shard of the connection has verified the batch, and nobody writes in its arena but itself."""
        call = SendCall.decode(request.inline)
        self._owner.send_from_peer(call, request.payload, partial(_answer_send, answer), is_repeat=request.is_repeat)

    async def _partition_call(self, request: Request) -> Answer:
        inline, owner = request.inline, self._owner
        match request.operation:
            case Operation.GET_OFFSET:
                current, stored = owner.get_offset(OffsetCall.decode(inline))
                return Answer(U64.pack(current) + U64.pack(stored or 0) + bytes([stored is not None]))
            case Operation.STORE_OFFSET:
                await owner.store_offset(OffsetCall.decode(inline))
            case Operation.DELETE_OFFSET:
                await self._delete_offset(request)
            case Operation.FIND_CUT:
                return Answer(U64.pack(await owner.find_cut(CutCall.decode(inline))))
            case Operation.CUT:
                await owner.cut(CutCall.decode(inline))
            case _:
                raise ShardServerError(f"unknown operation {request.operation} of shard {request.peer}")
        return Answer()

    async def _delete_offset(self, request: Request) -> None:
        try:
            await self._owner.delete_offset(OffsetCall.decode(request.inline))
        except RejectedError:
            if not request.is_repeat:  # else the former process of this shard has done it, and died before its answer
                raise

    async def _control_call(self, request: Request) -> Answer:
        handler = self.control.get(request.operation)
        if handler is None:
            raise ShardServerError(f"unknown operation {request.operation} of shard {request.peer}")
        outcome = handler(request)
        return Answer(b"", [outcome if isinstance(outcome, bytes) else await outcome])


def _answer_send(answer: Answered, outcome: int | ShardServerError) -> None:
    answer(outcome if isinstance(outcome, ShardServerError) else Answer(U64.pack(outcome)))


async def _poll_answer(body: Awaitable[list[bytes | bytearray | memoryview]]) -> Answer:
    return Answer(b"", await body)


async def _answer_later(request: Request, answer: Answered, work: Awaitable[Answer]) -> None:
    try:
        answer(await work)
    except Exception as error:  # as in serve
        answer(_explain(request, error))


def _explain(request: Request, error: Exception) -> ShardServerError:
    if isinstance(error, ShardServerError):
        return error
    fields = {"peer": request.peer, "operation": request.operation}
    log.error("peer_request_failed", exc_info=error, extra={"fields": fields})
    return StorageError(f"a request failed inside the server: {error!r}")
