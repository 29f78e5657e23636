"""A Disk on a pool of threads, for kernels and containers without io_uring. Contract: storage/disk.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
from asyncio import Future
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shardserver.errors import DiskFullError, StorageError
from shardserver.io_uring.group import SyncsEnd, write_group
from shardserver.io_uring.open_file import OpenFile as OpenFile
from shardserver.io_uring.open_file import honours_dsync
from shardserver.io_uring.removal import remove_file
from shardserver.io_uring.steps import Steps
from shardserver.storage.disk import Ended, GroupWrite, Step, StepsEnd, tell_end

log = logging.getLogger(__name__)

BLOCK_BYTES = 4096
IOV_MAX = 1024
# Of a group (storage rule 24). A thread that is alone sleeps three times a file; of several, whose syncs come together,
# the device flushes its cache once for some, and the core need not sleep: 34 instead of 100 us of CPU for 48 KiB.
GROUP_THREADS = 4
# What they have in flight together. More would keep journal writes waiting (storage rule 26).
GROUP_IN_FLIGHT_BYTES = 1 << 20
T = TypeVar("T")


def storage_error(error: OSError, what: str) -> StorageError:
    """Name an OSError by what its receiver must do."""
    number = error.errno or 0
    kind = DiskFullError if number in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"{what}: {error.strerror or error}", errno=number)


def open_file(path: str, create: bool, direct: bool) -> OpenFile:
    """open(2) with O_DIRECT where the filesystem takes it."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
    descriptor, is_direct = -1, direct
    if direct:
        try:
            descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            is_direct = False
            tell_no_direct(path)
            if create and os.path.exists(path):
                flags &= ~os.O_EXCL  # some filesystems create the file before they refuse O_DIRECT
    if descriptor < 0:
        descriptor = os.open(path, flags, 0o600)
    return OpenFile(path, is_direct, descriptor, honours_dsync(descriptor))


def tell_no_direct(path: str) -> None:
    log.warning("no_direct_io", extra={"fields": {"path": path, "effect": "its bytes pass the page cache"}})


def lock_file(file: OpenFile, waits_for: list[str]) -> None:
    """flock(LOCK_EX), which keeps ghost writers out; its path is in waits_for while somebody else holds it."""
    try:
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waits_for.append(file.path)
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX)
        finally:
            waits_for.remove(file.path)


def write_whole(file: OpenFile, position: int, buffers: Sequence[memoryview]) -> None:
    """pwritev until all is taken. A direct file resumes a short write at the last whole block."""
    rest = [view for view in buffers if len(view)]
    while rest:
        written = os.pwritev(file.descriptor, rest[:IOV_MAX], position)
        if file.direct:
            written -= written % BLOCK_BYTES
        if written == 0:
            raise OSError(errno.EIO, "the device took no whole block")
        position += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def read_whole(file: OpenFile, position: int, buffer: memoryview) -> int:
    done = 0
    while done < len(buffer):
        got = os.preadv(file.descriptor, [buffer[done:]], position + done)
        done += got
        if got == 0 or (file.direct and got % BLOCK_BYTES):
            break
    return done


