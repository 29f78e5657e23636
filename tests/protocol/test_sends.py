"""Targets and waiters in Python: each send ends once, with its own ticket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shardserver.errors import BackpressureError, ShardServerError
from shardserver.memory.arena import Block
from shardserver.memory.heap import heap_arena
from shardserver.protocol.sends import CallbackTarget

if TYPE_CHECKING:
    from shardserver.protocol.sends import SendDone


def test_a_target_in_python_confirms_and_refuses_the_sends_that_it_took() -> None:
    taken: list[tuple[bytes, int, SendDone]] = []
    target = CallbackTarget(lambda batch, count, done: taken.append((bytes(batch), count, done)))
    outcomes: list[int | ShardServerError] = []
    arena = heap_arena(1 << 20)
    target.send(arena.copy(b"first"), 1, outcomes.append)
    target.send(arena.copy(b"second"), 2, outcomes.append)
    assert [one[:2] for one in taken] == [(b"first", 1), (b"second", 2)] and outcomes == []
    refusal = BackpressureError("full")
    taken[1][2](refusal)
    taken[0][2](1 << 40)
    assert outcomes == [refusal, 1 << 40]


def test_what_a_target_did_not_take_raises_and_is_told_to_nobody() -> None:
    def full(batch: Block, count: int, done: SendDone) -> None:
        raise BackpressureError("full")

    outcomes: list[int | ShardServerError] = []
    with pytest.raises(BackpressureError):
        CallbackTarget(full).send(heap_arena(1 << 16).copy(b"one"), 1, outcomes.append)
    assert outcomes == []
