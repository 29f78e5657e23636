"""A pair of shards: what is asked, answered, lent and given back, when rings and arenas are full, when one dies."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shardserver import errors
from shardserver.errors import BackpressureError, Code, CorruptionError, PeerGoneError, RejectedError
from shardserver.router.answers import Answer, decode_error, encode_error
from shardserver.router.peer import LENT, Kind, Peer
from tests.router.pair import MIB, Outcome, Side, connect, die, make_pair, settle, turn

pytestmark = pytest.mark.usefixtures("lane")

TAGS_OWN_CLASS = {
    errors.RejectedError,
    errors.DiskFullError,
    errors.CorruptionError,
    errors.StorageError,
    errors.NotOwnerError,
    errors.NotCommittedError,
    errors.BackpressureError,
    errors.ShardServerError,
}


def read_all(outcome: Outcome) -> bytes:
    assert isinstance(outcome, Answer), outcome
    return outcome.joined()


# Asking and answering


def test_the_most_used_slots_of_a_ring_are_told_once() -> None:
    one, other = make_pair()
    settle(one, other)
    one.peer.take_peak_slots()
    for count in (3, 1):
        for _ in range(count):
            one.ask([])
        turn(one, other)
    assert (one.peer.take_peak_slots(), one.peer.take_peak_slots()) == (3, 0)


def test_a_small_answer_travels_in_the_slot_and_takes_no_memory() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got, inline=b"how many?")
    settle(one, other)
    asked = other.answer(Answer(b"x" * 20, [b"y" * 20]))
    settle(one, other)
    assert (asked.peer, asked.operation, asked.inline.rstrip(b"\0"), asked.is_repeat) == (0, 7, b"how many?", False)
    assert bytes(asked.payload) == b""
    assert read_all(got[0]) == b"x" * 20 + b"y" * 20
    assert one.arena.used_bytes == other.arena.used_bytes == 0


def test_a_payload_stays_in_the_askers_arena_until_the_answer() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got, b"p" * 5000)
    settle(one, other)
    assert bytes(other.asked[0][0].payload) == b"p" * 5000
    assert one.arena.used_bytes >= 5000 and other.arena.used_bytes == 0
    other.answer(Answer(b"done"))
    assert one.arena.used_bytes >= 5000
    settle(one, other)
    assert one.arena.used_bytes == 0 and not one.peer.questions


def test_an_empty_payload_is_none() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got, b"")
    settle(one, other)
    assert bytes(other.answer(Answer()).payload) == b""
    settle(one, other)
    assert read_all(got[0]) == b""


def test_what_lies_in_the_arena_is_lent_where_it_lies_and_other_bytes_are_copied_there() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    block = other.arena.copy(b"b" * 3000)
    one.ask(got)
    settle(one, other)
    other.answer(Answer(b"head", [memoryview(block)[1000:2000], b"", b"elsewhere" * 10]))
    settle(one, other)
    answer = got[0]
    assert isinstance(answer, Answer)
    parts = [memoryview(part) for part in answer.parts()]
    assert [bytes(part) for part in parts] == [b"head", b"b" * 1000, b"elsewhere" * 10]
    memoryview(block)[1000:1005] = b"seen!"  # the same memory, not a copy
    assert bytes(parts[1][:5]) == b"seen!"
    with pytest.raises(TypeError):
        parts[1][0] = 1


def test_an_answer_is_lent_in_pieces_where_free_memory_is_scattered() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    blocks = [other.arena.allocate(16384) for _ in range(MIB // 16384)]
    del blocks[::2]  # half of it is free, and no two neighbours
    said = os.urandom(300_000)
    one.ask(got)
    settle(one, other)
    other.answer(Answer(b"head", [said]))
    settle(one, other)
    assert read_all(got[0]) == b"head" + said
    got.clear()
    settle(one, other)
    assert other.arena.used_bytes == len(blocks) * 16384


def test_the_last_view_that_goes_gives_the_buffers_back() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got)
    settle(one, other)
    other.answer(Answer(b"", [b"a" * 3000, b"b" * 3000]))
    settle(one, other)
    answer = got.pop()
    assert isinstance(answer, Answer)
    view = memoryview(answer.parts()[1])[10:20]
    del answer
    settle(one, other)
    assert other.arena.used_bytes > 6000 and other.peer.statistics().lent == 1
    assert bytes(view) == b"b" * 10
    del view
    settle(one, other)
    assert other.arena.used_bytes == 0 and other.peer.statistics().lent == 0


def test_a_lent_answer_that_nobody_waits_for_any_more_is_given_back() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    question = one.ask(got, b"p" * 500)
    settle(one, other)
    one.peer.give_up(question)  # type: ignore[arg-type]
    settle(one, other)
    assert one.arena.used_bytes == 512  # the owner may still read it
    other.answer(Answer(b"", [b"a" * 3000]))
    settle(one, other)
    assert got == [] and one.arena.used_bytes == other.arena.used_bytes == 0


class DroppingProducer:
    """A producer; the first push of a RETURN ends another loan meanwhile, as the collector may."""

    def __init__(self, producer: object, kept: list[Outcome]) -> None:
        self._producer, self._kept = producer, kept
        self.slots = producer.slots  # type: ignore[attr-defined]
        self.free_slots = producer.free_slots  # type: ignore[attr-defined]

    def try_push(self, kind: int, *rest: object) -> bool:
        if kind == Kind.RETURN:
            self._kept.clear()
        return bool(self._producer.try_push(kind, *rest))  # type: ignore[attr-defined]

    def publish(self) -> bool:
        return bool(self._producer.publish())  # type: ignore[attr-defined]


def test_a_loan_that_ends_while_another_is_given_back_is_given_back_too() -> None:
    one, other = make_pair()
    first: list[Outcome] = []
    second: list[Outcome] = []
    one.ask(first)
    one.ask(second)
    settle(one, other)
    other.answer(Answer(b"", [b"a" * 300]))
    other.answer(Answer(b"", [b"b" * 300]))
    settle(one, other)
    assert one.peer.rings is not None
    one.peer.rings.producer = DroppingProducer(one.peer.rings.producer, second)  # type: ignore[assignment]
    first.clear()
    settle(one, other)
    assert other.arena.used_bytes == 0


# Full rings, full arenas


def test_both_directions_full_of_requests_at_once_are_all_answered_in_order() -> None:
    one, other = make_pair(slots=4)
    got: dict[int, list[Outcome]] = {0: [], 1: []}
    for number in range(50):
        one.ask(got[0], inline=b"%d" % number)
        other.ask(got[1], inline=b"%d" % number)
    for _ in range(1000):
        turn(one, other)
        for side in (one, other):
            while side.asked:
                request, answered = side.asked.pop(0)
                answered(Answer(request.inline.rstrip(b"\0")))
    assert [read_all(one) for one in got[0]] == [read_all(one) for one in got[1]] == [b"%d" % n for n in range(50)]
    assert not one.peer.has_waiting and not other.peer.has_waiting


def test_no_more_requests_are_out_than_half_of_the_ring_has_slots() -> None:
    one, other = make_pair(slots=8)
    got: list[Outcome] = []
    for _ in range(20):
        one.ask(got)
    settle(one, other)
    assert len(other.asked) == 4
    other.answer(Answer(b"1"))
    settle(one, other)
    assert len(other.asked) == 4 and len(got) == 1


def test_an_answer_wakes_what_waits_for_it() -> None:
    one, other = make_pair(slots=4)
    for _ in range(3):
        one.ask([])
    settle(one, other)
    before = one.wakes
    other.answer(Answer(b"1"))
    other.peer.publish()
    one.peer.drain()
    assert one.wakes > before
    settle(one, other)
    before = one.wakes
    other.answer(Answer(b"2"))
    other.peer.publish()
    one.peer.drain()
    assert one.wakes == before  # nothing waits any more


def test_an_inline_answer_has_a_slot_whatever_else_fills_the_ring() -> None:
    """Its publish comes before the journal write that says that the batch needs no repeat: it may not wait behind."""
    one, other = make_pair(slots=8)
    kept: list[Outcome] = []
    for _ in range(8):  # eight loans on one side, to be given back at once
        other.ask(kept)
        settle(one, other)
        one.answer(Answer(b"", [b"a" * 300]))
        settle(one, other)
    got: list[Outcome] = []
    for number in range(4):
        one.ask(got, inline=b"%d" % number)
    settle(one, other)
    assert len(other.asked) == 4
    kept.clear()
    for _ in range(10):
        other.ask([])
    other.peer.publish()  # returns and requests take what they may, and the other side takes nothing
    for _ in range(4):
        other.answer(Answer(b"done"))
    other.peer.publish()
    one.peer.drain()
    assert [read_all(answer) for answer in got] == [b"done"] * 4


def test_arenas_full_of_requests_on_both_sides_do_not_keep_answers_from_going() -> None:
    """Each side's memory is freed by the other's inline answers, which may not wait behind one that needs memory."""
    one, other = make_pair(arena_bytes=64 * 1024)
    polled: list[Outcome] = []
    sent: list[Outcome] = []
    for side in (one, other):
        side.ask(polled, inline=b"poll")
        side.ask(sent, b"s" * 32 * 1024, b"send")
        side.ask(sent, b"s" * 30 * 1024, b"send")
    settle(one, other)
    for side in (one, other):
        assert [request.inline.rstrip(b"\0") for request, _ in side.asked] == [b"poll", b"send", b"send"]
        side.answer(Answer(b"", [b"p" * 10_000]))
        side.answer(Answer(b"stored"))
        side.answer(Answer(b"stored"))
    settle(one, other)
    assert [read_all(answer) for answer in sent] == [b"stored"] * 4
    assert [read_all(answer) for answer in polled] == [b"p" * 10_000] * 2
    polled.clear()
    settle(one, other)
    assert one.arena.used_bytes == other.arena.used_bytes == 0


def test_sends_and_polls_of_64_mib_go_both_ways_through_arenas_that_hold_two() -> None:
    frame = bytes(64 * MIB - 1000) + b"end"
    one, other = make_pair(arena_bytes=128 * MIB)
    sent: list[Outcome] = []
    polled: list[Outcome] = []
    for side in (one, other):
        side.ask(polled, inline=b"poll")
        for _ in range(3):
            side.ask(sent, frame, inline=b"send")
        side.ask(polled, inline=b"poll")
    settle(one, other)
    assert [len(side.asked) for side in (one, other)] == [3, 3]  # the third send waits for memory, and all behind it
    finished = 0
    for _ in range(10):
        for side in (one, other):
            while side.asked:
                request = side.asked[0][0]
                is_poll = request.inline.startswith(b"poll")
                assert is_poll or (request.payload[-3:] == b"end" and len(request.payload) == len(frame))
                side.answer(Answer(b"", [frame]) if is_poll else Answer(b"stored"))
        settle(one, other)
        while polled:
            answer = polled.pop()
            assert isinstance(answer, Answer)
            assert len(answer.parts()[0]) == len(frame) and memoryview(answer.parts()[0])[-3:] == b"end"
            del answer
            finished += 1
        finished += len(sent)
        sent.clear()
        settle(one, other)
    assert finished == 10
    assert one.arena.used_bytes == other.arena.used_bytes == 0


def test_an_answer_that_does_not_fit_yet_is_not_copied_in_vain() -> None:
    one, other = make_pair(arena_bytes=64 * 1024)
    got: list[Outcome] = []
    held = other.arena.copy(b"h" * 32 * 1024)
    one.ask(got)
    settle(one, other)
    other.answer(Answer(b"", [b"a" * 20_000, b"b" * 20_000]))
    before = other.arena.statistics()
    settle(one, other)
    assert got == [] and other.arena.statistics() == before
    del held
    settle(one, other)
    assert read_all(got[0]) == b"a" * 20_000 + b"b" * 20_000


# Death


def test_what_a_dead_process_had_published_counts() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got)
    one.ask(got, survives=False)
    settle(one, other)
    other.answer(Answer(b"said"))
    other.peer.publish()
    other.answer(Answer(b"not shown"))
    die(other)
    one.peer.detach()
    assert read_all(got[0]) == b"said"
    assert isinstance(got[1], PeerGoneError) and len(got) == 2


def test_lent_buffers_of_a_dead_process_can_be_read_on_and_are_never_given_back_to_the_next() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got)
    settle(one, other)
    other.answer(Answer(b"", [b"a" * 3000]))
    settle(one, other)
    die(other)
    one.peer.detach()
    heir = Side(0)
    connect(one, heir)
    settle(one, heir)
    assert read_all(got[0]) == b"a" * 3000
    taken = heir.peer.statistics().slots_taken
    got.clear()
    settle(one, heir)
    assert heir.peer.statistics().slots_taken == taken


def test_survivors_are_asked_again_in_order_once_the_next_process_serves() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    for number in range(5):
        one.ask(got, b"batch %d" % number * 50, inline=b"%d" % number)
    settle(one, other)
    other.answer(Answer(b"done"), place=2)
    settle(one, other)
    die(other)
    one.peer.detach()
    heir = Side(0)
    connect(one, heir, serving=False)
    settle(one, heir)
    assert heir.asked == []  # it recovers
    heir.peer.say_hello(serving=True)
    settle(one, heir)
    one.ask(got, inline=b"new")
    settle(one, heir)
    names = [request.inline.rstrip(b"\0") for request, _ in heir.asked]
    assert names == [b"0", b"1", b"3", b"4", b"new"]
    assert [request.is_repeat for request, _ in heir.asked] == [True] * 4 + [False]
    assert bytes(heir.asked[2][0].payload) == b"batch 3" * 50
    while heir.asked:
        heir.answer(Answer(heir.asked[0][0].inline.rstrip(b"\0")))
    settle(one, heir)
    assert [read_all(answer) for answer in got] == [b"done", b"0", b"1", b"3", b"4", b"new"]
    assert one.arena.used_bytes == 0


def test_a_repeat_that_its_process_did_not_answer_either_is_asked_a_third_time() -> None:
    one, other = make_pair(slots=4)
    got: list[Outcome] = []
    for number in range(2):
        one.ask(got, inline=b"%d" % number)
    settle(one, other)
    for _ in range(2):
        die(other)
        one.peer.detach()
        other = Side(0)
        connect(one, other, slots=4)
        settle(one, other)
        assert [request.is_repeat for request, _ in other.asked] == [True, True]
    for _ in range(2):
        other.answer(Answer(b"at last"))
    settle(one, other)
    assert [read_all(answer) for answer in got] == [b"at last"] * 2


def test_what_was_asked_of_a_process_before_it_serves_is_no_repeat() -> None:
    one, other = Side(1), Side(0)
    connect(one, other, serving=False)
    got: list[Outcome] = []
    one.ask(got)
    settle(one, other)
    other.peer.say_hello(serving=True)
    settle(one, other)
    assert len(other.asked) == 1


def test_a_question_that_was_not_pushed_is_refused_and_one_that_may_not_be_repeated_is_gone() -> None:
    one, other = make_pair(slots=4)
    got: dict[int, list[Outcome]] = {number: [] for number in range(4)}
    one.ask(got[0], survives=False)
    one.ask(got[1])
    one.ask(got[2])  # only two may be out
    one.ask(got[3], survives=False)
    die(other)
    one.peer.detach()
    assert type(got[0][0]) is PeerGoneError and got[1] == []
    assert type(got[2][0]) is type(got[3][0]) is BackpressureError
    assert list(one.peer.questions) == [2]
    with pytest.raises(BackpressureError):
        one.ask([])


def test_an_answer_for_a_dead_process_is_never_sent_to_the_next() -> None:
    one, other = make_pair()
    one.ask([], b"a" * 500)
    settle(one, other)
    _, late = other.asked.pop()
    die(one)
    other.peer.detach()
    heir = Side(1)
    connect(heir, other)
    got: list[Outcome] = []
    heir.ask(got)  # has the number that the dead one's question had
    settle(heir, other)
    late(Answer(b"", [b"of the dead" * 100]))
    settle(heir, other)
    assert got == [] and other.arena.used_bytes == 0
    other.answer(Answer(b"of the living"))
    settle(heir, other)
    assert read_all(got[0]) == b"of the living"


def test_answers_that_waited_for_a_dead_process_are_dropped_with_it() -> None:
    one, other = make_pair(arena_bytes=64 * 1024)
    held = other.arena.copy(b"h" * 32 * 1024)
    one.ask([])
    settle(one, other)
    other.answer(Answer(b"", [b"a" * 40_000]))
    assert other.peer.has_waiting
    die(one)
    other.peer.detach()
    assert not other.peer.has_waiting
    del held
    assert other.arena.used_bytes == 0


def test_one_that_fails_on_its_answer_costs_no_other_its_own(caplog: pytest.LogCaptureFixture) -> None:
    one, other = make_pair()
    got: list[Outcome] = []

    def fail(outcome: Outcome) -> None:
        raise ZeroDivisionError

    one.peer.ask(7, b"", None, fail, survives=True)
    one.ask(got)
    settle(one, other)
    other.answer(Answer(b"1"))
    other.answer(Answer(b"2"))
    settle(one, other)
    assert read_all(got[0]) == b"2"
    assert [record.message for record in caplog.records] == ["answer_failed"]


# Errors


def errors_of_ours() -> Iterator[errors.ShardServerError]:
    for code in Code:
        yield RejectedError(code, "no")
    yield CorruptionError("segment", 7, "a batch")
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in classes:
        if issubclass(kind, errors.ShardServerError) and kind not in (RejectedError, CorruptionError):
            yield kind("why")


def test_every_error_travels_as_its_class_or_its_nearest_base() -> None:
    seen = set()
    for error in errors_of_ours():
        raw = encode_error(error)
        assert 4 <= len(raw) <= 40
        found = decode_error(raw)
        nearest = next(kind for kind in type(error).__mro__ if kind in TAGS_OWN_CLASS)
        assert type(found) is nearest, error
        assert str(error) in str(found)
        if isinstance(error, RejectedError):
            assert isinstance(found, RejectedError) and found.code is error.code
        seen.add(type(error))
    assert len(seen) == 12


def test_an_error_comes_to_who_asked() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got)
    settle(one, other)
    other.answer(RejectedError(Code.INVALID_OFFSET, "é" * 40))
    settle(one, other)
    assert isinstance(got[0], RejectedError) and got[0].code is Code.INVALID_OFFSET
    assert str(got[0]) == "é" * 18


def test_a_text_that_is_no_utf_8_still_travels() -> None:
    assert str(decode_error(encode_error(errors.StorageError("segment \udcff")))) == "segment ?"


# Hostile slots


@contextmanager
def pushing(side: Side) -> Iterator[Peer]:
    """Push whatever a broken process may write into its ring."""
    yield side.peer
    assert side.peer.rings is not None
    side.peer.rings.producer.publish()


def hostile_slots(arena_bytes: int, number: int) -> list[tuple[int, int, int, int, int, bytes]]:
    return [
        (0, 0, 0, 0, 0, b""),
        (9, 0, 0, 0, 0, b""),
        (Kind.REQUEST, 7, 2, 1, arena_bytes - 1, b""),
        (Kind.REQUEST, 7, 2**32 - 1, 1, 0, b""),
        (Kind.REPEAT, 7, 1, 1, 2**64 - 1, b""),
        (Kind.ANSWER, LENT, 16, number, arena_bytes - 15, b""),
        (Kind.ANSWER, LENT, 15, number, 0, b""),
        (Kind.ERROR, 0, 2, number, 0, b"\1\0"),
        (Kind.ERROR, 0, 4, number, 0, struct.pack("<HH", 99, 0)),
        (Kind.ERROR, 0, 4, number, 0, struct.pack("<HH", 1, 12345)),
    ]


@pytest.mark.parametrize("place", range(10))
def test_a_slot_that_cannot_be_is_corruption(place: int) -> None:
    one, other = make_pair()
    question = one.ask([])
    settle(one, other)
    slot = hostile_slots(len(other.shown), question.number)[place]  # type: ignore[attr-defined]
    with pushing(other) as peer:
        assert peer.rings is not None
        peer.rings.producer.try_push(*slot, False)
    with pytest.raises(CorruptionError):
        one.peer.drain()


@pytest.mark.parametrize("entry", [(2**64 - 1, 1), (0, 2**64 - 1), (2**63, 2**63)])
def test_a_table_that_names_memory_outside_of_the_arena_is_corruption(entry: tuple[int, int]) -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    question = one.ask(got)
    settle(one, other)
    table = other.arena.copy(struct.pack("<QQ", *entry))
    with pushing(other) as peer:
        assert peer.rings is not None
        number = question.number  # type: ignore[attr-defined]
        peer.rings.producer.try_push(Kind.ANSWER, LENT, 16, number, table.position, b"", False)
    with pytest.raises(CorruptionError):
        one.peer.drain()


def test_answers_and_returns_that_nobody_waits_for_are_passed_over() -> None:
    one, other = make_pair()
    with pushing(other) as peer:
        assert peer.rings is not None
        peer.rings.producer.try_push(Kind.ANSWER, 0, 3, 77, 0, b"abc", False)
        peer.rings.producer.try_push(Kind.RETURN, 0, 0, 78, 0, b"", False)
    assert one.peer.drain() == 2


def test_a_dead_process_that_left_a_corrupt_ring_is_followed_by_the_next() -> None:
    one, other = make_pair()
    got: list[Outcome] = []
    one.ask(got)
    settle(one, other)
    with pushing(other) as peer:
        assert peer.rings is not None
        peer.rings.producer.try_push(9, 0, 0, 0, 0, b"", False)
    die(other)
    one.peer.detach()
    heir = Side(0)
    connect(one, heir)
    settle(one, heir)
    heir.answer(Answer(b"yes"))
    settle(one, heir)
    assert read_all(got[0]) == b"yes"


# Memory


def test_requests_leave_no_cycles_behind() -> None:
    one, other = make_pair()
    gc.collect()
    gc.disable()
    try:
        for _ in range(200):
            for payload, outcome in ((None, b"x"), (b"p" * 300, b"y" * 300)):
                got: list[Outcome] = []
                one.ask(got, payload)
                question = one.ask([])
                one.peer.give_up(question)  # type: ignore[arg-type]
                one.ask(got, payload)
                settle(one, other)
                other.answer(Answer(b"", [outcome]))
                other.answer(Answer(b"", [outcome]))
                other.answer(RejectedError(Code.ERROR))
                settle(one, other)
        got.clear()
        settle(one, other)
        assert one.arena.used_bytes == other.arena.used_bytes == 0
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_detaching_closes_the_doorbell() -> None:
    one, _ = make_pair()
    assert one.peer.rings is not None
    doorbell = one.peer.rings.doorbell
    one.peer.detach()
    one.peer.detach()
    with pytest.raises(OSError):
        os.fstat(doorbell)
