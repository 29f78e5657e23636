"""The one writer: at most once over snapshots and restarts, events in order, replicas before answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shardserver.core import metadata_events as ev
from shardserver.core import metadata_writer
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_commands import create_stream, create_topic
from shardserver.core.metadata_events import Change
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot, encode_snapshot
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.placement import Placement
from shardserver.core.planning import Plan, PlanContext
from shardserver.core.replies import CLIENTS_KEPT, REPLIES_KEPT, KeptReply, RepliesKept
from shardserver.errors import Code, DiskFullError, RejectedError, StorageError
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.topics import CreateTopicRequest

CLIENT = b"\x07" * 16


class KeptStore:
    """A MetadataStore in memory. `snapshots` and `records` are what a restart finds. Hooks may wait or fail."""

    def __init__(self) -> None:
        self.snapshot_raw: bytes | None = None
        self.records: list[bytes] = []
        self.snapshots_count = 0
        self.fail: StorageError | None = None
        self.snapshot_may_end = asyncio.Event()
        self.snapshot_may_end.set()

    @property
    def record_bytes(self) -> int:
        return sum(map(len, self.records))

    async def append(self, payload: bytes) -> int:
        if self.fail is not None:
            raise self.fail
        self.records.append(payload)
        return len(self.records)

    async def replay(self, *, read_only: bool = False) -> tuple[bytes | None, list[bytes]]:
        return self.snapshot_raw, list(self.records)

    async def snapshot(self, payload: bytes) -> None:
        await self.snapshot_may_end.wait()
        if self.fail is not None:
            raise self.fail
        self.snapshot_raw, self.records = payload, []
        self.snapshots_count += 1


def stream(name: str) -> Callable[[Metadata, PlanContext], Plan]:
    return lambda metadata, context: create_stream(metadata, CreateStreamRequest(name, {}), context)


async def restart(store: KeptStore) -> MetadataWriter:
    writer = MetadataWriter(store, lambda: 99)
    await writer.recover()
    return writer


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize("snapshot", [False, True], ids=["records", "snapshot"])
def test_a_repeat_after_a_restart_gets_the_first_reply(snapshot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_writer, "SNAPSHOT_EVERY_BYTES", 0 if snapshot else 1 << 20)

    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)
        first = await writer.change(stream("orders"), client=CLIENT, request=1, request_checksum=b"a")
        assert first and store.snapshots_count == snapshot
        heir = await restart(store)
        assert await heir.change(stream("orders"), client=CLIENT, request=1, request_checksum=b"a") == first
        assert heir.metadata == writer.metadata and len(heir.metadata.streams) == 1
        with pytest.raises(RejectedError) as refused:
            await heir.change(stream("others"), client=CLIENT, request=1, request_checksum=b"b")
        assert refused.value.code == Code.INVALID_FORMAT

    run(play())


def test_what_is_forgotten_is_the_same_after_a_snapshot() -> None:
    kept = RepliesKept()
    for request in range(1, REPLIES_KEPT + 2):
        kept.keep(Change([], CLIENT, request, b"", b"%d" % request))
    again = RepliesKept(decode_snapshot(encode_snapshot(Snapshot(Metadata(), kept.rows()))).replies)
    for replies in (kept, again):
        assert replies.find(CLIENT, 2, b"") == b"2" and replies.find(CLIENT, 7, b"") is None
        with pytest.raises(RejectedError) as refused:
            replies.find(CLIENT, 1, b"")
        assert refused.value.code == Code.REQUEST_ALREADY_APPLIED
    assert again.rows() == kept.rows()


def test_the_client_that_was_silent_longest_is_forgotten_first_after_a_snapshot_too() -> None:
    def name(number: int) -> bytes:
        return number.to_bytes(16, "little")

    kept = RepliesKept([KeptReply(name(number), 1, b"", b"r") for number in range(CLIENTS_KEPT)])
    kept.keep(Change([], name(0), 2, b"", b"s"))
    again = RepliesKept(kept.rows())
    again.keep(Change([], name(CLIENTS_KEPT), 1, b"", b"t"))
    assert again.find(name(1), 1, b"") is None
    assert again.find(name(0), 1, b"") == b"r" and again.find(name(2), 1, b"") == b"r"


def test_a_snapshot_that_fails_is_tried_again_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_writer, "SNAPSHOT_EVERY_BYTES", 0)

    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)
        store.snapshot_may_end.clear()
        change = asyncio.ensure_future(writer.change(stream("a")))
        while not store.records:
            await asyncio.sleep(0)
        store.fail = DiskFullError("full")
        store.snapshot_may_end.set()
        await change
        assert len(store.records) == 1 and store.snapshots_count == 0
        store.fail = None
        await writer.change(stream("b"))
        assert store.records == [] and store.snapshots_count == 1
        assert (await restart(store)).metadata == writer.metadata

    run(play())


def test_a_store_that_fails_has_applied_replicated_and_kept_nothing() -> None:
    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)
        sent = collect(writer)
        store.fail = StorageError("broken")
        ended: list[StorageError] = []
        writer.on_store_failure = ended.append
        with pytest.raises(StorageError):
            await writer.change(stream("a"), client=CLIENT, request=1)
        assert ended == [store.fail]  # the process ends: its next one sees what is durable
        store.fail = DiskFullError("full")
        with pytest.raises(DiskFullError):
            await writer.change(stream("a"), client=CLIENT, request=1)
        assert len(ended) == 1
        store.fail = None
        assert writer.metadata == Metadata() and sent == []
        assert await writer.change(stream("a"), client=CLIENT, request=1)
        assert len(writer.metadata.streams) == 1

    run(play())


def collect(writer: MetadataWriter) -> list[tuple[int, bytes]]:
    sent: list[tuple[int, bytes]] = []

    async def replicate(revision: int, change: bytes) -> None:
        sent.append((revision, change))

    writer.replicate = replicate
    return sent


def test_a_replica_that_applies_what_is_sent_equals_the_writers() -> None:
    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)
        sent = collect(writer)
        await writer.change(stream("a"))
        await writer.change(lambda metadata, context: Plan())  # without events there is nothing to send
        created = CreateTopicRequest("a", 3, "t", {})
        await writer.change(lambda metadata, context: create_topic(metadata, created, context))
        await writer.change(lambda metadata, context: Plan([ev.BootEvent(), ev.TopicPurged(0, 0, [4, 5, 6])]))
        replica = Metadata()
        for revision, raw in sent:
            ev.apply_change(replica, ev.decode_change(raw))
            assert replica.revision == revision
        assert replica == writer.metadata and [revision for revision, _ in sent] == [1, 2, 4]

    run(play())


def test_a_change_is_answered_when_the_replicas_have_it_and_the_next_one_waits() -> None:
    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)
        may_go, seen = asyncio.Event(), []

        async def replicate(revision: int, change: bytes) -> None:
            seen.append((revision, len(writer.metadata.streams)))
            await may_go.wait()

        writer.replicate = replicate
        changes = [asyncio.ensure_future(writer.change(stream(name))) for name in ("a", "b")]
        while not seen:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert seen == [(1, 1)] and len(store.records) == 1 and not any(change.done() for change in changes)
        may_go.set()
        await asyncio.gather(*changes)
        assert seen == [(1, 1), (2, 2)]

    run(play())


def test_what_is_applied_is_told_before_it_is_replicated() -> None:
    async def play() -> None:
        writer = await restart(KeptStore())
        order: list[str] = []

        async def replicate(revision: int, change: bytes) -> None:
            order.append("replicated")

        writer.on_applied = lambda events: order.append("applied")
        writer.replicate = replicate
        await writer.change(stream("a"))
        assert order == ["applied", "replicated"]

    run(play())


def test_a_slow_replica_does_not_put_off_the_snapshot_and_both_end_before_the_next_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata_writer, "SNAPSHOT_EVERY_BYTES", 0)

    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)
        may_go = asyncio.Event()

        async def replicate(revision: int, change: bytes) -> None:
            await may_go.wait()

        writer.replicate = replicate
        changes = [asyncio.ensure_future(writer.change(stream(name))) for name in ("a", "b")]
        while not store.snapshots_count:
            await asyncio.sleep(0)
        assert not changes[0].done() and store.records == []
        may_go.set()
        await asyncio.gather(*changes)
        assert store.snapshots_count == 2

    run(play())


def test_when_replication_fails_a_repeat_gets_the_reply_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_writer, "SNAPSHOT_EVERY_BYTES", 0)

    async def play() -> None:
        store = KeptStore()
        writer = await restart(store)

        async def replicate(revision: int, change: bytes) -> None:
            raise RejectedError(Code.TRANSIENT_NOT_COMMITTED)

        writer.replicate = replicate
        with pytest.raises(RejectedError) as refused:
            await writer.change(stream("a"), client=CLIENT, request=1)
        assert refused.value.code == Code.TRANSIENT_NOT_COMMITTED and store.snapshots_count == 1
        for one in (writer, await restart(store)):
            assert await one.change(stream("a"), client=CLIENT, request=1)
            assert len(one.metadata.streams) == 1

    run(play())


def test_plans_are_given_time_placement_and_limit() -> None:
    async def play() -> None:
        placement = Placement("hash", shards=4)
        writer = MetadataWriter(KeptStore(), lambda: 7, placement=placement, partition_limit=12)
        seen: list[PlanContext] = []

        def plan(metadata: Metadata, context: PlanContext) -> Plan:
            seen.append(context)
            return Plan()

        await writer.change(plan)
        assert seen == [PlanContext(7, placement, 12)]

    run(play())