def split_group(writes: Sequence[GroupWrite]) -> list[Sequence[GroupWrite]]:
    """A part for each thread that is to write some of them; neighbours stay together."""
    largest = max((len(buffer) for _, _, buffers in writes for buffer in buffers), default=1)
    threads = max(1, min(GROUP_THREADS, GROUP_IN_FLIGHT_BYTES // largest))
    size = max(1, -(-len(writes) // threads))
    return [writes[begin : begin + size] for begin in range(0, len(writes), size)]


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: str) -> int:
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


class ThreadDisk:
    """Each operation runs in one of a few threads. Only the loop's thread touches the counts of what is in flight.

    waits_for: paths of files whose locks others hold, another process or the kernel for a dead one (storage rule 15).
    """

    name = "threads"
    block_bytes = BLOCK_BYTES

    def __init__(self, threads: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk")
        self.waits_for: list[str] = []

    def _run(self, what: str, work: Callable[[], T], *files: OpenFile) -> Future[T]:
        """Start work in a thread. files: what it uses, so that a close waits for it even if nobody else does."""
        loop = asyncio.get_running_loop()
        outcome: Future[T] = loop.create_future()

        def finish(result: T | None, error: StorageError | None) -> None:
            for file in files:
                file.leave()
            if outcome.done():  # cancelled: needs no answer
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]  # T or None, as work() gave it

        def in_thread() -> None:
            result, failure = None, None
            try:
                result = work()
            except OSError as error:
                failure = storage_error(error, what)
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, result, failure)

        for file in files:
            file.enter()
        self._pool.submit(in_thread)
        return outcome

    def open(self, path: str, *, create: bool = False, direct: bool = True, lock: bool = True) -> Future[OpenFile]:
        def work() -> OpenFile:
            file = open_file(path, create, direct)
            if lock:
                lock_file(file, self.waits_for)
            return file

        return self._run(f"open {path}", work)

    def close(self, file: OpenFile) -> Future[None]:
        outcome: Future[None] = asyncio.get_running_loop().create_future()

        def start() -> None:
            closed = self._run(f"close {file.path}", lambda: os.close(file.descriptor))
            closed.add_done_callback(lambda done: _hand_on(done, outcome))

        if file.in_flight:
            file.on_idle = start
        else:
            start()
        return outcome

    def write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        *,
        sync: bool = False,
        on_written: Callable[[], None] | None = None,
    ) -> Future[None]:
        loop = asyncio.get_running_loop()

        def work() -> None:
            write_whole(file, position, buffers)
            if on_written is not None:
                loop.call_soon_threadsafe(on_written)
            if sync:
                os.fdatasync(file.descriptor)

        return self._run(f"write {file.path}", work, file)

    def start_synced_write(
        self,
        file: OpenFile,
        position: int,
        buffers: Sequence[memoryview],
        on_written: Callable[[], None] | None,
        on_end: Ended,
    ) -> None:
        tell_end(self.write(file, position, buffers, sync=True, on_written=on_written), on_end)

    def write_group(self, writes: Sequence[GroupWrite]) -> Future[list[StorageError | None]]:
        end = SyncsEnd()
        return asyncio.ensure_future(_joined([self._write_part(part, end) for part in split_group(writes)]))

    def _write_part(self, writes: Sequence[GroupWrite], end: SyncsEnd) -> Future[list[StorageError | None]]:
        group = [(file.descriptor, position, list(buffers)) for file, position, buffers in writes]
        paths = [file.path for file, _, _ in writes]

        def work() -> list[StorageError | None]:
            numbers = write_group(group, end)
            if not any(numbers):  # else the loop would wait for the lock at each of them (storage rule 29)
                return [None] * len(numbers)
            return [_group_error(number, path) for number, path in zip(numbers, paths, strict=True)]

        return self._run("write a group", work, *(file for file, _, _ in writes))

    def do_steps(self, chains: int, steps: Sequence[Step]) -> Future[StepsEnd]:
        program = Steps(chains, steps)

        def work() -> StepsEnd:
            program.run(os.O_DIRECT)
            errors: list[StorageError | None] = [None] * chains
            if program.has_failed:  # as in write_group
                errors = [_step_error(failure, steps) for failure in program.failures()]
            return StepsEnd(errors, program.has_failed_sync, program.files())

        return self._run("do steps", work)

    def read(self, file: OpenFile, position: int, buffer: memoryview) -> Future[int]:
        return self._run(f"read {file.path}", lambda: read_whole(file, position, buffer), file)

    def sync(self, file: OpenFile) -> Future[None]:
        return self._run(f"sync {file.path}", lambda: os.fdatasync(file.descriptor), file)

    def truncate(self, file: OpenFile, length: int) -> Future[None]:
        return self._run(f"truncate {file.path}", lambda: os.ftruncate(file.descriptor, length), file)

    def file_bytes(self, file: OpenFile) -> Future[int]:
        return self._run(f"stat {file.path}", lambda: os.fstat(file.descriptor).st_size, file)

    def list_directory(self, path: str) -> Future[list[str]]:
        return self._run(f"list {path}", lambda: sorted(os.listdir(path)))

    def make_directory(self, path: str) -> Future[None]:
        return self._run(f"mkdir {path}", lambda: os.makedirs(path, mode=0o700, exist_ok=True))

    def rename(self, source: str, target: str) -> Future[None]:
        return self._run(f"rename {source}", lambda: os.rename(source, target))

    def unlink(self, path: str) -> Future[None]:
        return self._run(f"unlink {path}", lambda: remove_file(path))

    def remove_directory(self, path: str) -> Future[None]:
        return self._run(f"rmdir {path}", lambda: _remove_directory(path))

    def sync_directory(self, path: str) -> Future[None]:
        return self._run(f"sync {path}", lambda: sync_directory(path))

    def free_bytes(self, path: str) -> Future[int]:
        return self._run(f"statvfs {path}", lambda: free_bytes(path))

    def shut_down(self) -> Future[None]:
        outcome: Future[None] = asyncio.get_running_loop().create_future()
        self._pool.shutdown(wait=True)
        outcome.set_result(None)
        return outcome


async def _joined(parts: Sequence[Future[list[StorageError | None]]]) -> list[StorageError | None]:
    return [error for part in parts for error in await part]


def _group_error(number: int, path: str) -> StorageError | None:
    return storage_error(OSError(number, os.strerror(number)), f"write and sync {path}") if number else None


def _step_error(failure: tuple[int, int] | None, steps: Sequence[Step]) -> StorageError | None:
    if failure is None:
        return None
    number, step = failure
    what = f"{steps[step].act.name.lower().replace('_', ' ')} {steps[step].path}"
    return storage_error(OSError(number, os.strerror(number)), what)


def _hand_on(done: Future[None], outcome: Future[None]) -> None:
    error = done.exception()
    if outcome.done():
        return
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(None)


def _remove_directory(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)
