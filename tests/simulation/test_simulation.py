"""Simulated lives of a server: some seeds, and that the simulation itself is to be trusted."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from shardserver.core import identity
from shardserver.errors import DiskFullError, StorageError
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import healing, journal_reader, segment
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.segment import BATCH_HEADER_BYTES
from shardserver.storage.settings import Durability
from shardserver.storage.shard_log import ShardLog
from tests.fault_disk import BLOCK_BYTES, FaultFile, Node
from tests.process_disk import Locks
from tests.simulation.disk import CountingDisk, WorldDisk
from tests.simulation.life import play
from tests.simulation.oracle import Contents, Oracle, Violation
from tests.simulation.plan import Plan, Step
from tests.simulation.shrink import shrink


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_simulated_server_keeps_its_promises(seed: int) -> None:
    plan = Plan.draw(seed)
    outcome = play(plan)
    if outcome.error is not None:
        raise AssertionError(f"play({plan})") from outcome.error


def test_what_a_failed_run_has_left_and_nobody_could_cut_is_not_taken_for_what_came_after_it() -> None:
    plan = Plan(
        600179,
        3,
        (Step("clients", 3402731889), Step("clients", 3047476501), Step("die after an error", 3961783038)),
    )
    outcome = play(plan)
    assert outcome.error is None and outcome.counts["deaths amid a partition's healing"]


def test_a_process_that_dies_while_it_writes_leaves_writes_that_land_after_the_next_start() -> None:
    """Once a file's lock is taken none is left of it (storage rule 15)."""
    data, seen = memoryview(b"x" * BLOCK_BYTES), Counter[bool]()

    async def life(seed: int) -> None:
        disk = WorldDisk(seed)
        dying, next_one = (CountingDisk(disk, Locks(), seed) for _ in range(2))
        dying.died = dying.kill
        file: FaultFile = await dying.open("a", create=True)
        dying.die_at = dying.operations + 1
        dying.write(file, 0, [data])
        disk.mark_late()
        before = bytes(file.node.current)
        await next_one.open("a")
        assert not disk._ghosts
        late = disk.counts["late writes that landed after a start"]
        assert (before != bytes(file.node.current)) == bool(late)
        seen[bool(late)] += 1

    for seed in range(20):
        asyncio.run(life(seed))
    assert seen[True] and seen[False]


def test_a_seed_replays_exactly_in_any_process() -> None:
    code = "from tests.simulation.life import play, Plan; print(play(Plan.draw(4, 12)).trace)"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(number), "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        )
        for number in (1, 2)
    ]
    assert runs[0].stdout == runs[1].stdout != b"0\n"


