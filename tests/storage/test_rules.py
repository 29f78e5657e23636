"""Single cases of the storage rules that lives drawn at random seldom meet."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from shardserver.errors import CorruptionError, DiskFullError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.journal import create_journal
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, PartitionIdentity
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import (
    SyncFaults,
    cut_synced,
    sync_directory_noted,
    write_group_synced,
    write_synced,
)
from tests.fault_disk import FaultDisk, FaultFile, HoldingDisk
from tests.storage.journal_world import World
from tests.storage.log_world import SETTINGS, abandon, append, made_disk, open_logs, read_numbers, ticking_clock
from tests.storage.scenarios import until_dead


async def append_and_flush(logs: ShardLog, number: int) -> None:
    await append(logs, 1, 1, number)
    await logs.flush_partitions([logs.partition(1)])


def segment_of(logs: ShardLog) -> tuple[str, int]:
    active = logs.partition(1).segments[-1]
    return active.path, active.end


def put_behind(disk: FaultDisk, path: str, end: int, data: bytes) -> None:
    node = disk.files[path]
    for contents in (node.current, node.durable):
        del contents[end:]
        contents += data


async def bytes_of_two_runs(disk: FaultDisk, first: int) -> bytes:
    """What two runs of one message each leave behind the same beginning, on another disk."""
    logs = await open_logs(disk)
    await append_and_flush(logs, 1)
    path, end = segment_of(logs)
    for number in (first, first + 1):
        await append_and_flush(logs, number)
    abandon(logs)
    return bytes(disk.files[path].current[end:])


def test_what_came_behind_a_direct_run_is_not_acknowledged_before_it_nor_without_it() -> None:
    """Rule 3: journaled beside the run, it would be answered, and after a crash have a gap before it."""
    disk = HoldingDisk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        await append_and_flush(logs, 0)  # the partition has its segment
        disk.held = ".log"
        run = asyncio.ensure_future(append(logs, 1, 1, 1, size=SETTINGS.direct_bytes))
        while not logs.partition(1).running:
            await asyncio.sleep(0)
        behind = asyncio.ensure_future(append(logs, 1, 1, 2))
        await append(logs, 2)  # another partition's goes through the journal
        for _ in range(100):
            await asyncio.sleep(0)
        assert not run.done() and not behind.done()
        logs_after = await open_logs(disk.after_power_loss(1))
        assert await read_numbers(logs_after, 1) == [0]
        abandon(logs_after)
        disk.held = None
        assert (await run, await behind) == (1, 2)
        await logs.close()

    asyncio.run(life())


def test_a_whole_leftover_behind_a_torn_one_does_not_come_back() -> None:
    """Rule 4: the run [X1 torn, X2 whole], a crash, Y1 of X1's size, Y2 journaled, a crash: Y2 is there, and not X2."""
    disk, other = made_disk(1), made_disk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        await append_and_flush(logs, 1)
        abandon(logs)
        path, end = segment_of(logs)
        left = await bytes_of_two_runs(other, first=7)
        assert len(left) == 2 * fmt.BLOCK_BYTES
        put_behind(disk, path, end, bytes(fmt.BLOCK_BYTES) + left[fmt.BLOCK_BYTES :])
        logs = await open_logs(disk)
        await append_and_flush(logs, 2)
        await append(logs, 1, 1, 3)
        abandon(logs)
        logs = await open_logs(disk.after_power_loss(1))
        assert await read_numbers(logs, 1) == [1, 2, 3]
        abandon(logs)

    asyncio.run(life())


