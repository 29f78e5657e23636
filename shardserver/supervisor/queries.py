"""Queries that wait for a shard's answer. Each is answered once: by the shard, by its deadline or by its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardserver.supervisor.messages import Query, answer_deadline_s

MAX_QUERIES = 64

Reply = Callable[[dict[str, Any]], None]


class WaitingQueries:
    """Of one shard."""

    def __init__(self, shard: int, clock: Callable[[], float]) -> None:
        self._shard, self._clock = shard, clock
        self._waiting: dict[int, tuple[float, float, Reply]] = {}  # number -> deadline, seconds it had, reply
        self._last_number = 0

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_QUERIES

    def add(self, command: str, arguments: dict[str, Any], reply: Reply) -> Query:
        """The query to send."""
        self._last_number += 1
        allowed_s = answer_deadline_s(command)
        self._waiting[self._last_number] = (self._clock() + allowed_s, allowed_s, reply)
        return Query(self._last_number, command, arguments)

    def answer(self, number: int, content: dict[str, Any]) -> None:
        """Nothing happens when its deadline has passed."""
        if number in self._waiting:
            self._waiting.pop(number)[2](content)

    def next_deadline(self) -> float | None:
        return min((deadline for deadline, _, _ in self._waiting.values()), default=None)

    def end_late(self) -> None:
        now = self._clock()
        for number in [one for one, (deadline, _, _) in self._waiting.items() if deadline <= now]:
            _, allowed_s, reply = self._waiting.pop(number)
            reply(self.error(f"no answer within {allowed_s:g} s"))

    def end_all(self, sentence: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, _, reply in waiting.values():
            reply(self.error(sentence))

    def error(self, sentence: str) -> dict[str, Any]:
        return {"shard": self._shard, "error": sentence}
