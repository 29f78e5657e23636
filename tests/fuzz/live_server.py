"""A running server under valid sessions that send damaged frames: no crash, no foreign error, memory bounded.

Frames are those of the vectors with the session of the connection, and bytes changed in body or header. Some arrive in
pieces, some are never finished. Another connection sends and polls all the time, and finds what it sent.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from shardserver.client.connection import RequestRefusedError
from shardserver.errors import Code, ShardServerError
from shardserver.protocol.addresses import StreamAddress
from shardserver.protocol.frame import RequestHeader, encode_request
from shardserver.protocol.table import TABLE, Command
from tests.protocol.bodies import REQUESTS
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

CORES = 2
# Those that can take away the connection's own user; the codecs of all are fuzzed apart.
NOT_SENT = {Command.LOGOUT, Command.UPDATE_USER, Command.CHANGE_PASSWORD, Command.LOGIN, Command.LOGIN_WITH_TOKEN}
COMMANDS = sorted(command for command in TABLE if REQUESTS[command] and command not in NOT_SENT)
HUGE = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x04")
FRAMES_A_CONNECTION = 60
ANSWER_WAIT_S = 2.0
KEPT = "kept"
GONE_CODES = {Code.STREAM_NOT_FOUND, Code.TOPIC_NOT_FOUND, Code.PARTITION_NOT_FOUND, Code.NO_PARTITIONS}
GROWTH_BYTES = 48 << 20


def damaged(chance: random.Random, good: bytes) -> bytes:
    """As the hypothesis strategy of tests/protocol/test_hostile.py, fast and from a seed."""
    raw = bytearray(good)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        place = chance.randint(0, len(raw))
        match chance.randrange(5):
            case 0:
                raw[place : place + 1] = chance.randbytes(1)
            case 1:
                raw[place : place + 4] = chance.choice(HUGE)
            case 2:
                del raw[place:]
            case 3:
                raw[place:place] = chance.randbytes(chance.randint(1, 8))
            case 4:
                raw += raw[place:][:64]
    return bytes(raw)


class HostileConnection(WireConnection):
    """A good session, and what it sends with it."""

    def hostile_frame(self, chance: random.Random) -> bytes:
        command = chance.choice(COMMANDS)
        row, self._next_request = TABLE[command], self._next_request + 1
        body = damaged(chance, chance.choice(REQUESTS[command]))
        raw = encode_request(
            row.operation,
            int(command) if row.operation == 2 else 0,
            body,
            client=self._client,
            request=self._next_request,
            session=self._session,
            checked=chance.random() < 0.1,
        )
        if chance.random() < 0.1:  # the header too, less its length in most of them: a wrong one ends the stream
            head = bytearray(raw[:256])
            head[chance.randrange(256)] = chance.randrange(256)
            raw = bytes(head) + raw[256:]
        return raw if RequestHeader.decode(raw).operation != TABLE[Command.LOGOUT].operation else b""

    def drain(self) -> None:
        """Read until all is answered: a ping comes last, and comes in order."""
        number = self.write(Command.PING)
        while self.read_answer().header.request != number:
            pass


class LiveFuzz:
    """Counts of what was sent and how it ended."""

    def __init__(self, server: ShardedServer, seed: int) -> None:
        self.server, self.chance = server, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.pids = [int(shard["pid"]) for shard in server.status()["shards"]]
        self.resident: list[tuple[float, int]] = []

    def connection(self) -> None:
        """One hostile life, whatever its end."""
        chance = self.chance
        with HostileConnection(self.server.address, timeout_s=ANSWER_WAIT_S) as one:
            frames = [one.hostile_frame(chance) for _ in range(chance.randint(1, FRAMES_A_CONNECTION))]
            self.counts["connections"] += 1
            self.counts["frames"] += len(frames)
            try:
                for part in self._pieces(b"".join(frames)):
                    one.write_bytes(part)
                one.drain()
                self.counts["answered to the end"] += 1
            except RequestRefusedError:
                self.counts["evicted"] += 1
            except TimeoutError:
                self.counts["left waiting for more bytes"] += 1
            except (OSError, ShardServerError):
                self.counts["closed by the server"] += 1

    def _pieces(self, stream: bytes) -> Iterator[bytes]:
        """Whole or chopped; one in ten misses its end."""
        end = self.chance.randint(0, len(stream)) if self.chance.random() < 0.1 else len(stream)
        step = self.chance.choice((len(stream) + 1, 4096, 257))
        for start in range(0, end, step):
            yield stream[start : min(end, start + step)]

    def tidy(self) -> None:
        """Streams that were made by accident have a right to memory; here they only hide a leak."""
        with WireConnection(self.server.address) as one:
            for stream in one.ask(Command.GET_STREAMS).streams:
                if stream.name != KEPT:
                    with suppress(RequestRefusedError):
                        one.ask(Command.DELETE_STREAM, StreamAddress(stream.id))

    def note_memory(self) -> None:
        self.resident.append((time.monotonic(), sum(psutil.Process(pid).memory_info().rss for pid in self.pids)))

    def growth_bytes(self) -> int:
        """Of the last quarter's least beside the second quarter's largest."""
        quarter = max(1, len(self.resident) // 4)
        sizes = [size for _, size in self.resident]
        return min(sizes[-quarter:]) - max(sizes[quarter : 2 * quarter] or sizes)

    def complaints(self) -> list[str]:
        found = []
        if [int(shard["pid"]) for shard in self.server.status()["shards"]] != self.pids:
            found.append("a shard ended")
        if "Traceback" in self.server.log():
            found.append("an error that nobody named: " + self.server.log().partition("Traceback")[2][-600:])
        if self.growth_bytes() > GROWTH_BYTES:
            found.append(f"memory grew by {self.growth_bytes()} bytes")
        return found


class Kept:
    """A topic of another connection. A damaged frame may be a good request to delete it: then it is made anew."""

    def __init__(self, connection: WireConnection) -> None:
        self._connection, self._sent = connection, 0
        self._create()

    def _create(self) -> None:
        with suppress(RequestRefusedError):
            self._connection.create_stream(KEPT)
        with suppress(RequestRefusedError):
            self._connection.delete_topic(KEPT, "t")
        self._connection.create_topic(KEPT, "t", 1)

    def goes_on(self) -> bool:
        """Send one more, and find all that were sent. False: it had been deleted or purged."""
        payload = b"%d" % self._sent
        try:
            offset = self._connection.send_payloads("t", 0, payload, stream=KEPT)
        except RequestRefusedError as refused:
            assert refused.code in GONE_CODES, refused
            self._sent = 0
            self._create()
            return False
        found = self._connection.read_all("t", 0, stream=KEPT)[-offset - 1 :]
        assert found[-1] == payload and len(found) == offset + 1
        is_whole, self._sent = offset == self._sent, offset + 1
        return is_whole


def fuzz_server(seconds: float, seed: int = 0) -> bool:
    """Prints counts. True: nothing broke."""
    with tempfile.TemporaryDirectory() as directory:
        server = ShardedServer(Path(directory), cores=CORES)
        try:
            server.serve()
            return _fuzz(server, seconds, seed or int(time.time()))
        finally:
            server.kill()


def _fuzz(server: ShardedServer, seconds: float, seed: int) -> bool:
    fuzz, end = LiveFuzz(server, seed), time.monotonic() + seconds
    with WireConnection(server.address) as good:
        kept = Kept(good)
        while time.monotonic() < end:
            for _ in range(5):
                fuzz.connection()
            fuzz.counts["legally deleted"] += not kept.goes_on()
            fuzz.tidy()
            fuzz.note_memory()
    complaints = fuzz.complaints()
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(fuzz.counts.items()))
    print(f"server: seed {seed}, {told}, memory +{max(0, fuzz.growth_bytes()) >> 10} KiB, crashes {len(complaints)}")
    for one in complaints:
        print(f"  {one}")
    return not complaints