def test_a_server_whose_syncs_do_nothing_is_found_out_and_its_plan_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that forgets breaks nothing while the power is on."""
    monkeypatch.setattr(Node, "sync", lambda self: None)
    broken = (Plan.draw(seed) for seed in range(20))
    plan = next(plan for plan in broken if play(plan).error is not None)

    shortest = shrink(plan, lambda tried: play(tried).error is not None, tries=30)
    assert len(shortest.steps) < len(plan.steps) and play(shortest).error is not None


def _write_is_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(identity._NAMED, "write", Durability.MEMORY)


def _damage_is_a_torn_end(patch: pytest.MonkeyPatch) -> None:
    async def refuse_nothing(*arguments: object) -> None:
        pass

    patch.setattr(journal_reader, "_refuse_valid_write", refuse_nothing)


def _checksums_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    def looks_like_a_batch(view: memoryview, size: int) -> bool:
        header = read_batch_header(view) if size > BATCH_HEADER_BYTES else None
        return header is not None and 0 < header.message_count < 10 and BATCH_HEADER_BYTES < header.batch_length <= size

    patch.setattr(segment, "check_stored_batch", looks_like_a_batch)


def _read_only_is_told_as_a_full_disk(patch: pytest.MonkeyPatch) -> None:
    def say_that_it_is_full(logs: ShardLog) -> None:
        logs.failed = logs.offsets.refusal = StorageError("read-only")
        logs.resources.admission.refusal = DiskFullError("no room")

    patch.setattr(ShardLog, "become_read_only", say_that_it_is_full)


def _healing_leaves_what_only_the_journal_holds(patch: pytest.MonkeyPatch) -> None:
    async def flush_nothing(partition: object) -> None:
        pass

    patch.setattr(healing, "_make_durable", flush_nothing)


def _healing_gives_up_the_former_journal_first(patch: pytest.MonkeyPatch) -> None:
    """Nothing shows that but a death between the two."""
    swap, make_durable = healing._swap, healing._make_durable

    async def not_yet(partition: PartitionLog) -> None:
        pass

    async def swap_first(logs: ShardLog, keep: str | None) -> None:
        await swap(logs, keep)
        for partition in logs.partitions:
            if partition.set_aside is None:
                await make_durable(partition)

    patch.setattr(healing, "_swap", swap_first)
    patch.setattr(healing, "_make_durable", not_yet)


@pytest.mark.parametrize(
    ("break_it", "found"),
    [
        (_write_is_memory, "must have kept"),
        (_damage_is_a_torn_end, ""),
        (_checksums_are_not_looked_at, "changed bytes|are gone"),
        (_read_only_is_told_as_a_full_disk, "read-only shard"),
        (_healing_leaves_what_only_the_journal_holds, "is not at|must have kept"),
        (_healing_gives_up_the_former_journal_first, "is not at|must have kept|differs|high watermark"),
    ],
)
def test_a_broken_server_is_found_out(
    break_it: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    plans = (Plan.draw(seed, without="die after an error") for seed in range(1, 80))
    error = next(error for error in (play(plan).error for plan in plans) if error is not None)
    assert isinstance(error, Violation) and re.search(found, str(error)), repr(error)


def test_what_is_lost_of_a_memory_topic_is_its_end_and_no_more_than_that() -> None:
    def oracle() -> Oracle:
        one = Oracle()
        one.note_sent(1, range(9))
        one.note_acknowledged(1, 0, [0, 1, 2, 3, 4])
        one.note_committed(1, 7, one.note_tried(1, 7, 4))
        one.note_killed(1, Durability.MEMORY, synced=2, high_watermark=5)
        return one

    with pytest.raises(Violation, match="ends at 1, must have kept 2"):
        oracle().note_recovered(1, Durability.MEMORY, 1)
    with pytest.raises(Violation, match="ends at 4, must have kept 5"):
        as_written = oracle()
        as_written.note_killed(1, Durability.WRITE, synced=2, high_watermark=5)
        as_written.note_recovered(1, Durability.WRITE, 4)
    shorter = oracle()
    shorter.note_recovered(1, Durability.MEMORY, 3)
    assert shorter.lost == {"acknowledged and lost: memory, kill": 2}
    shorter.check_offset(1, 7, 2, 3)
    shorter.check_contents(1, shorter.known_of(1), Contents(0, [0, 1, 2, 6]))
    for numbers in ([0, 1], [0, 1, 3], [0, 1, 2, 2], [0, 1, 2, 4, 3], [0, 1, 2, 99]):
        with pytest.raises(Violation):
            shorter.check_contents(1, shorter.known_of(1), Contents(0, numbers))
    with pytest.raises(Violation, match="9 were sent"):
        shorter.check_high_watermark(1, 10)
    with pytest.raises(Violation, match="consumer 7: 4"):
        shorter.check_offset(1, 7, 4, 5)


def test_a_shrunken_plan_has_just_the_steps_that_matter() -> None:
    plan = Plan.draw(1)
    needed = {plan.steps[3], plan.steps[17]}
    shortest = shrink(plan, lambda tried: needed <= set(tried.steps))
    assert set(shortest.steps) == needed


def test_a_plan_is_printed_as_what_makes_it() -> None:
    plan = Plan.draw(3)
    assert eval(str(plan), {"Plan": Plan, "Step": Step}) == plan
