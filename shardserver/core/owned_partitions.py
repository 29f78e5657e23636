"""Keeps the logs of this shard what its replica says: partitions that are ours, and files of those that are dead."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.calls import Operation
from shardserver.core.custody import Arrival, Released
from shardserver.core.identity import identity_of
from shardserver.core.identity_keeper import IdentityKeeper
from shardserver.core.local_owner import LocalOwner
from shardserver.core.metadata import Metadata
from shardserver.core.peer_service import ControlHandler
from shardserver.core.shards import decode_uids
from shardserver.errors import CorruptionError, NotOwnerError, ShardServerError, StorageError
from shardserver.protocol.options import PLAIN_DEFAULTS, TopicDefaults
from shardserver.router.peers import Request
from shardserver.storage.settings import Durability, PartitionIdentity
from shardserver.storage.shard_log import ShardLog

log = logging.getLogger(__name__)

# Between two tries of what nobody else asks for again; doubled from one to the next.
RETRY_S, RETRY_LIMIT_S = 1.0, 30.0


def owned_identities(
    metadata: Metadata, shard: int, durability: Durability, topic_defaults: TopicDefaults = PLAIN_DEFAULTS
) -> list[PartitionIdentity]:
    """Of all live partitions of a shard."""
    return [
        identity_of(stream, topic, partition, durability, topic_defaults)
        for stream, topic in _all_topics(metadata)
        for partition in topic.partitions
        if partition.shard == shard
    ]


class OwnedPartitions:
    """Owned by one shard's loop. report_removed: tells the metadata that the files of dead partitions are gone."""

    def __init__(
        self,
        shard: int,
        shards: int,
        local: LocalOwner,
        durability: Durability,
        metadata: Callable[[], Metadata],
        report_removed: Callable[[list[int]], Awaitable[None]],
        topic_defaults: TopicDefaults = PLAIN_DEFAULTS,
    ) -> None:
        self._shard, self._shards, self._local, self._durability = shard, shards, local, durability
        self.topic_defaults = topic_defaults
        self._metadata = metadata
        self._report_removed = report_removed
        self._removing: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        self._released: set[int] = set()
        self._adopted: set[int] = set()
        self._unresumed: set[int] = set()
        self._identities = IdentityKeeper(lambda: self._local.logs)
        self._relabelled: list[int] = []  # by the change that is being applied
        self.generation = 0  # a process sees itself once

    def reconcile(self, events: list[ev.Event] | None = None) -> None:
        """New partitions begin, dead ones end at once and lose their files later.

        events: the change that was applied, to look at its topics only; None: anything may be new, and the writer too.

        Raises:
            CorruptionError: a partition moves here that was not adopted.
        """
        logs, metadata = self._local.logs, self._metadata()
        if logs is None:
            return
        topics = _all_topics(metadata) if events is None else _touched_topics(metadata, events)
        self._refuse_strangers(logs, events or [])
        for stream, topic in topics:
            for partition in topic.partitions:
                self._match(logs, stream, topic, partition)
        live = None if events is not None else {one.uid for _, one in metadata.live_partitions()}
        for uid in [one.uid for one in logs.partitions if one.uid not in live] if live is not None else metadata.dying:
            self._forget(logs, uid)
        self._identities.look_at(self._relabelled)
        self._relabelled = []
        if events is None and self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle())
        if self._removing is None and self._dying():
            self._removing = asyncio.get_running_loop().create_task(self._remove_dead_files())

    def stop(self) -> None:
        """Before the logs close: what is not removed yet is so by the next start."""
        for task in (self._removing, self._settling, self._resuming):
            if task is not None:
                task.cancel()

    def _refuse_strangers(self, logs: ShardLog, events: list[ev.Event]) -> None:
        """An empty log in the place of one that was not adopted would hide its messages: recover instead."""
        for move in [move for event in events if isinstance(event, ev.PartitionsMoved) for move in event.moves]:
            place = (move.stream_id, move.topic_id, move.partition_id, move.uid)
            found = self._metadata().find_partition(*place)
            if found is not None and found.shard == self._shard and logs.find_partition(move.uid) is None:
                raise CorruptionError("metadata replica", 0, f"partition {move.uid} to be adopted before it is ours")

    def _match(self, logs: ShardLog, stream: md.Stream, topic: md.Topic, partition: md.Partition) -> None:
        uid = partition.uid
        if partition.shard != self._shard:
            if uid not in self._adopted:
                self._forget(logs, uid)
            return
        identity = identity_of(stream, topic, partition, self._durability, self.topic_defaults)
        known = logs.find_partition(uid)
        if known is None:
            logs.create_partition(identity)
        else:
            known.identity = identity
        if uid in self._adopted:
            self._adopted.discard(uid)
            logs.moves.activate_partition(uid)
        if known is not None:
            self._relabelled.append(uid)

    def _forget(self, logs: ShardLog, uid: int) -> None:
        if logs.find_partition(uid) is not None:
            logs.forget_partition(uid)
            self._local.load.forget(uid)
        self._released.discard(uid)
        self._adopted.discard(uid)
        self._unresumed.discard(uid)

    def _dying(self) -> list[int]:
        """Ours, and on shard 0 those of shards that are gone."""
        return sorted(
            uid
            for uid, shard in self._metadata().dying.items()
            if shard == self._shard or (self._shard == 0 and shard >= self._shards)
        )

    async def _remove_dead_files(self) -> None:
        """Survives a crash in the middle: the uids stay in `dying` until their files are gone."""
        pause_s = RETRY_S
        try:
            while dying := self._dying():
                try:
                    await self._remove(dying)
                    pause_s = RETRY_S
                except ShardServerError as error:  # such as shard 0 being down
                    log.warning("dead_files_not_removed", extra={"fields": {"shard": self._shard, "error": str(error)}})
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_LIMIT_S)
        finally:
            self._removing = None

    async def _remove(self, uids: list[int]) -> None:
        if self._logs.failed is not None:  # such as read-only: it writes nothing
            raise self._logs.failed
        for uid in uids:
            await self._logs.remove_files(uid)
        await self._report_removed(uids)

    # Moves: this shard as custodian (custody.py). One step at a time, in the order in which they were asked for.

    @property
    def _logs(self) -> ShardLog:
        if self._local.logs is None:
            raise NotOwnerError("the shard recovers")
        return self._local.logs

    async def release(self, uids: list[int]) -> list[Released]:
        async with self._moving:
            try:
                states = await self._logs.moves.release_partitions(uids)
                released = [Released(uid, state) for uid, state in zip(uids, states, strict=True)]
            except (ShardServerError, KeyError):  # one of them cannot: which, shows when each is asked alone
                released = [await self._release_one(uid) for uid in uids]
            self._released.update(one.uid for one in released if one.state is not None)
            return released

    async def _release_one(self, uid: int) -> Released:
        try:
            return Released(uid, await self._logs.moves.release_partition(uid))
        except KeyError:
            return Released(uid, None, "it is not here")
        except ShardServerError as error:
            return Released(uid, None, str(error))

    async def adopt(self, arrivals: list[Arrival]) -> None:
        async with self._moving:
            places = {
                partition.uid: (stream, topic, partition)
                for stream, topic in _all_topics(self._metadata())
                for partition in topic.partitions
            }
            wanted = []
            for one in arrivals:
                if one.uid not in places:
                    raise StorageError(f"partition {one.uid} was deleted meanwhile")
                identity = identity_of(*places[one.uid], self._durability, self.topic_defaults)
                wanted.append((dataclasses.replace(identity, term=one.term), one.state))
            uids = {one.uid for one in arrivals}
            self._adopted |= uids  # before they are in the logs, so that no change that is applied meanwhile ends them
            try:
                await self._logs.moves.adopt_partitions(wanted)
            except BaseException:
                self._adopted -= uids
                raise

    async def resume(self, uids: list[int]) -> None:
        """Raises StorageError: some of them could not be opened; they are tried again in the background."""
        async with self._moving:
            await self._resume(uids)

    async def _resume(self, uids: Iterable[int]) -> None:
        """One that fails, such as one deleted at this moment, keeps no other one from being served."""
        failure: StorageError | None = None
        for uid in sorted(uids):
            try:
                if self._logs.find_partition(uid) is not None:
                    await self._logs.moves.resume_partition(uid)
                self._released.discard(uid)
                self._unresumed.discard(uid)
            except StorageError as error:
                log.warning("partition_not_resumed", extra={"fields": {"partition": uid, "error": str(error)}})
                self._unresumed.add(uid)
                failure = error
        if failure is not None:
            if self._resuming is None:
                self._resuming = asyncio.get_running_loop().create_task(self._resume_again())
            raise failure

    async def _resume_again(self) -> None:
        pause_s = RETRY_S
        while self._unresumed:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_LIMIT_S)
            async with self._moving:
                with contextlib.suppress(StorageError):
                    await self._resume(self._unresumed)
        self._resuming = None

    async def abandon(self, uids: list[int]) -> None:
        async with self._moving:
            self._abandon(uids)

    def _abandon(self, uids: Iterable[int]) -> None:
        for uid in self._adopted.intersection(uids):
            self._forget(self._logs, uid)

    async def _settle(self) -> None:
        """The writer of the metadata has begun anew: what its former process was moving stays where metadata says."""
        async with self._moving:
            self._abandon(self._adopted)
            with contextlib.suppress(StorageError):  # logged, and tried again
                await self._resume(self._released)
        self._settling = None

    def control_handlers(self) -> dict[int, ControlHandler]:
        """The steps as a peer asks for them."""
        return {
            Operation.RELEASE: self._serve_release,
            Operation.ADOPT: self._serve_adopt,
            Operation.RESUME: self._serve_resume,
            Operation.ABANDON: self._serve_abandon,
        }

    async def _serve_release(self, asked: Request) -> bytes:
        return msgspec.msgpack.encode(await self.release(decode_uids(asked.payload)))

    async def _serve_adopt(self, asked: Request) -> bytes:
        await self.adopt(msgspec.msgpack.decode(asked.payload, type=list[Arrival]))
        return b""

    async def _serve_resume(self, asked: Request) -> bytes:
        await self.resume(decode_uids(asked.payload))
        return b""

    async def _serve_abandon(self, asked: Request) -> bytes:
        await self.abandon(decode_uids(asked.payload))
        return b""


Named = tuple[md.Stream, md.Topic]


def _all_topics(metadata: Metadata) -> list[Named]:
    return [(stream, topic) for stream in metadata.streams.values() for topic in stream.topics.values()]


def _touched_topics(metadata: Metadata, events: list[ev.Event]) -> list[Named]:
    """Those that are still there. What a deletion ends is in `dying`."""
    places: set[tuple[int, int]] = set()
    for event in events:
        match event:
            case ev.PartitionsMoved(moves):
                places |= {(one.stream_id, one.topic_id) for one in moves}
            case (
                ev.TopicCreated() | ev.TopicUpdated() | ev.TopicPurged() | ev.PartitionsAdded() | ev.PartitionsRemoved()
            ):
                places.add((event.stream_id, event.id))
            case ev.StreamRenamed(id) if id in metadata.streams:
                places |= {(id, topic) for topic in metadata.streams[id].topics}
    streams = metadata.streams
    return [(streams[s], streams[s].topics[t]) for s, t in sorted(places) if s in streams and t in streams[s].topics]
