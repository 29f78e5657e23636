"""A relay between a client and a server that notes each command with the code of its answer; the bytes pass unchanged.

It has the server's port on another loopback address, which the server advertises: the SDK dials the address of the
cluster metadata when it has lost its connection, and would go past the relay otherwise.

One request of a connection has exactly one answer, in order (protocol/README.md 4), so that no numbers are compared.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardserver.errors import RejectedError
from shardserver.protocol.frame import HEADER_BYTES, Eviction, RequestHeader, decode_answer, split_result
from shardserver.protocol.login import LoginRequest
from shardserver.protocol.table import OP_READ, OP_REGISTER, OP_TRUNCATE_PARTITION, Command, Row, find_row

HOST = "127.0.0.2"
RESULTS = Path("build/conformance")
SIZE = slice(48, 52)
EVICTED = "eviction"


@dataclass(frozen=True)
class Exchange:
    """code: of the status or the result section, 0 for a good answer; or `eviction N`, with the reason."""

    command: str
    code: int | str


BEGINS_S = 0.02


@dataclass
class _Link:
    """One client's connection. waiting: requests without an answer yet."""

    waiting: deque[tuple[str, Row | None]] = field(default_factory=deque)


class Tap:
    """Listens on HOST and connects to the server anew for every client, so that it outlives the server."""

    def __init__(self, server: Callable[[], str]) -> None:
        """server: gives HOST:PORT, now and for each connection; the port stays."""
        self._server = server
        self._log: list[Exchange] = []
        self.errors: list[Exception] = []  # an answer without a request, a frame that is none
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._port = int(server().rpartition(":")[2])
        self.address = f"{HOST}:{self._port}"
        self.listen()

    def listen(self) -> None:
        """Again after refuse, on the same port."""
        self._run(self._listen())

    def refuse(self) -> None:
        """New connections, as the port of a server that is down does."""
        self._run(self._refuse())

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def log(self) -> list[Exchange]:
        """All exchanges since the last take_log, in the order of their answers; noted before the client has them."""
        return list(self._log)

    def take_log(self) -> list[Exchange]:
        taken, self._log = self._log, []
        return taken

    # In the loop's thread

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._relay, HOST, self._port)

    async def _refuse(self) -> None:
        self._listener.close()

    async def _end(self) -> None:
        self._listener.close()
        # A connection that was taken just now has no handler yet, and nobody else closes it; a handler that is
        # cancelled before it begins does not either.
        await asyncio.sleep(BEGINS_S)
        for one in list(self._tasks):
            one.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            host, _, port = self._server().rpartition(":")
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection(host, int(port))
                await self._join(reader, writer, server_reader, server_writer)
        except asyncio.CancelledError:
            pass  # a stream server logs its handlers' cancellation as an error
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        link = _Link()
        ways = [
            asyncio.ensure_future(self._pass_on(reader, server_writer, lambda frame: self._note_request(link, frame))),
            asyncio.ensure_future(self._pass_on(server_reader, writer, lambda frame: self._note_answer(link, frame))),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            ended = await asyncio.gather(*ways, return_exceptions=True)
            self.errors += [one for one in ended if isinstance(one, Exception)]
            server_writer.close()

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, note: Callable[[bytes], None]
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                header = await source.readexactly(HEADER_BYTES)
                frame = header + await source.readexactly(int.from_bytes(header[SIZE], "little") - HEADER_BYTES)
                note(frame)
                target.write(frame)
                await target.drain()

    def _note_request(self, link: _Link, frame: bytes) -> None:
        header = RequestHeader.decode(frame)
        row = find_row(header.operation, header.code)
        link.waiting.append((name_of(row, header, memoryview(frame)[HEADER_BYTES:]), row))

    def _note_answer(self, link: _Link, frame: bytes) -> None:
        name, row = link.waiting.popleft()
        self._log.append(Exchange(name, code_of(row, frame)))


def name_of(row: Row | None, header: RequestHeader, body: memoryview) -> str:
    """The command's name; `code N` or `operation N` for one that the protocol does not have."""
    if row is None:
        return f"code {header.code}" if header.operation == OP_READ else f"operation {header.operation}"
    if header.operation == OP_REGISTER:
        with suppress(RejectedError):
            return (Command.LOGIN if LoginRequest.decode(body).username is not None else Command.LOGIN_WITH_TOKEN).name
    return row.command.name


def code_of(row: Row | None, frame: bytes) -> int | str:
    answer = decode_answer(frame)
    if isinstance(answer, Eviction):
        return f"{EVICTED} {answer.reason}"
    has_result = row is not None and (row.has_result_section or answer.operation == OP_TRUNCATE_PARTITION)
    if answer.status or not has_result:
        return answer.status
    errors, _ = split_result(memoryview(frame)[HEADER_BYTES:])
    return errors[0][1] if errors else 0


class Results:
    """What the tests of a client saw, by test, kept in a file over several processes and runs."""

    def __init__(self, client: str, directory: Path = RESULTS) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"{client}.json"

    def add(self, rows: dict[str, dict[str, Any]]) -> None:
        """rows: by test; one that is there already is replaced."""
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # workers of one run write at the same time
            file.seek(0)
            text = file.read()
            kept = json.loads(text) if text else {}
            file.truncate(0)
            json.dump(dict(sorted((kept | rows).items())), file, indent=1)


def codes_by_command(log: list[Exchange]) -> dict[str, list[int | str]]:
    """Command -> its different codes, in the order seen."""
    found: dict[str, list[int | str]] = {}
    for one in log:
        codes = found.setdefault(one.command, [])
        if one.code not in codes:
            codes.append(one.code)
    return found
