"""The data directory: kernel lock, format version, ready file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from typing import Any

from shardserver.errors import ConfigError

log = logging.getLogger(__name__)

FORMAT_VERSION = "1"
# Made before the shards start, each of which puts names of its own into them.
SHARED = ("shards", "partitions")


def _make_directories(path: str, closed: str) -> list[str]:
    """Those that were missing, path last. closed: a parent of it; from there on others may not look in."""
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    for one in missing:
        with contextlib.suppress(FileExistsError):  # another server, which fails at the lock, or we do
            os.mkdir(one, 0o700 if one.startswith(closed) else 0o777)
    return missing


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DataDirectory:
    """Held by the supervisor for as long as the server runs."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.run = os.path.join(self.path, "run")
        self._lock = -1

    @property
    def control_socket(self) -> str:
        return os.path.join(self.run, "control.sock")

    def open(self, *, require_data: bool) -> None:
        """Lock and check. Raises ConfigError with a sentence when another server has it, or it cannot be used.

        A stale ready file goes right after the lock: before it, a second server would take away the first one's.
        """
        if require_data and not os.path.exists(os.path.join(self.path, "format")):
            raise ConfigError(f"{self.path} holds no data, and data is required: is the volume mounted?")
        try:
            made = _make_directories(self.run, self.path)
            self._take_lock()
            self._remove("ready.json", "ready.json.new", "state.json", "state.json.new", "control.sock")
            if not self._has_format():
                self._initialise(made)
        except OSError as error:
            raise ConfigError(f"the data directory {self.path} cannot be used: {error}") from error

    def open_unchanged(self) -> None:
        """Lock a stopped server's directory, and change nothing in it. Raises ConfigError as open does."""
        if not os.path.exists(os.path.join(self.path, "format")):
            raise ConfigError(f"{self.path} holds no data")
        try:
            self._lock_file(os.O_RDONLY)
            self._has_format()
        except OSError as error:
            raise ConfigError(f"the data directory {self.path} cannot be used: {error}") from error

    def close_unchanged(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        self._lock_file(os.O_RDWR | os.O_CREAT)
        # For the sentence of others only, so a full disk may refuse it; in place, so that it needs no new block.
        with contextlib.suppress(OSError):
            os.pwrite(self._lock, f"{os.getpid():<15}\n".encode(), 0)

    def _lock_file(self, flags: int) -> None:
        self._lock = os.open(os.path.join(self.path, "lock"), flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"the data directory {self.path} is in use by the server with process id {holder}"
            ) from None

    def _has_format(self) -> bool:
        path = os.path.join(self.path, "format")
        if not os.path.exists(path):
            return False
        with open(path) as file:
            found = file.read().strip()
        if found != FORMAT_VERSION:
            raise ConfigError(f"{self.path} has data of format {found!r}; this server reads format {FORMAT_VERSION}")
        return True

    def _initialise(self, made: list[str]) -> None:
        """Format, and what all shards share, with synced names. made: directories that this start has made.

        Raises OSError: these are gone again, as of a name that a failed sync has dropped no later sync says more than
        that it is there (storage rule 20).
        """
        log.warning("data_directory_initialised", extra={"fields": {"path": self.path}})
        try:
            for name in SHARED:
                made += _make_directories(os.path.join(self.path, name), self.path)
            self._write_format()
            # The directory's own name too, or a power cut takes all that is in it: it may be older than this process,
            # which another one may have made and not synced.
            for one in {self.path, *map(os.path.dirname, (self.path, *made))}:
                _sync_directory(one)
        except OSError:
            self._take_back(made)
            raise

    def _write_format(self) -> None:
        path = os.path.join(self.path, "format")
        with open(path + ".new", "w") as file:
            file.write(FORMAT_VERSION + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)

    def _take_back(self, made: list[str]) -> None:
        for name in ("format.new", "format", *(["lock"] if self.path in made else [])):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, name))
        for one in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(one)
        self.close_unchanged()

    def write_ready(self, content: dict[str, Any]) -> None:
        """Atomically: a reader sees the former or the new content.

        On a full disk the reserve is given up for it (docs/durability.md, "A full disk"): scripts wait for this file.
        """
        for _ in range(2):
            try:
                self._write_ready(content)
                return
            except OSError as error:
                log.warning("ready_file_not_written", extra={"fields": {"error": str(error)}})
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.path, "reserve"))

    def _write_ready(self, content: dict[str, Any]) -> None:
        self._write("ready.json", content)

    def write_state(self, content: dict[str, Any]) -> None:
        """As write_ready; on a full disk the former one stays, as `status` asks the server itself."""
        with contextlib.suppress(OSError):
            self._write("state.json", content)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        path = os.path.join(self.run, name)
        with open(path + ".new", "w") as file:
            json.dump(content, file)
        os.rename(path + ".new", path)

    def remove_ready(self) -> None:
        self._remove("ready.json")

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.run, name))

    def close(self) -> None:
        if self._lock >= 0:
            self._remove("ready.json", "state.json", "control.sock")
            os.close(self._lock)
            self._lock = -1