@pytest.mark.parametrize("journaled", [True, False], ids=["by the journal", "by a run alone"])
def test_an_offset_that_was_cut_stays_cut_when_the_log_has_grown_past_it_again(journaled: bool) -> None:
    """Rule 13, `memory`: commit 19, crash to 10, write to 40, crash: the stored offset is 9."""
    disk = made_disk(1)

    async def life() -> None:
        logs = await open_logs(disk, Durability.MEMORY)
        await append(logs, 1, 10)
        await logs.flush_partitions([logs.partition(1)])
        await append(logs, 1, 10, 10)
        for log in logs._turn.dirty_logs():
            logs._turn.take(log)  # the offset is journaled, the messages are not
        outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        logs.offsets.store(logs.partition(1), 1, 7, 19, outcome.set_result)
        assert await outcome is None
        await logs._publish()
        abandon(logs)
        logs = await open_logs(disk, Durability.MEMORY)
        assert logs.offsets.get(1, 1, 7) == 9
        await append(logs, 1, 30, 10)
        if journaled:
            await logs._publish()
        await logs.flush_partitions([logs.partition(1)])
        abandon(logs)
        logs = await open_logs(disk.after_power_loss(1), Durability.MEMORY)
        assert logs.partition(1).next_offset == 40
        assert logs.offsets.get(1, 1, 7) == 9
        abandon(logs)

    asyncio.run(life())


def test_records_of_a_partition_that_metadata_has_never_heard_of_refuse_the_start() -> None:
    """Rule 17: the metadata log was cut behind a creation that has records in the journal."""
    disk = made_disk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        await append(logs, 2)
        abandon(logs)
        source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0)])
        with pytest.raises(CorruptionError, match="metadata was lost"):
            await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)

    asyncio.run(life())


def test_a_ring_that_is_full_keeps_a_file_for_the_next_opening() -> None:
    """Rule 10: else a start could write nothing, and so free nothing."""
    world = World().create()

    async def life() -> None:
        journal = (await world.open()).journal
        while journal.begin():
            await world.write(journal)
        assert journal.free_files == 1
        await journal.close()
        assert (await world.open()).journal.begin()

    asyncio.run(life())


@pytest.mark.parametrize("foreign", ["nonce", "journal_id", "sequence", "position"])
def test_a_valid_write_of_another_identity_at_the_end_is_no_part_of_the_log(foreign: str) -> None:
    """Rule 9."""
    world = World().create().live(4)
    last = world.writes[-1]
    raw = bytearray(world.contents(last.path)[last.position : last.position + last.length])
    header = fmt.decode_write(memoryview(raw))
    assert header is not None
    fields = {"position": last.position + last.length, foreign: 9}
    fmt.seal_write(memoryview(raw), replace(header, **fields))
    world.put(last.path, last.position + last.length, bytes(raw))
    assert fmt.decode_write(memoryview(raw)) is not None
    assert world.recovered() == world.expected()


