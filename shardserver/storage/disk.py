"""What a Disk must do: every byte and every name that the server keeps passes through one of these.

Three of them exist: the io_uring engine and the thread-pool engine in `io_uring/`, and the fault model
in `tests/fault_disk.py`. One contract suite runs on all (`tests/io_uring/test_disk_contract.py`).

Calls return an `asyncio.Future` and never block the loop. Completion order is not the order of
submission. A future fails with DiskFullError (ENOSPC, EDQUOT) or StorageError; both carry `errno`.
Short writes, EINTR and EAGAIN are handled below this contract: a write is whole or it failed.
Buffers are immutable, and kept alive by the Disk, from submission to completion (even when the
future is cancelled: an operation once submitted runs to its end).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

from shardserver.errors import StorageError


class OpenFile(Protocol):
    """An open file. Made by Disk.open only, and given back only to the Disk that made it."""

    @property
    def path(self) -> str: ...

    @property
    def direct(self) -> bool:
        """True when its bytes bypass the page cache, so that positions, lengths and memory must be aligned."""
        ...


# Each engine takes only its own files, which a Protocol cannot say.
File: TypeAlias = Any
# file, position, buffers that are written back to back there
GroupWrite: TypeAlias = tuple[File, int, Sequence[memoryview]]
# Told None: durable; or why it is not known to be.
Ended: TypeAlias = Callable[[StorageError | None], None]


class Act(IntEnum):
    """What a step does at its path."""

    UNLINK = 0  # a missing one is fine
    REMOVE_DIRECTORY = 1  # when it is empty; one that is not, or is missing, is fine
    MAKE_DIRECTORY = 2  # an existing one is fine
    CREATE = 3  # as open with create, direct and lock; then `more`, whole blocks, is written at its beginning
    SYNC = 4  # fdatasync of what an earlier step has created under this path
    CLOSE = 5  # the same file
    RENAME = 6  # to `more`, replacing it
    SYNC_DIRECTORY = 7


# The chain of a step that is of all chains.
ALL = -1


class Step(NamedTuple):
    """chain: those before and behind it that it belongs to, or ALL. more: what act says."""

    act: Act
    chain: int
    path: str
    more: memoryview | str | None = None


class StepsEnd(NamedTuple):
    """errors: of each chain. files: what is still open of the chains that came to their end, by path."""

    errors: list[StorageError | None]
    has_failed_sync: bool
    files: dict[str, File]


class Disk(Protocol):
    """A disk engine. Paths are absolute or relative to the process, as the caller gives them."""

    @property
    def name(self) -> str:
        """`io_uring`, `threads` or the name of a test engine; printed in `ready`."""
        ...

    @property
    def block_bytes(self) -> int:
        """Unit of positions, lengths and memory alignment of a direct file: at least 4096 (storage rule 7)."""
        ...

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future[Any]:
        """Open for reading and writing.

        create: O_CREAT | O_EXCL: the file must not exist. lock: hold flock(LOCK_EX) on the descriptor,
        waiting for it off the loop (storage rule 15). direct: O_DIRECT where the filesystem takes it,
        else the page cache (`File.direct` tells). Descriptors are O_CLOEXEC.
        """
        ...

    def close(self, file: File) -> Future[None]:
        """Close once all operations on it have completed."""
        ...

    def write(
        self,
        file: File,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[None]:
        """Write buffers back to back at position; with sync, then fdatasync, linked.

        The future completes when all asked for is done. on_written is called (on the loop, before the
        future completes) as soon as the device has taken the whole write, sync or not.
        """
        ...

    def start_synced_write(
        self,
        file: File,
        position: int,
        buffers: Sequence[memoryview],
        on_written: Callable[[], None] | None,
        on_end: Ended,
    ) -> None:
        """As write with sync, without a future: on_end is called on the loop, after this call has returned."""
        ...

    def write_group(self, writes: Sequence[GroupWrite]) -> Future[list[StorageError | None]]:
        """Write into several files, then sync each of them; a file may be in it once.

        Gives an error for each that was not written or not synced, else None. A sync that fails ends the group at once,
        as in do_steps: what is not synced yet is not. In the background: none of it is as urgent as a write.
        """
        ...

    def do_steps(self, chains: int, steps: Sequence[Step]) -> Future[StepsEnd]:
        """Do them one after the other, in the background.

        What fails ends its chain, one of ALL ends all of the `chains`: none of their later steps is done, and their
        files are closed. A failed sync ends them all, and at once: it may have dropped what others have written, and
        they hear of it when this call ends (storage rule 20).
        """
        ...

    def read(self, file: File, position: int, buffer: memoryview) -> Future[int]:
        """Fill buffer from position; gives the bytes read, fewer only at the end of the file."""
        ...

    def sync(self, file: File) -> Future[None]:
        """fdatasync."""
        ...

    def truncate(self, file: File, length: int) -> Future[None]:
        """Set the file's length. Not durable before the next sync."""
        ...

    def file_bytes(self, file: File) -> Future[int]:
        """The file's length in bytes."""
        ...

    def list_directory(self, path: str) -> Future[list[str]]:
        """Names in a directory, sorted; fails with StorageError (ENOENT) when there is none."""
        ...

    def make_directory(self, path: str) -> Future[None]:
        """Make one directory; an existing one is fine."""
        ...

    def rename(self, source: str, target: str) -> Future[None]:
        """Rename, replacing an existing target. Durable after sync_directory of the parent."""
        ...

    def unlink(self, path: str) -> Future[None]:
        """Remove a file. A missing one is fine. What is open may lose its bytes, but not before its last name."""
        ...

    def remove_directory(self, path: str) -> Future[None]:
        """Remove an empty directory. A missing one is fine."""
        ...

    def sync_directory(self, path: str) -> Future[None]:
        """fsync a directory: creates, renames and unlinks in it are durable afterwards."""
        ...

    def free_bytes(self, path: str) -> Future[int]:
        """Bytes that an unprivileged process may still write to the filesystem of path."""
        ...

    def shut_down(self) -> Future[None]:
        """Wait for what is in flight, then release threads and rings."""
        ...


def tell_end(written: Future[Any], on_end: Ended) -> None:
    """Have on_end told how a future ends: for engines whose writes give one."""

    def ended(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None and not isinstance(error, StorageError):
            error = StorageError(f"a write failed in its disk: {error!r}")
        on_end(error)

    written.add_done_callback(ended)
