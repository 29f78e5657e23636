"""One connection with many requests in flight: a thread writes them, and each answer is checked where it is due."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from shardserver.protocol.body import Body
from shardserver.protocol.messages import PollReply, SendReply
from shardserver.protocol.table import Command
from tests.wire_connection import Answer, WireConnection, batches_of

Check = Callable[[Answer], None]
Step = tuple[Command, Body, Check]
ANSWER_WAIT_S = 60.0


class Pipeline:
    """At most `depth` requests are unanswered. Writing waits for nobody but the server, and reading the same."""

    def __init__(self, connection: WireConnection, depth: int) -> None:
        self._connection, self._depth = connection, depth
        self._room, self._written = threading.Semaphore(depth), threading.Semaphore(0)
        self._due: deque[tuple[int, Check]] = deque()
        self._failure: BaseException | None = None
        self._ended = False

    def run(self, steps: Iterable[Step]) -> int:
        """Gives the number of answers. Raises AssertionError for one that is lost, out of order or wrong."""
        writer = threading.Thread(target=self._write, args=(steps,), daemon=True)
        writer.start()
        answers = 0
        while self._next_is_written():
            number, check = self._due.popleft()
            answer = self._connection.read_answer()
            assert answer.header.request == number, f"answer {answer.header.request} where {number} was due"
            assert answer.header.status == 0, f"request {number}: code {answer.header.status}"
            check(answer)
            answers += 1
            self._room.release()
        writer.join()
        if self._failure is not None:
            raise self._failure
        return answers

    def _next_is_written(self) -> bool:
        assert self._written.acquire(timeout=ANSWER_WAIT_S), "the server reads no more"
        return bool(self._due)

    def _write(self, steps: Iterable[Step]) -> None:
        try:
            for command, request, check in steps:
                if not self._room.acquire(timeout=ANSWER_WAIT_S):
                    return
                number, frame = self._connection.frame(command, request)
                self._due.append((number, check))
                self._written.release()
                self._connection.write_bytes(frame)
        except BaseException as error:  # shown by the reader
            self._failure = error
        finally:
            self._written.release()


def expect_offset(base_offset: int) -> Check:
    def check(answer: Answer) -> None:
        found = SendReply.decode(answer.body).confirmations[0].base_offset
        assert found == base_offset, f"offset {found} where {base_offset} was due"

    return check


def expect_payloads(base_offset: int, payloads: list[bytes]) -> Check:
    """Batches of one message each, from base_offset on; none of them after what was sent before the poll."""

    def check(answer: Answer) -> None:
        found = [(base, *content) for base, content in batches_of(PollReply.decode(answer.body).batches)]
        assert found == [(offset, one) for offset, one in enumerate(payloads, base_offset)]

    return check
