"""Watching the disk's free space: below the low watermark appends are refused until there is room again."""

from __future__ import annotations

import logging

from shardserver.errors import DiskFullError
from shardserver.storage.append_log import Admission
from shardserver.storage.disk import Disk
from shardserver.storage.reserve import Reserve

log = logging.getLogger(__name__)


class DiskLowError(DiskFullError):
    """Less is free than the low watermark says. Any watch may take it back, not only the one that has set it."""


class SpaceWatch:
    """Owned by one shard; `look` is called once a second or so.

    low_bytes, high_bytes: of free space; below the one appends are refused, from the other on they are taken again, so
    that it never flaps. high_bytes 0: a quarter more than low_bytes.
    """

    def __init__(
        self,
        disk: Disk,
        directory: str,
        low_bytes: int,
        admission: Admission,
        reserve: Reserve,
        high_bytes: int = 0,
    ) -> None:
        self._disk, self._directory, self._low_bytes = disk, directory, low_bytes
        self._high_bytes = high_bytes or low_bytes + low_bytes // 4
        self._admission, self._reserve = admission, reserve

    @property
    def is_low(self) -> bool:
        return isinstance(self._admission.refusal, DiskLowError)

    async def look(self) -> None:
        """Raises StorageError: the disk does not say how much is free."""
        free = await self._disk.free_bytes(self._directory)
        if free < self._low_bytes and self._admission.refusal is None:
            self._admission.refusal = DiskLowError(f"{free} bytes free, low watermark {self._low_bytes}")
            self._log("disk_low", free)
        elif self.is_low and free >= self._high_bytes:
            self._admission.refusal = None
            self._log("disk_has_room", free)
            await self._reserve.find()
        if not self._reserve.is_there and free >= self._low_bytes + self._reserve.reserve_bytes:
            await self._reserve.make()

    def _log(self, event: str, free: int) -> None:
        fields = {"free_bytes": free, "low_watermark_bytes": self._low_bytes}
        log.warning(event, extra={"fields": fields | {"high_watermark_bytes": self._high_bytes}})
