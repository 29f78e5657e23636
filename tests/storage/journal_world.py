"""A journal alone on the fault Disk: numbered records in, records out, and bytes to damage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shardserver.errors import StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.journal import Journal, create_journal
from shardserver.storage.journal_reader import JournalRecovery, open_journal
from shardserver.storage.settings import LogSettings
from shardserver.storage.synced_write import SyncFaults
from tests.fault_disk import FaultDisk

BLOCK = fmt.BLOCK_BYTES
SETTINGS = LogSettings(journal_file_bytes=128 * 1024, journal_files=6, max_write_bytes=16 * 1024)
KIND = 77  # of no meaning to the log


@dataclass
class Written:
    """One write that was acknowledged: where it stands and the number in its record."""

    path: str
    position: int
    length: int
    sequence: int
    number: int


async def submitted(journal: Journal, oldest_live: int = 1, *, clean: bool = False) -> None:
    """Write what is staged. Raises StorageError."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(error: StorageError | None) -> None:
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    journal.submit(oldest_live, clean=clean, on_written=lambda: None, on_end=ended)
    await outcome


class World:
    """Acknowledged writes of all openings, in order."""

    def __init__(self, seed: int = 1, settings: LogSettings = SETTINGS, parent: str = "data") -> None:
        self.disk = FaultDisk(seed)
        self.settings, self.parent = settings, parent
        self.writes: list[Written] = []
        self.number = 0
        self.oldest_live = 1

    def create(self) -> World:
        asyncio.run(create_journal(self.disk, SyncFaults(), self.parent, self.settings))
        return self

    async def open(self, on_progress: Callable[[int], None] = lambda read_bytes: None) -> JournalRecovery:
        return await open_journal(self.disk, f"{self.parent}/journal", self.settings, SyncFaults(), on_progress)

    async def write(self, journal: Journal, blocks: int = 1, *, clean: bool = False, payload: bytes = b"") -> Written:
        """One write of so many blocks, acknowledged."""
        assert journal.begin()
        self.number += 1
        record = (b"%d " % self.number).ljust(8) + payload
        full = blocks * BLOCK - fmt.WRITE_HEADER_BYTES - fmt.RECORD_HEADER_BYTES
        journal.staging.add(KIND, 0, 0, 1, 1, record.ljust(full, b"."))
        current, position = journal.current, journal.position
        assert current is not None
        await submitted(journal, self.oldest_live, clean=clean)
        self.writes.append(Written(current.path, position, blocks * BLOCK, current.sequence, self.number))
        return self.writes[-1]

    def live(self, count: int, *, blocks: int = 1, clean: bool = False, keep_files: int = 0) -> World:
        """One opening with `count` writes. keep_files: so many files before the current one stay live; 0: all."""

        async def run() -> None:
            ring = await self.open()
            for place in range(count):
                if keep_files:
                    self.oldest_live = max(self.oldest_live, ring.journal.sequence - keep_files)
                await self.write(ring.journal, blocks, clean=clean and place == count - 1)
            await ring.journal.close()

        asyncio.run(run())
        return self

    def expected(self) -> list[int]:
        return [one.number for one in self.writes if one.sequence >= self.oldest_live]

    def recovered(self) -> list[int]:
        return asyncio.run(self._recovered())

    async def _recovered(self) -> list[int]:
        return await numbers_of(await self.open())

    def contents(self, path: str) -> bytes:
        return bytes(self.disk.files[path].current)

    def put(self, path: str, position: int, data: bytes) -> None:
        """On the medium, past the log."""
        for contents in (self.disk.files[path].current, self.disk.files[path].durable):
            contents[position : position + len(data)] = data


async def numbers_of(ring: JournalRecovery) -> list[int]:
    found = []
    async for one in ring.files():
        for write in one.writes:
            raw = one.buffer[write.position : write.position + write.length]
            for record in fmt.decode_records(raw, write, one.journal_file.path):
                found.append(int(bytes(record.payload).split(b" ")[0]))
    return found
