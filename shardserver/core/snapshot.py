"""get_snapshot, as far as it runs in the shard: what the archive is made of, and the process that makes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from io import FileIO

import msgspec

from shardserver.core import snapshot_archive
from shardserver.core.context import ShardContext
from shardserver.core.server_statistics import gather_statistics
from shardserver.core.snapshot_archive import Material
from shardserver.errors import BackpressureError, Code, RejectedError
from shardserver.protocol.system import SnapshotRequest
from shardserver.time_slice import send_to_background


async def take_snapshot(context: ShardContext, request: SnapshotRequest) -> bytes:
    """The archive. Raises RejectedError 9000: it could not be made, or is too big for a frame."""
    statistics = None
    with contextlib.suppress(BackpressureError):  # a shard is down: that is when the archive is wanted most
        statistics = await gather_statistics(context)
    logs = await context.shards.logs()
    material = Material(context.data_directory, os.getppid(), context.config_text(), logs, statistics, request)
    try:
        archive = await asyncio.to_thread(run_archiver, msgspec.msgpack.encode(material))
    except OSError as error:
        raise RejectedError(Code.SNAPSHOT_FAILED, str(error)) from error
    if len(archive) > context.max_reply_bytes:
        raise RejectedError(Code.SNAPSHOT_FAILED, f"{len(archive)} bytes, at most {context.max_reply_bytes}")
    return archive


def run_archiver(material: bytes) -> bytes:
    """Files in memory, not pipes: the same few calls whatever the size, beside the loop (storage rule 29).

    Raises OSError.
    """
    with _memory_file("material") as given, _memory_file("archive") as made:
        given.write(material)
        given.seek(0)
        archiver = _spawn(given.fileno(), made.fileno())
        if status := os.waitpid(archiver, 0)[1]:
            raise OSError(f"the archiver ended with {os.waitstatus_to_exitcode(status)}")
        made.seek(0)
        return made.read()


def _spawn(given: int, made: int) -> int:
    """Its process id. Where and how it runs is said from here: it begins on the core that we are pinned to."""
    archiver = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", snapshot_archive.__name__],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, made, 1)],
        setsid=True,
    )
    send_to_background(archiver)
    os.sched_setaffinity(archiver, os.sched_getaffinity(os.getppid()))
    return archiver


def _memory_file(name: str) -> FileIO:
    return FileIO(os.memfd_create(name), "r+")
