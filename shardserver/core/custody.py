"""Giving partitions from one shard's hands into another's: the steps, wherever that shard is (storage rule 18)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec

from shardserver.core.calls import Operation
from shardserver.errors import PeerGoneError, ShardServerError
from shardserver.router.answers import Answer
from shardserver.router.peer import Peer
from shardserver.storage.handover import ReleasedPartition

STEP_DEADLINE_S = 60.0


class Released(msgspec.Struct, frozen=True):
    """state: None when the partition was not released; it serves on, and error says why."""

    uid: int
    state: ReleasedPartition | None
    error: str = ""


class Arrival(msgspec.Struct, frozen=True):
    """term: the one that the partition has from the move on."""

    uid: int
    term: int
    state: ReleasedPartition


class Custodian(Protocol):
    """A shard that holds partitions. All steps may raise StorageError, BackpressureError."""

    @property
    def generation(self) -> int:
        """Another number for each process of the shard: what one has released or adopted, the next does not know of."""
        ...

    async def release(self, uids: list[int]) -> list[Released]:
        """Drain, flush, sync, close: from now on they are refused (58)."""
        ...

    async def adopt(self, arrivals: list[Arrival]) -> None:
        """Journal and sync what they are; they serve once the metadata says that they are this shard's."""
        ...

    async def resume(self, uids: list[int]) -> None:
        """The move was given up: serve those that were released again."""
        ...

    async def abandon(self, uids: list[int]) -> None:
        """The move was given up: forget those that were adopted."""
        ...


class RemoteCustodian:
    """Another shard, asked over its ring. A step is never repeated: whoever died meanwhile has recovered."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @property
    def generation(self) -> int:
        return self._peer.generation

    async def release(self, uids: list[int]) -> list[Released]:
        return msgspec.msgpack.decode(await self._ask(Operation.RELEASE, uids), type=list[Released])

    async def adopt(self, arrivals: list[Arrival]) -> None:
        await self._ask(Operation.ADOPT, arrivals)

    async def resume(self, uids: list[int]) -> None:
        await self._ask(Operation.RESUME, uids)

    async def abandon(self, uids: list[int]) -> None:
        await self._ask(Operation.ABANDON, uids)

    async def _ask(self, operation: Operation, content: Any) -> bytes:
        return await ask_once(self._peer, operation, msgspec.msgpack.encode(content))


def ask_once(peer: Peer, operation: Operation, payload: bytes, deadline_s: float = STEP_DEADLINE_S) -> Awaitable[bytes]:
    """A control request that its process answers, or nobody. Raises PeerGoneError when it died or is late."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def answered(outcome: Answer | ShardServerError) -> None:
        if future.done():
            return
        if isinstance(outcome, ShardServerError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome.joined())

    question = peer.ask(operation, b"", payload, answered, survives=False)

    async def wait() -> bytes:
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            peer.give_up(question)
            raise PeerGoneError(f"no answer of shard {peer.number} in {deadline_s:g} s") from None

    return wait()