class RecordingDisk(FaultDisk):
    """In `record`: what was done to names, and the first bytes of each segment."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.record: list[tuple[str, str]] = []

    def make_directory(self, path: str) -> asyncio.Future:
        self.record.append(("make", path))
        return super().make_directory(path)

    def sync_directory(self, path: str) -> asyncio.Future:
        done = super().sync_directory(path)
        done.add_done_callback(lambda _: self.record.append(("synced", path)))
        return done

    def open(self, path: str, **options: bool) -> asyncio.Future:
        self.record.append(("open", path))
        return super().open(path, **options)


def test_a_partitions_directory_has_a_synced_name_before_its_first_segment_is_made() -> None:
    """Rule 5; the modelled disk does not lose directories."""
    disk = RecordingDisk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        disk.record.clear()
        await append_and_flush(logs, 1)
        abandon(logs)
        path = logs.partition(1).segments[0].path
        wanted = [("make", logs.partition(1).directory), ("synced", logs.partitions_directory), ("open", path)]
        assert [one for one in disk.record if one in wanted] == wanted

    asyncio.run(life())


class DirectoryDisk(FaultDisk):
    """Its first sync of one directory fails and drops names: they stay to be seen, and later syncs do not save them.

    made: names of directories and of what was renamed, and whether they are durable. dropped: as long as they are not
    made anew.
    """

    def __init__(self, seed: int, failing: str = "data/partitions") -> None:
        super().__init__(seed)
        self._failing_directory = failing
        self.made: dict[str, bool] = {}
        self.dropped: set[str] = set()
        self.has_dropped = False

    def make_directory(self, path: str) -> asyncio.Future:
        self.made.setdefault(path, False)
        return super().make_directory(path)

    def _forget(self, path: str) -> None:
        self.made.pop(path, None)
        self.dropped.discard(path)

    def remove_directory(self, path: str) -> asyncio.Future:
        self._forget(path)
        return super().remove_directory(path)

    def sync_directory(self, path: str) -> asyncio.Future:
        covered = [one for one in self.made if os.path.dirname(one) == path]
        if covered and path == self._failing_directory and not self.has_dropped:
            self.has_dropped = True
            self.dropped |= {one for one in covered if not self.made[one]}
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(StorageError(path))
            return failed
        self.made |= {one: one not in self.dropped for one in covered}
        return super().sync_directory(path)

    def rename(self, source: str, target: str) -> asyncio.Future:
        self._forget(source)
        self.made[target] = False
        self.dropped.discard(target)
        return super().rename(source, target)

    def unlink(self, path: str) -> asyncio.Future:
        self._forget(path)
        return super().unlink(path)


def test_a_directory_whose_name_a_failed_sync_may_have_dropped_is_made_anew() -> None:
    """Rule 20: that the next try finds it there says nothing."""
    disk = DirectoryDisk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        await append(logs, 1)
        with pytest.raises(StorageError):
            await logs.partition(1).flush()
        assert disk.has_dropped and not logs.partition(1).segments
        await logs.partition(1).flush()
        assert logs.partition(1).segments and disk.made[logs.partition(1).directory]
        abandon(logs)

    asyncio.run(life())


def test_directories_of_a_start_that_failed_to_sync_them_are_made_anew_by_the_next() -> None:
    """Rule 20: of a shard and of the metadata log."""
    shard_disk, metadata_disk = DirectoryDisk(1, "data/shards"), DirectoryDisk(1, "data")

    async def life() -> None:
        with pytest.raises(StorageError):
            await open_logs(shard_disk)
        assert not shard_disk.made["data/shards/0"]
        logs = await open_logs(shard_disk)
        assert shard_disk.has_dropped and shard_disk.made["data/shards/0"]
        abandon(logs)
        with pytest.raises(StorageError):
            await MetadataLog(metadata_disk, "data/metadata").replay()
        await MetadataLog(metadata_disk, "data/metadata").replay()
        assert metadata_disk.has_dropped and metadata_disk.made["data/metadata"]

    asyncio.run(life())


def test_a_journal_whose_name_a_failed_sync_may_have_dropped_is_built_anew() -> None:
    """Rule 20."""
    disk = DirectoryDisk(1, "data/shards/0")

    async def life() -> None:
        with pytest.raises(StorageError):
            await open_logs(disk)
        logs = await open_logs(disk)
        assert disk.has_dropped and disk.made["data/shards/0/journal"]
        abandon(logs)

    asyncio.run(life())


def test_a_metadata_generation_whose_name_a_failed_sync_may_have_dropped_is_not_gone_on_with() -> None:
    """Rule 20: the next start takes the former one, or makes the first one anew."""
    disk = DirectoryDisk(1, "data/metadata")

    async def life() -> None:
        with pytest.raises(StorageError):
            await MetadataLog(disk, "data/metadata").replay()
        log = MetadataLog(disk, "data/metadata")
        await log.replay()
        assert disk.has_dropped and disk.made["data/metadata/metadata.1"]
        await log.append(b"first")
        disk.has_dropped = False
        with pytest.raises(StorageError):
            await log.snapshot(b"first")
        assert await MetadataLog(disk, "data/metadata").replay() == (None, [b"first"])
        assert disk.has_dropped

    asyncio.run(life())


class ForgetfulDisk(FaultDisk):
    """Before the first sync a failed sync of some other file drops what is unsynced."""

    def __init__(self, seed: int, faults: SyncFaults) -> None:
        super().__init__(seed)
        self.faults = faults

    def sync(self, file: FaultFile) -> asyncio.Future:
        if not self.faults.number:
            file.node.drop_unsynced()
            self.faults.note()
        return super().sync(file)

    def sync_directory(self, path: str) -> asyncio.Future:
        if not self.faults.number:
            self.faults.note()
        return super().sync_directory(path)


@pytest.mark.parametrize("in_group", [False, True], ids=["alone", "in a group"])
def test_a_write_whose_blocks_another_files_failed_sync_may_have_dropped_is_made_again(in_group: bool) -> None:
    """Rule 20: its own sync succeeds, and proves nothing."""
    faults = SyncFaults()
    disk = ForgetfulDisk(1, faults)
    data = memoryview(b"x" * fmt.BLOCK_BYTES)

    async def life() -> None:
        file = await disk.open("a", create=True)
        if in_group:
            assert await write_group_synced(disk, faults, [(file, 0, [data])]) == [None]
        else:
            await write_synced(disk, faults, file, 0, [data])
        assert faults.number == 1
        assert file.node.durable == data

    asyncio.run(life())


async def _cut_a_file(disk: FaultDisk, faults: SyncFaults) -> None:
    await cut_synced(disk, faults, await disk.open("a", create=True), fmt.BLOCK_BYTES)


async def _make_a_journal(disk: FaultDisk, faults: SyncFaults) -> None:
    await create_journal(disk, faults, "data", SETTINGS)


async def _sync_a_directory(disk: FaultDisk, faults: SyncFaults) -> None:
    await sync_directory_noted(disk, faults, "data", faults.number)


SYNCS_WITHOUT_A_WRITE = pytest.mark.parametrize("work", [_cut_a_file, _make_a_journal, _sync_a_directory])


@SYNCS_WITHOUT_A_WRITE
def test_a_sync_that_succeeds_after_another_files_failed_is_not_trusted(
    work: Callable[[FaultDisk, SyncFaults], Coroutine[Any, Any, None]],
) -> None:
    """Rule 20; a journal file that grew had lost its header (simulation, seeds 393 and 6)."""
    faults = SyncFaults()
    with pytest.raises(StorageError, match="another sync failed"):
        asyncio.run(work(ForgetfulDisk(1, faults), faults))


@SYNCS_WITHOUT_A_WRITE
def test_a_failed_sync_of_any_kind_counts_for_all_files(
    work: Callable[[FaultDisk, SyncFaults], Coroutine[Any, Any, None]],
) -> None:
    """Rule 20."""

    class Broken(FaultDisk):
        def sync(self, file: FaultFile) -> asyncio.Future:
            self.is_broken = True
            return super().sync(file)

        def sync_directory(self, path: str) -> asyncio.Future:
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(StorageError(path))
            return failed

    faults = SyncFaults()
    with pytest.raises(StorageError):
        asyncio.run(work(Broken(1), faults))
    assert faults.number == 1


class TellingDisk(FaultDisk):
    """kinds: of all operations, in the order in which they were asked for."""

    def __init__(self, seed: int, *, fail_at: int = 0) -> None:
        super().__init__(seed, fail_at=fail_at)
        self.kinds: list[str] = []

    def _submit(self, what: str, *more: Any, **options: Any) -> asyncio.Future:
        self.kinds.append(what)
        return super()._submit(what, *more, **options)


async def _live_through_names(disk: FaultDisk, faults: SyncFaults) -> None:
    """A start, and all that makes and removes names in a log that runs: segments, snapshots, journal files."""
    identities = [PartitionIdentity(uid, 1, uid - 1, segment_bytes=8192, label=lambda: b"name") for uid in (1, 2)]
    source = RecoveryInput(0, 3, identities, faults=faults)
    logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
    with contextlib.suppress(StorageError):
        for number in range(4):
            await append(logs, 1, 1, number, size=9000)
            await append(logs, 2, 1, number)
            await logs.flush_partitions(logs.partitions)
        await logs.partition(1).delete_segments(2)
        await logs._snapshot_offsets()
        assert logs.journal is not None
        await logs.journal.grow(logs.directory + "/journal")
        logs.forget_partition(2)
        await logs.remove_files(2)
    await logs.wait_idle()
    abandon(logs)


def test_a_failed_sync_at_any_operation_of_a_life_counts_for_all_files() -> None:
    """Rule 20: of a directory as of a file. None is made around SyncFaults."""
    whole, failed = TellingDisk(1), Counter[str]()
    asyncio.run(_live_through_names(whole, SyncFaults()))
    for number in [number for number, kind in enumerate(whole.kinds, 1) if kind.startswith("sync")]:
        disk, faults = TellingDisk(1, fail_at=number), SyncFaults()
        with contextlib.suppress(StorageError):
            asyncio.run(_live_through_names(disk, faults))
        if not disk.has_failed:
            continue
        kind = disk.kinds[number - 1]  # tasks may have come in another order than in the whole life
        assert faults.number or not kind.startswith("sync"), f"operation {number}: {kind}"
        failed[kind] += 1
    assert failed["sync"] > 10 and failed["sync directory"] > 10


class CountingDisk(FaultDisk):
    """read_bytes: of segments."""

    read_bytes = 0

    def read(self, file: FaultFile, position: int, buffer: memoryview) -> asyncio.Future:
        if file.path.endswith(".log"):
            self.read_bytes += min(len(buffer), len(file.node.current) - position)
        return super().read(file, position, buffer)


def test_a_start_reads_as_much_of_a_large_segment_as_of_a_small_one() -> None:
    """Rule 11: from the newest hint on."""

    async def read_by_start(runs: int) -> tuple[int, int]:
        disk = CountingDisk(1)
        source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0)])
        logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
        for number in range(runs):
            await append(logs, 1, 1, number, size=9000)
            await logs.flush_partitions([logs.partition(1)])
        await append(logs, 1, 1, runs)  # its journal write carries the hint
        abandon(logs)
        disk.read_bytes = 0
        logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
        assert logs.partition(1).next_offset == runs + 1
        abandon(logs)
        return disk.read_bytes, segment_of(logs)[1]

    async def life() -> None:
        (small, small_end), (large, large_end) = await read_by_start(4), await read_by_start(40)
        assert large_end > 9 * small_end
        assert large <= small

    asyncio.run(life())


class FullOnceDisk(FaultDisk):
    """The first run of a segment lands whole, and is said to have found no room."""

    is_full = True

    def write(self, file: FaultFile, position: int, buffers: Sequence[memoryview], **options: Any) -> asyncio.Future:
        if self.is_full and position and file.path.endswith(".log"):
            self.is_full = False
            file.node.write(position, b"".join(buffers))
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(DiskFullError("write: injected"))
            return failed
        return super().write(file, position, buffers, **options)


def test_what_a_run_without_room_has_left_is_cut() -> None:
    """Rule 4: physically, so that it cannot revive."""
    disk = FullOnceDisk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        with pytest.raises(DiskFullError):
            await append(logs, 1, 1, size=SETTINGS.max_write_bytes)
        path, end = segment_of(logs)
        assert not disk.is_full
        assert len(disk.files[path].current) == len(disk.files[path].durable) == end == fmt.BLOCK_BYTES
        assert await append(logs, 1, 1, 5) == 0
        abandon(logs)

    asyncio.run(life())


class OneFailedSync(FaultDisk):
    """Of the first run of a segment. From then on it dies after `lives_on` operations."""

    def __init__(self, seed: int, lives_on: int) -> None:
        super().__init__(seed)
        self._lives_on = lives_on

    def sync(self, file: FaultFile) -> asyncio.Future:
        if not self._fail_at and file.path.endswith(".log") and len(file.node.current) > fmt.BLOCK_BYTES:
            self._fail_at, self._die_at = self.operations + 1, self.operations + 1 + self._lives_on
        return super().sync(file)


def test_a_segment_whose_first_run_failed_is_never_missing() -> None:
    """Rule 20: its name is needed again, and the journal may have it already; a kill at any operation after it."""

    async def life(disk: FaultDisk) -> None:
        logs = await open_logs(disk)
        await until_dead(disk, append(logs, 1, 1, 0, size=SETTINGS.max_write_bytes))
        await asyncio.sleep(2 * SETTINGS.linger_s)  # its hint goes to the journal
        await until_dead(disk, append(logs, 1, 1, 1, size=SETTINGS.max_write_bytes))
        abandon(logs)

    async def later(disk: FaultDisk) -> list[int]:
        logs = await open_logs(disk)
        assert logs.partition(1).fenced is None
        found = await read_numbers(logs, 1)
        abandon(logs)
        return found

    for lives_on in itertools.count(1):
        disk = OneFailedSync(lives_on, lives_on)
        asyncio.run(life(disk))
        for left in (disk.after_kill(lives_on), disk.after_power_loss(lives_on)):
            assert asyncio.run(later(left)) in (([], [0], [1]) if disk.is_dead else ([1],)), f"{lives_on} operations"
        if not disk.is_dead:
            assert disk.has_failed
            break
    assert lives_on > 8


def test_records_under_a_former_term_count_for_nothing() -> None:
    """Rule 12; they would be of an owner that has given the partition away."""
    disk = FaultDisk(1)

    async def end_under(term: int) -> int:
        source = RecoveryInput(0, 2, [PartitionIdentity(1, term, 0)])
        logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
        end = logs.partition(1).next_offset
        if not end and term == 1:
            await append(logs, 1, 3)
        abandon(logs)
        return end

    async def life() -> None:
        assert [await end_under(term) for term in (1, 1, 2)] == [0, 3, 0]

    asyncio.run(life())


def test_records_of_another_shard_count_for_nothing() -> None:
    """Rule 12; a journal that stands in the place of another shard's."""
    disk = FaultDisk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        await append(logs, 1, 3)
        abandon(logs)
        await disk.rename("data/shards/0", "data/shards/1")
        source = RecoveryInput(1, 3, [PartitionIdentity(1, 1, 0)])
        logs = await recover_shard(disk, "data", SETTINGS, source, ticking_clock(), lambda error: None)
        assert logs.partition(1).next_offset == 0
        abandon(logs)

    asyncio.run(life())


class SlowIndexDisk(TellingDisk):
    """Takes its time before it makes an index file."""

    def unlink(self, path: str) -> asyncio.Future:
        return asyncio.ensure_future(self._unlink_late(path))

    async def _unlink_late(self, path: str) -> None:
        for _ in range(1000 if path.endswith(".index.new") else 0):
            await asyncio.sleep(0)
        await super().unlink(path)


def test_an_index_that_the_last_flush_has_begun_to_save_is_saved_when_the_log_has_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or it would ask a disk that is shut down, and a clean stop would end as a failure."""
    monkeypatch.setattr(PartitionLog, "indexes_due", lambda log, *least: log.segments[-1:] if not least else [])
    disk = SlowIndexDisk(1)

    async def life() -> None:
        logs = await open_logs(disk)
        await append(logs, 1)
        await logs.close()
        asked = len(disk.kinds)
        assert any(path.endswith(".index") for path in disk.files)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert len(disk.kinds) == asked

    asyncio.run(life())
