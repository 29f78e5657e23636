"""A partition's appends: the compiled log does what its specification does, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import NotOwnerError, ShardServerError, StorageError
from shardserver.memory.aligned import aligned_buffer
from shardserver.protocol.batch import read_batch_header
from shardserver.storage import append_log as compiled
from shardserver.storage import append_log_python as plain
from shardserver.storage import tail_python
from shardserver.storage.append_log import Admission
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.staging import Staging
from shardserver.storage.tail_python import TailEntry
from shardserver.storage.turn import Turn
from tests.batches import make_batch

SETTINGS = LogSettings(max_write_bytes=4096, direct_bytes=3000, flush_run_bytes=8192)
SHARD = 3


class Notes:
    """What a log of the specification tells its shard."""

    def __init__(self) -> None:
        self.woken = self.cached = 0

    def wake(self, log: plain.AppendLog) -> None:
        self.woken += 1

    def keep_cached(self, log: plain.AppendLog) -> None:
        self.cached += 1


@dataclass
class Side:
    """One of the two logs, with what came out of it."""

    log: Any
    clock: list[int]
    admission: Admission
    staging: Staging = field(default_factory=lambda: Staging(aligned_buffer(SETTINGS.max_write_bytes)))
    outcomes: list[tuple[int, int | str]] = field(default_factory=list)

    def append(self, number: int, size: int, count: int) -> None:
        def done(outcome: int | ShardServerError) -> None:
            self.outcomes.append((number, outcome if isinstance(outcome, int) else str(outcome)))

        self.log.append(make_batch([bytes([number % 256]) * size] * count), count, done)

    def journal(self, room: int, sequence: int) -> tuple[int, bytes]:
        self.staging.begin(room)
        end = self.log.journal_into(self.staging, SHARD, sequence)
        return end, bytes(self.staging.seal(0, 1, 2, 3, 4, 5, 6, 7))

    def state(self) -> tuple[object, ...]:
        log = self.log
        ends = (log.next_offset, log.journaled_end, log.durable_end, log.written_end, log.last_timestamp)
        sizes = (log.waiting_bytes, log.backlog_bytes, log.unwritten_bytes, log.tail.bytes)
        flags = (log.has_waiting, log.has_work, log.is_due, log.wants_run, log.is_late)
        held = (log.first_is_oversize, log.waits_for_run)
        tail = [
            (one.base_offset, one.count, one.timestamp, one.sequence, bytes(one.data))
            for one in log.tail.from_offset(0)
        ]
        return (*ends, *sizes, *flags, *held, log.high_watermark, tail, self.outcomes)


def sides(durability: Durability, save_messages: int = 0, save_bytes: int = 0) -> list[Side]:
    made = []
    for module in (compiled, plain):
        clock, admission = [100], Admission()
        resources: Any = SimpleNamespace(settings=SETTINGS, clock=lambda clock=clock: clock[0], admission=admission)
        identity = PartitionIdentity(9, 2, 5, durability=durability, save_messages=save_messages, save_bytes=save_bytes)
        if module is compiled:
            turn = Turn(lambda: None, lambda: None)
            made.append(Side(compiled.AppendLog(resources, identity, turn, turn.tails), clock, admission))
        else:
            made.append(Side(plain.AppendLog(resources, identity, Notes(), tail_python.TailTotal()), clock, admission))
    return made


OFTEN = ("append", "append", "append", "journal", "journal", "durable", "durable")
RARELY = ("written", "run", "fail run", "clock", "evict", "refuse waiting", "flush", "late")
steps = st.lists(st.tuples(st.sampled_from(OFTEN + RARELY), st.integers(0, 900), st.integers(1, 4)), max_size=30)


def act(side: Side, step: str, number: int, size: int, count: int) -> object:
    """One step; what it gives is compared."""
    log = side.log
    if step == "append":
        side.append(number, size, count)
    elif step == "journal":
        return side.journal(1000 + 4 * size, number + 1)
    elif step == "written":
        log.note_written(log.journaled_end)
    elif step == "durable":
        log.note_durable(log.journaled_end)
    elif step in ("run", "fail run"):
        run(side, size, fails=step == "fail run")
    elif step == "clock":
        side.clock[0] = max(0, side.clock[0] + size - 100)  # it may go back
    elif step == "evict":
        return log.tail.evict_oldest(min(log.durable_end, size))
    elif step == "refuse waiting":
        log.fail_waiting(StorageError("full"))
    elif step == "late":
        log.is_late = count % 2 == 0
    elif step == "flush":
        log.running = count % 2
    return None


def run(side: Side, size: int, *, fails: bool) -> None:
    """A direct run, from its begin to its end."""
    log = side.log
    if log.running or log.is_memory or log.durable_end < log.journaled_end:
        return
    log.running, fallback = 2, log.next_offset
    log.stamp_waiting(size)
    if fails:
        log.roll_back(max(fallback, log.high_watermark), StorageError("the run failed"))
    else:
        log.journaled_end = max(log.journaled_end, log.next_offset)
        log.note_durable(log.next_offset)
    log.running = 0
    log.recount_backlog()
    log.release_acks()


@given(st.sampled_from(list(Durability)), st.integers(0, 3), st.sampled_from([0, 600]), steps)
def test_both_do_the_same_whatever_comes(
    durability: Durability, save_messages: int, save_bytes: int, taken: list[tuple[str, int, int]]
) -> None:
    two = sides(durability, save_messages, save_bytes)
    for number, (step, size, count) in enumerate(taken):
        assert act(two[0], step, number, size, count) == act(two[1], step, number, size, count)
        assert two[0].state() == two[1].state(), step


@pytest.mark.parametrize("which", [0, 1], ids=["compiled", "plain"])
class TestEach:
    def test_acknowledgements_follow_the_sync_in_order(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        for number in range(3):
            side.append(number, 10, 2)
        end, _ = side.journal(4096, 7)
        assert (end, side.outcomes) == (6, [])
        side.log.note_durable(4)
        assert side.outcomes == [(0, 0), (1, 2)]
        side.log.note_durable(6)
        assert side.outcomes == [(0, 0), (1, 2), (2, 4)] and side.log.high_watermark == 6

    def test_any_number_waits_in_order(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        for number in range(7):
            side.append(number, 10, 1)
        first, _ = side.journal(1200, 7)
        assert 0 < first < 7
        side.log.note_durable(1)
        for number in range(7, 40):
            side.append(number, 10, 1)
        while side.log.has_waiting:
            side.journal(4096, 8)
        side.log.note_durable(40)
        assert side.outcomes == [(number, number) for number in range(40)]

    @pytest.mark.parametrize(
        ("durability", "seen"),
        [(Durability.FSYNC, [0, 0, 0, 2]), (Durability.WRITE, [0, 0, 2, 2]), (Durability.MEMORY, [2, 2, 2, 2])],
    )
    def test_polls_see_what_is_as_durable_as_the_topic_promises_and_no_more(
        self, which: int, durability: Durability, seen: list[int]
    ) -> None:
        side = sides(durability)[which]
        side.append(0, 10, 2)
        found = [side.log.high_watermark]
        side.journal(4096, 7)
        found.append(side.log.high_watermark)
        side.log.note_written(side.log.journaled_end)
        found.append(side.log.high_watermark)
        side.log.note_durable(side.log.journaled_end)
        assert [*found, side.log.high_watermark] == seen

    def test_a_batch_has_its_place_and_time_from_the_write_that_carries_it(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        side.append(0, 10, 2)
        side.append(1, 10, 1)
        side.clock[0] = 500
        side.journal(4096, 7)
        headers = [read_batch_header(one.data) for one in side.log.tail.from_offset(0)]
        found = [(one.partition_id, one.base_offset, one.base_timestamp) for one in headers]
        assert found == [(5, 0, 500), (5, 2, 500)]
        assert [one.sequence for one in side.log.tail.from_offset(0)] == [7, 7]

    def test_refusals_come_in_their_order_and_nothing_is_kept(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        side.admission.refusal = StorageError("the disk is full")
        side.append(0, 10, 1)
        side.log.fenced = StorageError("fenced")
        side.append(1, 10, 1)
        side.log.refusal = NotOwnerError("moves")
        side.append(2, 10, 1)
        assert side.outcomes == [(0, "the disk is full"), (1, "fenced"), (2, "moves")] and not side.log.has_work

    def test_a_fence_refuses_what_waits_for_an_offset_and_what_waits_for_its_sync(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        side.append(0, 10, 1)
        side.journal(4096, 1)
        side.append(1, 10, 1)
        side.log.fence(StorageError("the sync failed"))
        assert sorted(side.outcomes) == [(0, "the sync failed"), (1, "the sync failed")]
        side.log.note_durable(1)
        assert len(side.outcomes) == 2

    def test_who_is_answered_may_append_again_at_once(self, which: int) -> None:
        side = sides(Durability.MEMORY)[which]
        answered: list[int] = []

        def again(outcome: Any) -> None:
            answered.append(outcome)
            if len(answered) < 5:
                side.log.append(make_batch([b"x"]), 1, again)

        side.log.append(make_batch([b"x"]), 1, again)
        assert answered == [0, 1, 2, 3, 4]

    def test_an_end_of_recovery_goes_on_where_the_journal_ended(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        side.log.take_back(TailEntry(0, 3, 900, make_batch([b"x"] * 3), 4))
        side.append(0, 10, 1)
        side.journal(4096, 5)
        side.log.note_durable(4)
        assert side.outcomes == [(0, 3)] and side.log.last_timestamp == 900

    def test_beside_a_direct_run_nothing_goes_to_the_journal_and_nothing_gets_an_offset(self, which: int) -> None:
        side = sides(Durability.FSYNC)[which]
        side.append(0, 10, 1)
        side.log.running = 2
        side.log.stamp_waiting(1)
        side.append(1, 10, 1)
        assert side.journal(4096, 7)[0] == -1
        assert (side.log.next_offset, side.log.has_waiting) == (1, True)
        side.log.running = 0
        assert side.journal(4096, 7)[0] == 2


@pytest.mark.parametrize("durability", Durability)
def test_a_fenced_log_has_nothing_to_write_whatever_it_held(durability: Durability) -> None:
    """Else its shard would try again without end, as after a run that failed inside the server."""
    for side in sides(durability):
        for number in range(4):
            side.append(number, SETTINGS.direct_bytes, 1)
        side.log.stamp_waiting(1)
        assert side.log.has_work
        side.log.fence(StorageError("a run failed inside the server"))
        assert not (side.log.has_work or side.log.is_due or side.log.wants_run)
