"""Any sequence of requests, answers in any order, views kept for a while and deaths, against a model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from shardserver.errors import ArenaFullError, BackpressureError, PeerGoneError, ShardServerError
from shardserver.memory.arena import Block
from shardserver.protocol.sends import CallbackTarget
from shardserver.router.answers import Answer
from shardserver.router.peer import Answered, Question, Request
from shardserver.router.send_lane_python import SEND, SEND_INLINE, SentRecord
from tests.router.pair import Outcome, Side, connect, die, settle, turn

Done = Callable[[int | ShardServerError], None]
SLOTS, ARENA_BYTES, MAX_BYTES = 4, 1024 * 1024, 200 * 1024
SIZES = st.one_of(st.integers(0, 60), st.integers(0, MAX_BYTES))
SIDES = st.sampled_from((0, 1))


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(64)[: size % 64] + bytes([number % 256]) * (size - size % 64)


@dataclass(eq=False)
class Exchange:
    """A question, and what is known of it."""

    number: int
    asker: int
    payload_size: int
    answer_size: int
    survives: bool
    outcomes: list[Outcome] = field(default_factory=list)
    times_served: int = 0
    is_send: bool = False


def answer_content(exchange: Exchange) -> bytes:
    return content(~exchange.number & 0xFFFF, exchange.answer_size)


def base_of(outcome: Outcome) -> int | ShardServerError:
    return outcome if isinstance(outcome, ShardServerError) else int.from_bytes(outcome.inline, "little")


def question_of(sent: SentRecord) -> Question:
    inline = SEND_INLINE.pack(sent.partition.uid, sent.messages, 0)
    question = Question(sent.number, SEND, inline, None, lambda got: sent.done(base_of(got)), survives=True)
    question.block, question.was_pushed = sent.batch, True
    return question


class PairMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[Exchange] = []
        self.kept: list[list[memoryview]] = []
        self.seen: dict[int, list[int]] = {0: [], 1: []}  # numbers in order of arrival at the present process of a side
        self.open: dict[int, list[tuple[Exchange, Answered]]] = {0: [], 1: []}
        self.sides = [self.make_side(0), self.make_side(1)]
        connect(*self.sides, slots=SLOTS)

    def make_side(self, number: int) -> Side:
        side = Side(1 - number, ARENA_BYTES)
        side.serve = lambda request, answer: self.take_request(number, request, answer)
        side.peer.lane.find_target = lambda uid: self.find_target(number, uid)
        side.peer.begin_sends = lambda: 0.0
        side.peer.question_of = question_of
        return side

    def find_target(self, side: int, uid: int) -> CallbackTarget | None:
        """Some sends are served at once, and others look different to the lane."""
        if uid % 3 == 0:
            return None
        return CallbackTarget(lambda batch, count, done: self.take_send(side, uid, batch, count, done))

    def take_send(self, side: int, uid: int, batch: Block, count: int, done: Done) -> None:
        exchange = self.exchanges[uid]
        assert exchange.asker == 1 - side and exchange.times_served == 0 and count == 1 + uid
        assert bytes(batch) == content(uid, exchange.payload_size)
        exchange.times_served += 1
        self.seen[side].append(uid)
        self.open[side].append((exchange, lambda answer: done(int.from_bytes(answer.joined(), "little"))))

    def take_request(self, side: int, request: Request, answer: Answered) -> None:
        exchange = self.exchanges[int.from_bytes(request.inline[:8], "little")]
        assert exchange.asker == 1 - side
        assert bytes(request.payload) == content(exchange.number, exchange.payload_size)
        assert request.is_repeat or exchange.times_served == 0
        exchange.times_served += 1
        self.seen[side].append(exchange.number)
        self.open[side].append((exchange, answer))

    def take_outcome(self, exchange: Exchange, outcome: Outcome) -> None:
        exchange.outcomes.append(outcome)
        assert len(exchange.outcomes) == 1
        if isinstance(outcome, Answer):
            assert outcome.joined() == answer_content(exchange)
            self.kept.append([memoryview(part) for part in outcome.parts()])
            exchange.outcomes[0] = Answer()  # the views alone hold the loan
        else:
            assert isinstance(outcome, ShardServerError)

    @rule(asker=SIDES, payload_size=SIZES, answer_size=SIZES, survives=st.booleans())
    def ask(self, asker: int, payload_size: int, answer_size: int, survives: bool) -> None:
        if not self.sides[asker].peer.is_serving:  # its hello has not come: RemoteOwner asks nothing yet
            return
        one = Exchange(len(self.exchanges), asker, payload_size, answer_size, survives)
        self.exchanges.append(one)
        if payload_size > 60:  # as on the page: what brings much is answered inline, as a send is
            one.answer_size = answer_size % 41
        payload = content(one.number, payload_size)
        self.sides[asker].peer.ask(
            7, one.number.to_bytes(8, "little"), payload, lambda got: self.take_outcome(one, got), survives=survives
        )

    @rule(asker=SIDES, payload_size=SIZES)
    def send(self, asker: int, payload_size: int) -> None:
        """To the target of a partition: by the lane, or otherwise."""
        peer = self.sides[asker].peer
        if not peer.is_serving:
            return
        one = Exchange(len(self.exchanges), asker, payload_size + 1, 8, survives=True, is_send=True)
        try:
            batch = self.sides[asker].arena.copy(content(one.number, one.payload_size))
        except ArenaFullError:  # a route makes no room
            return
        self.exchanges.append(one)

        def ask(partition: Any, batch: Block, count: int, done: Done) -> None:
            inline = SEND_INLINE.pack(partition.uid, count, 0)
            peer.ask(SEND, inline, batch, lambda got: done(base_of(got)), survives=True)

        partition = peer.lane.partition(one.number, [], ask)
        partition.send(batch, 1 + one.number, lambda outcome: self.take_send_outcome(one, outcome))

    def take_send_outcome(self, exchange: Exchange, outcome: int | ShardServerError) -> None:
        exchange.outcomes.append(outcome if isinstance(outcome, ShardServerError) else Answer())
        assert len(exchange.outcomes) == 1
        assert outcome == base_of(Answer(answer_content(exchange))) or isinstance(outcome, ShardServerError)

    @rule(side=SIDES)
    def take_over(self, side: int) -> None:
        """All that the lane has is late."""
        self.sides[side].peer.take_over(math.inf)
        assert self.sides[side].peer.lane.out == 0

    @rule(side=SIDES, place=st.integers(0, 10))
    def answer(self, side: int, place: int) -> None:
        if self.open[side]:
            exchange, answered = self.open[side].pop(place % len(self.open[side]))
            raw = answer_content(exchange)
            cut = len(raw) // 3
            answered(Answer(raw[:cut], [raw[cut:]]))

    @rule(place=st.integers(0, 10), part=st.integers(0, 3))
    def drop_view(self, place: int, part: int) -> None:
        if self.kept:
            views = self.kept[place % len(self.kept)]
            if views:
                views.pop(part % len(views))
            if not views:
                self.kept.remove(views)

    @rule(side=SIDES)
    def publish(self, side: int) -> None:
        self.sides[side].peer.publish()

    @rule(side=SIDES, limit=st.integers(1, 5))
    def drain(self, side: int, limit: int) -> None:
        self.sides[side].peer.drain(limit)

    @rule()
    def turn(self) -> None:
        turn(*self.sides)

    @rule(dead=SIDES)
    def restart(self, dead: int) -> None:
        """What the dead side asked is of no interest; what it was asked is answered, refused or asked again."""
        die(self.sides[dead])
        for one in self.exchanges:
            if one.asker == dead and not one.outcomes:
                one.outcomes.append(Answer())
        living = self.sides[1 - dead]
        living.peer.detach()
        for one in self.exchanges:
            if one.asker != dead and one.outcomes and isinstance(one.outcomes[0], BackpressureError):
                gone = isinstance(one.outcomes[0], PeerGoneError)
                assert not (gone and one.survives), "who survives is asked again"
                assert gone or one.times_served == 0, "who was served has been pushed"
        self.open[dead], self.seen = [], {0: [], 1: []}
        self.open[1 - dead] = [(one, answer) for one, answer in self.open[1 - dead] if one.asker == 1 - dead]
        self.sides[dead] = self.make_side(dead)
        connect(*self.sides, slots=SLOTS)

    @invariant()
    def requests_arrive_in_order(self) -> None:
        for numbers in self.seen.values():
            assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        """All that is open is answered in the end, and all memory is free again."""
        self.kept.clear()
        for _ in range(10 + 3 * len(self.exchanges)):
            settle(*self.sides)
            self.kept.clear()
            for side in (0, 1):
                while self.open[side]:
                    self.answer(side, 0)
        settle(*self.sides)
        self.kept.clear()
        settle(*self.sides)
        assert all(one.outcomes for one in self.exchanges), "an answer is missing"
        for side in self.sides:
            assert not side.peer.questions and not side.peer.has_waiting
            assert side.arena.used_bytes == 0
            assert side.peer.rings is not None
            side.peer.detach()


SETTINGS = settings(max_examples=30, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.usefixtures("lane")
def test_any_sequence_ends_with_all_answered_and_all_memory_free() -> None:
    run_state_machine_as_test(PairMachine, settings=SETTINGS)


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize("seed", range(3))
def test_a_long_random_run_ends_with_all_answered_and_all_memory_free(seed: int) -> None:
    """Longer than what hypothesis shrinks well."""
    chance, machine = random.Random(seed), PairMachine()
    for _ in range(3000):
        step = chance.random()
        if step < 0.15:
            machine.send(chance.randrange(2), chance.choice((chance.randrange(60), chance.randrange(MAX_BYTES))))
        elif step < 0.3:
            sizes = [chance.choice((chance.randrange(60), chance.randrange(MAX_BYTES))) for _ in range(2)]
            machine.ask(chance.randrange(2), *sizes, chance.random() < 0.7)
        elif step < 0.6:
            machine.answer(chance.randrange(2), chance.randrange(10))
        elif step < 0.7:
            machine.drop_view(chance.randrange(10), chance.randrange(4))
        elif step < 0.705:
            machine.take_over(chance.randrange(2))
        elif step < 0.999:
            machine.publish(chance.randrange(2))
            machine.drain(chance.randrange(2), chance.randrange(1, 6))
        else:
            machine.restart(chance.randrange(2))
        machine.requests_arrive_in_order()
    machine.teardown()
