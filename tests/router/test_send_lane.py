"""The lane of sends: what it does alone, and what it leaves to its peer; on the compiled one and its specification."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from shardserver.errors import BackpressureError, Code, CorruptionError, NotOwnerError, RejectedError, ShardServerError
from shardserver.memory.arena import Block
from shardserver.protocol.sends import CallbackTarget
from shardserver.router.answers import Answer
from shardserver.router.peer import Kind, Question
from shardserver.router.send_lane_python import SEND, SEND_INLINE, SentRecord
from tests.router.pair import Side, connect, die, make_pair, settle, turn

pytestmark = pytest.mark.usefixtures("lane")

Done = Callable[[int | ShardServerError], None]


class Owner:
    """What the owning side was sent without its `serve`: (uid, batch, count), to be answered later."""

    def __init__(self, side: Side) -> None:
        self.taken: list[tuple[int, bytes, int]] = []
        self.open: list[Done] = []
        self.fails: Exception | None = None
        side.peer.lane.find_target = lambda uid: CallbackTarget(
            lambda batch, count, done: self._take(uid, batch, count, done)
        )

    def _take(self, uid: int, batch: Block, count: int, done: Done) -> None:
        if self.fails is not None:
            raise self.fails
        self.taken.append((uid, bytes(batch), count))
        self.open.append(done)


class Asker:
    """Sends of one connection. otherwise: what the lane did not do."""

    def __init__(self, side: Side) -> None:
        self.side, self.unanswered = side, []  # type: ignore[var-annotated]
        self.otherwise: list[int] = []
        side.peer.begin_sends = lambda: 20.0
        side.peer.question_of = self._question_of

    def send(self, batch: bytes = b"batch", uid: int = 7, count: int = 3) -> list[Any]:
        got: list[Any] = []
        partition = self.side.peer.lane.partition(uid, self.unanswered, self._otherwise)
        partition.send(self.side.arena.copy(batch), count, got.append)
        return got

    def _otherwise(self, partition: Any, batch: Block, count: int, done: Done) -> None:
        self.otherwise.append(partition.uid)
        inline = SEND_INLINE.pack(partition.uid, count, 0)
        self.side.peer.ask(SEND, inline, batch, lambda outcome: done(_base(outcome)), survives=True)

    def _question_of(self, sent: SentRecord) -> Question:
        inline = SEND_INLINE.pack(sent.partition.uid, sent.messages, 0)
        done = sent.done
        made = Question(sent.number, SEND, inline, None, lambda outcome: done(_base(outcome)), survives=True)
        made.block, made.was_pushed = sent.batch, True
        return made


def _base(outcome: Answer | ShardServerError) -> int | ShardServerError:
    return outcome if isinstance(outcome, ShardServerError) else int.from_bytes(outcome.inline, "little")


def made(slots: int = 16) -> tuple[Side, Side, Asker, Owner]:
    one, other = make_pair(slots=slots)
    return one, other, Asker(one), Owner(other)


def push(side: Side, *slot: Any) -> None:
    """Whatever a broken process may write into its ring."""
    assert side.peer.rings is not None
    side.peer.rings.producer.try_push(*slot, False)
    side.peer.rings.producer.publish()


# The usual case


def test_a_send_crosses_without_serve_and_gets_its_base_offset() -> None:
    one, other, asker, owner = made()
    got = asker.send(b"b" * 500, uid=9, count=4)
    settle(one, other)
    assert owner.taken == [(9, b"b" * 500, 4)] and other.asked == [] and asker.otherwise == []
    assert one.arena.used_bytes == 512 and one.peer.statistics().questions == 1
    owner.open.pop()(1000)
    settle(one, other)
    assert got == [1000] and one.peer.lane.floor(9).offset == 1004
    assert one.arena.used_bytes == other.arena.used_bytes == one.peer.statistics().questions == 0


def test_the_floor_is_that_of_the_highest_answer() -> None:
    one, other, asker, owner = made()
    for _ in range(2):
        asker.send()
    settle(one, other)
    owner.open.pop()(50)
    owner.open.pop()(47)
    settle(one, other)
    assert one.peer.lane.floor(7).offset == 53


def test_slots_are_written_as_the_page_says() -> None:
    one, other, asker, _ = made()
    assert other.peer.rings is not None
    asker.send(b"b" * 300, uid=0x0102030405060708, count=5)
    one.peer.publish()
    (slot,) = other.peer.rings.consumer.take(9)
    position = one.shown.find(b"b" * 300)
    assert slot == (2, 1, 300, 1, position, bytes.fromhex("0807060504030201 05000000") + bytes(28))
    assert one.peer.rings is not None
    other.serve = lambda request, answer: None
    push(one, 2, 1, 300, 2, position, SEND_INLINE.pack(7, 1, 0))
    other.peer.lane.find_target = lambda uid: CallbackTarget(lambda batch, count, done: done(0x0908))
    other.peer.drain()
    other.peer.publish()
    assert one.peer.rings.consumer.take(9) == [(4, 0, 8, 2, 0, b"\x08\x09" + bytes(38))]


def test_a_refusal_of_the_target_comes_to_who_asked_whether_it_is_raised_or_told() -> None:
    one, other, asker, owner = made()
    owner.fails = NotOwnerError("gone")
    raised = asker.send()
    settle(one, other)
    owner.fails = None
    told = asker.send()
    settle(one, other)
    owner.open.pop()(RejectedError(Code.INVALID_OFFSET))
    settle(one, other)
    assert isinstance(raised[0], NotOwnerError) and len(raised) == len(told) == 1
    assert isinstance(told[0], RejectedError) and told[0].code is Code.INVALID_OFFSET
    assert one.arena.used_bytes == other.arena.used_bytes == 0


def test_a_bug_of_the_target_is_told_as_an_error_and_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    one, other, asker, owner = made()
    owner.fails = ZeroDivisionError("bug")
    got = asker.send()
    settle(one, other)
    owner.fails = None
    after = asker.send()
    settle(one, other)
    owner.open.pop()(1)
    settle(one, other)
    assert "failed inside" in str(got[0]) and after == [1]
    assert [record.message for record in caplog.records] == ["send_failed"]


def test_one_that_fails_on_its_answer_costs_no_other_its_own(caplog: pytest.LogCaptureFixture) -> None:
    one, other, asker, owner = made()

    def fail(outcome: int | ShardServerError) -> None:
        raise ZeroDivisionError

    one.peer.lane.partition(7, [], asker._otherwise).send(one.arena.copy(b"x"), 1, fail)
    got = asker.send()
    settle(one, other)
    owner.open.pop(0)(1)
    owner.open.pop(0)(2)
    settle(one, other)
    assert got == [2] and [record.message for record in caplog.records] == ["answer_failed"]


def test_sends_of_one_turn_wake_once_and_run_no_python_for_each() -> None:
    """Of the compiled lane; the specification is all Python."""
    one, other, asker, _ = made(slots=64)
    partition = one.peer.lane.partition(7, [], asker._otherwise)
    if "python" in type(partition).__module__:
        pytest.skip("the specification")
    assert other.peer.rings is not None

    def calls(count: int) -> int:
        batches, seen = [one.arena.copy(b"batch") for _ in range(count)], []

        def note(frame: FrameType, event: str, arg: object) -> None:
            if event == "call" and frame.f_code.co_filename.endswith(".py"):  # a checked build shows the others too
                seen.append(event)

        gc.disable()  # its callbacks would be counted
        sys.setprofile(note)
        for batch in batches:
            partition.send(batch, 1, print)
        one.peer.publish()
        sys.setprofile(None)
        gc.enable()
        return len(seen)

    assert 0 < calls(20) == calls(1)


# What the lane leaves to its peer


def test_no_more_are_out_with_questions_than_half_of_the_ring_and_the_rest_follows_in_order() -> None:
    one, other, asker, owner = made(slots=16)
    questions: list[Any] = []
    for _ in range(3):
        one.ask(questions)
    got = [asker.send(b"%d" % number) for number in range(20)]
    settle(one, other)
    assert len(owner.taken) + len(other.asked) == 8 and len(asker.otherwise) == 15
    base = 0
    while owner.open or other.asked:
        while other.asked:
            other.answer(Answer(b"x"))
        while owner.open:
            owner.open.pop(0)(base)
            base += 1
        settle(one, other)
    assert [bytes(batch) for _, batch, _ in owner.taken] == [b"%d" % number for number in range(20)]
    assert got == [[number] for number in range(20)] and len(questions) == 3
    assert one.arena.used_bytes == other.arena.used_bytes == 0


def test_one_that_waits_long_is_passed_by_any_number_of_others() -> None:
    one, other, asker, owner = made(slots=16)
    first = asker.send()
    settle(one, other)
    waits = owner.open.pop()
    for number in range(100):
        got = asker.send()
        settle(one, other)
        owner.open.pop()(number)
        settle(one, other)
        assert got == [number]
    assert first == []
    waits(77)
    settle(one, other)
    assert first == [77] and len(asker.otherwise) <= 100 // 16 + 1


def test_while_sends_of_the_connection_are_unanswered_each_new_one_is_compared_with_them() -> None:
    one, _, asker, _ = made()
    asker.unanswered.append("late")
    asker.send()
    asker.unanswered.clear()
    asker.send()
    assert asker.otherwise == [7] and one.peer.lane.out == 1


def test_a_shard_that_does_not_serve_is_sent_nothing_by_the_lane() -> None:
    one, other = Side(1), Side(0)
    asker, owner = Asker(one), Owner(other)
    with pytest.raises(BackpressureError):
        asker.send()
    connect(one, other, serving=False)
    settle(one, other)
    asker.send()
    assert asker.otherwise == [7, 7] and one.peer.lane.out == 0 and owner.taken == []


def test_what_has_no_target_or_finds_no_memory_is_served_by_the_peer() -> None:
    one, other, asker, owner = made()
    find, other.peer.lane.find_target = other.peer.lane.find_target, lambda uid: None
    asker.send(b"first")
    settle(one, other)
    other.peer.lane.find_target = find
    held = other.arena.copy(bytes(other.arena.bytes - 256))
    asker.send(b"second" * 100)
    settle(one, other)
    assert [bytes(request.payload) for request, _ in other.asked] == [b"first", b"second" * 100]
    assert owner.taken == [] and not any(request.is_repeat for request, _ in other.asked)
    del held


def test_an_answer_goes_behind_those_that_wait() -> None:
    one, other, asker, owner = made(slots=16)
    asker.send()
    settle(one, other)
    other.peer._waiting.answers.append(lambda: False)  # as if the ring were full
    owner.open.pop()(5)
    assert len(other.peer._waiting.answers) == 2
    other.peer._waiting.answers.popleft()
    settle(one, other)
    assert one.peer.lane.floor(7).offset == 8


def test_batches_that_wait_behind_a_request_without_memory_do_not_keep_it_from_going() -> None:
    one, other, asker, owner = made()
    held = one.arena.copy(bytes(one.arena.bytes // 2))
    asked: list[Any] = []
    one.ask(asked, bytes(one.arena.bytes // 2 + 1))
    got = [asker.send(b"b" * 1000) for _ in range(5)]
    assert len(asker.otherwise) == 5
    del held
    settle(one, other)
    assert len(other.asked) == 1 and len(owner.taken) == 5
    for done in owner.open:
        done(1)
    settle(one, other)
    assert got == [[1]] * 5


# Taken over


def test_what_is_late_is_taken_over_in_order_with_the_questions_and_its_answer_still_comes() -> None:
    one, other, asker, owner = made()
    first = asker.send()
    asked: list[Any] = []
    one.ask(asked)
    assert one.peer.lane.first_deadline() == 20.0
    one.peer.take_over(19.9)
    assert list(one.peer.questions) == [2]
    one.peer.take_over(20.0)
    assert list(one.peer.questions) == [1, 2]
    assert one.peer.lane.first_deadline() is None and one.peer.lane.out == 0
    settle(one, other)
    owner.open.pop()(3)
    settle(one, other)
    assert first == [3] and list(one.peer.questions) == [2]


def test_what_a_dead_process_has_not_answered_is_repeated_in_order() -> None:
    one, other, asker, owner = made()
    got = [asker.send(b"batch %d" % number) for number in range(3)]
    asked: list[Any] = []
    one.ask(asked, b"question")
    got.append(asker.send(b"batch 3"))
    settle(one, other)
    owner.open[1](10)
    settle(one, other)
    die(other)
    one.peer.detach()
    heir = Side(0)
    repeated = Owner(heir)
    connect(one, heir)
    settle(one, heir)
    assert [bytes(request.payload) for request, _ in heir.asked] == [b"batch 0", b"batch 2", b"question", b"batch 3"]
    assert all(request.is_repeat for request, _ in heir.asked) and repeated.taken == []
    while heir.asked:
        heir.answer(Answer((5).to_bytes(8, "little")))
    settle(one, heir)
    assert got == [[5], [10], [5], [5]] and one.arena.used_bytes == 0


def test_an_answer_for_a_dead_process_is_never_sent_to_the_next() -> None:
    one, other, asker, owner = made()
    asker.send()
    settle(one, other)
    late = owner.open.pop()
    die(one)
    other.peer.detach()
    heir = Side(1)
    connect(heir, other)
    settle(heir, other)
    got = Asker(heir).send()  # has the number that the dead one's send had
    settle(heir, other)
    late(66)
    late(NotOwnerError("late too"))
    settle(heir, other)
    assert got == []
    owner.open.pop()(1)
    settle(heir, other)
    assert got == [1]


# Loads


def test_what_was_served_is_counted_once() -> None:
    one, other, asker, _ = made()
    for batch, uid in ((b"b" * 100, 7), (b"b" * 50, 8), (b"b" * 10, 7)):
        asker.send(batch, uid)
    settle(one, other)
    assert sorted(other.peer.lane.take_loads()) == [(7, 2, 110), (8, 1, 50)]
    assert other.peer.lane.take_loads() == [] == one.peer.lane.take_loads()


# Hostile slots


@pytest.mark.parametrize(
    ("kind", "flags", "length"),
    [
        (Kind.ANSWER, 0, 7),
        (Kind.ANSWER, 0, 9),
        (Kind.ANSWER, 0, 0),
        (Kind.ANSWER, 1, 8),
        (Kind.ERROR, 0, 3),
        (Kind.ERROR, 0, 2**32 - 1),
    ],
)
def test_an_answer_that_cannot_be_is_corruption_and_the_send_is_repeated(kind: int, flags: int, length: int) -> None:
    one, other, asker, _ = made()
    got = asker.send()
    settle(one, other)
    push(other, kind, flags, length, 1, 0, b"\xff" * 40)
    with pytest.raises(CorruptionError):
        one.peer.drain()
    assert got == []
    one.peer.detach()
    heir = Side(0)
    connect(one, heir)
    settle(one, heir)
    assert [request.is_repeat for request, _ in heir.asked] == [True]


@pytest.mark.parametrize(
    ("length", "position"), [(2, -1), (2**32 - 1, 0), (1, 2**64 - 1), (8, 2**64 - 4), (1, 0x7FFFFFFFFFFFFFFF)]
)
def test_a_send_that_names_memory_outside_of_the_arena_is_corruption(length: int, position: int) -> None:
    one, other, _, owner = made()
    at = position if position >= 0 else len(one.shown) - 1
    push(one, Kind.REQUEST, SEND, length, 1, at, SEND_INLINE.pack(7, 1, 0))
    with pytest.raises(CorruptionError):
        other.peer.drain()
    assert owner.taken == []


def test_answers_of_numbers_that_are_not_out_are_passed_over() -> None:
    one, other, asker, owner = made(slots=16)
    got = asker.send()
    settle(one, other)
    for number in (0, 2, 17, 1 + 2**32, 2**64 - 1):
        push(other, Kind.ANSWER, 0, 8, number, 0, bytes(8))
    assert one.peer.drain() == 5 and got == []
    owner.open.pop()(4)
    settle(one, other)
    assert got == [4]


# Memory


def test_sends_leave_neither_cycles_nor_what_they_held() -> None:
    one, other, asker, owner = made()
    gc.collect()
    gc.disable()
    try:
        for number in range(300):
            got = [asker.send(), asker.send()]
            settle(one, other)
            if number % 3 == 0:
                one.peer.take_over(math.inf)
            owner.open.pop()(1)
            owner.open.pop()(RejectedError(Code.ERROR))
            turn(one, other)
            settle(one, other)
            assert all(got)
        assert one.arena.used_bytes == other.arena.used_bytes == 0
        assert gc.collect() == 0
    finally:
        gc.enable()
