"""What two processes have asked each other and lent: questions, requests, loans, and the slots that wait for room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from shardserver.errors import ShardServerError
from shardserver.router.answers import Answer, Buffer


class Kind(IntEnum):
    """What a slot is. flags: the operation of a request; 1 for an answer whose buffers are lent."""

    HELLO = 1
    REQUEST = 2
    REPEAT = 3
    ANSWER = 4
    ERROR = 5
    RETURN = 6


LENT = 1


class Answered(Protocol):
    def __call__(self, outcome: Answer | ShardServerError, /) -> None: ...


@dataclass(slots=True, eq=False)
class Question:
    """A request of ours, until its answer. survives: it is asked again of the peer's next process, as a repeat.

    late, deadline: for whoever asks, to be called when the answer is late.
    """

    number: int
    operation: int
    inline: bytes
    payload: Buffer | None
    done: Answered
    survives: bool
    late: Callable[[], None] | None = None
    deadline: float = 0.0
    block: Buffer | None = None
    was_pushed: bool = False
    waits_for_memory: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks of us. payload: in its arena, and good until we have answered. generation: of its process."""

    peer: int
    operation: int
    inline: bytes
    payload: memoryview
    is_repeat: bool
    generation: int = 0


ServeRequest = Callable[[Request, Answered], None]


class Loan:
    """An answer's buffers, held by the views of them; the last one to go gives them back."""

    __slots__ = ("_number", "_returned", "_wake")

    def __init__(self, number: int, returned: list[int], wake: Callable[[], None]) -> None:
        self._number, self._returned, self._wake = number, returned, wake

    def __del__(self) -> None:
        self._returned.append(self._number)
        self._wake()


@dataclass(slots=True)
class Waiting:
    """Slots that found no room, in order, by what they may wait for.

    for_memory: how many of the requests need room in the arena first.
    """

    answers: deque[Callable[[], bool]] = field(default_factory=deque)
    lent: deque[Callable[[], bool]] = field(default_factory=deque)
    requests: deque[Callable[[], bool]] = field(default_factory=deque)
    for_memory: int = 0

    def __len__(self) -> int:
        return len(self.answers) + len(self.lent) + len(self.requests)

    def clear(self) -> None:
        for waiting in (self.answers, self.lent, self.requests):
            waiting.clear()
        self.for_memory = 0
