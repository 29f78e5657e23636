"""Producers that number their attempts, each a thread with a connection of its own, and what became of the attempts."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import ShardServerError
from shardserver.protocol.messages import SendReply
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer
from tests.supervisor.servers import wait_until
from tests.wire_connection import WireConnection, send_request

NOT_COMMITTED, NOT_ACCEPTED = 57, 58
REPEAT_S = 0.05  # as SDKs do
GIVE_UP_S = 40.0


class Producer:
    """Sends to one partition until it is stopped. acknowledged: (offset, attempt); error: what ended it before.

    copies: how many equal batches are in flight at a time, one attempt's number in each.
    """

    _numbers = itertools.count(1)

    def __init__(self, connection: WireConnection, topic: str, *, copies: int = 1, payload_bytes: int = 200) -> None:
        self.connection, self.topic, self._copies, self._bytes = connection, topic, copies, payload_bytes
        self.shard = connection.shard
        self.attempts: list[int] = []
        self.acknowledged: list[tuple[int, int]] = []
        self.error: BaseException | None = None
        self.repeats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                number = next(self._numbers)
                self.attempts.append(number)
                payload = f"{number} ".encode().ljust(self._bytes, b"x")
                self.acknowledged += [(offset, number) for offset in self._send(payload)]
        except (OSError, ShardServerError) as error:
            self.error = error

    def _send(self, payload: bytes) -> list[int]:
        """The offsets of all copies; a frame that is answered 57 or 58 is sent again as it is, like SDKs do."""
        frames = [self.connection.frame(Command.SEND_MESSAGES, send_request(self.topic, 0, payload))[1]] * self._copies
        offsets: list[int] = []
        end = time.monotonic() + GIVE_UP_S
        while frames:
            for frame in frames:
                self.connection.write_bytes(frame)
            answers = [self.connection.read_answer() for _ in frames]
            unanswered = []
            for frame, answer in zip(frames, answers, strict=True):
                code = answer.header.status
                if code == 0:
                    offsets.append(SendReply.decode(answer.body).confirmations[0].base_offset)
                elif code in (NOT_COMMITTED, NOT_ACCEPTED) and time.monotonic() < end:
                    unanswered.append(frame)
                else:
                    raise RequestRefusedError(code, f"a send to {self.topic}")
            self.repeats += len(unanswered)
            if unanswered:
                time.sleep(REPEAT_S)
            frames = unanswered
        return offsets

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(GIVE_UP_S + 5)
        assert not self._thread.is_alive(), f"a send to {self.topic} is never answered"
        self.connection.close()


def wait_for_more(producers: Sequence[Producer], count: int = 3) -> None:
    """Until each of them has been acknowledged so often again."""
    goals = [len(one.acknowledged) + count for one in producers]

    def reached() -> bool:
        return all(len(one.acknowledged) >= goal for one, goal in zip(producers, goals, strict=True))

    wait_until(lambda: reached() or any(one.error for one in producers), "all producers go on")
    assert [one.error for one in producers if one.error] == []


def check_stored(
    server: ShardedServer, producers: Sequence[Producer], *, copies: int = 1, read: Callable[[str], list[bytes]]
) -> None:
    """Each acknowledged message is where its answer said; no attempt is there more often than it was sent."""
    for topic in sorted({one.topic for one in producers}):
        mine = [one for one in producers if one.topic == topic]
        there = [int(payload.split()[0]) for payload in read(topic)]
        acknowledged = [pair for one in mine for pair in one.acknowledged]
        wrong = [(offset, number) for offset, number in acknowledged if there[offset : offset + 1] != [number]]
        assert wrong == [], f"{topic}: lost, or elsewhere"
        assert len({offset for offset, _ in acknowledged}) == len(acknowledged), f"{topic}: two answers for one offset"
        attempted = {number for one in mine for number in one.attempts}
        often = {number: count for number, count in Counter(there).items() if count > copies or number not in attempted}
        assert often == {}, f"{topic}: doubled, or never sent"
        ended = {one.attempts[-1] for one in mine if one.error}
        assert all(count == copies for number, count in Counter(there).items() if number not in ended)
        for one in mine:
            own = set(one.attempts)
            order = [number for number in there if number in own]
            assert order == sorted(order), f"{topic}: one connection's messages are out of order"
