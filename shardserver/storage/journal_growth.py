"""Growth of the journal's ring while it serves (storage rule 10)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sized

from shardserver.errors import StorageError
from shardserver.storage.journal import Journal
from shardserver.storage.log_tasks import LogTasks

log = logging.getLogger(__name__)

# A flush pads each partition.
RING_BYTES_PER_PARTITION = 64 * 1024


class JournalGrowth:
    """One file after the other, until there are least_files and there is room for each of the shard's partitions."""

    def __init__(self, tasks: LogTasks, partitions: Sized, shard: int, directory: str, least_files: int) -> None:
        self._tasks, self._partitions, self._shard = tasks, partitions, shard
        self._directory = os.path.join(directory, "journal")
        self.least_files = least_files
        self._growing = self._stopped = False
        self._order = asyncio.Lock()

    def start_if_due(self, journal: Journal) -> None:
        if not self._growing and self._is_due(journal):
            self._growing = True
            self._tasks.start(self._grow(journal))

    def stop(self) -> None:
        """For good, after the file that is being made."""
        self._stopped = True

    def _is_due(self, journal: Journal) -> bool:
        needed = len(self._partitions) * RING_BYTES_PER_PARTITION
        return not self._stopped and (journal.ring_bytes < needed or journal.files < self.least_files)

    async def _grow(self, journal: Journal) -> None:
        try:
            while self._is_due(journal):
                await self._grow_once(journal, self._is_due)
        except StorageError as error:  # the ring serves as it is; the next new partition asks again
            log.warning("journal_not_grown", extra={"fields": {"shard": self._shard, "error": str(error)}})
        finally:
            self._growing = False

    async def have_file(self, journal: Journal) -> None:
        """One for this opening, when two lives that ended with the disk full have left none. Raises StorageError."""
        await self._grow_once(journal, lambda journal: journal.current is None and not journal.free_files)

    async def _grow_once(self, journal: Journal, is_due: Callable[[Journal], bool]) -> None:
        async with self._order:
            if is_due(journal):
                await journal.grow(self._directory)
                log.info("journal_grown", extra={"fields": {"shard": self._shard, "files": journal.files}})
