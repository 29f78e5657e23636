"""Composition: reads the configuration and builds one shard out of disk, logs, metadata, handlers and sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any

from shardserver.config import Config
from shardserver.core import metadata as md
from shardserver.core.authentication import PasswordVerifier
from shardserver.core.context import ShardContext, identity_of
from shardserver.core.dispatch import Dispatcher
from shardserver.core.metadata_commands import Plan
from shardserver.core.metadata_writer import MetadataWriter
from shardserver.core.sessions import Sessions
from shardserver.errors import CorruptionError, ShardServerError, StorageError
from shardserver.io_uring.choose import open_disk
from shardserver.net.listener import Listener, NetLimits
from shardserver.storage.healing import replace_journal
from shardserver.storage.metadata_log import MetadataLog
from shardserver.storage.recovery import RecoveryInput, RecoveryProgress, recover_shard
from shardserver.storage.reserve import Reserve
from shardserver.storage.settings import Durability, LogSettings
from shardserver.storage.space import SpaceWatch
from shardserver.storage.synced_write import SyncFaults
from shardserver.storage.unknown_directories import set_aside_unknown
from shardserver.supervisor.shard_exit import ShardExit
from shardserver.supervisor.shard_process import ShardArguments, ShardLink

log = logging.getLogger(__name__)

PROGRESS_S = 5.0
SPACE_LOOK_S = 1.0
HEALING_S = 30.0


def clock_us() -> int:
    return time.time_ns() // 1000


def log_settings(config: Config) -> LogSettings:
    return LogSettings(
        journal_file_bytes=config.journal.file_bytes,
        journal_files=config.journal.files,
        max_write_bytes=config.journal.max_write_bytes,
        direct_bytes=config.journal.direct_bytes,
        tail_bytes=config.storage.tail_bytes,
        read_bytes=config.storage.read_bytes,
        read_ahead_bytes=config.storage.read_ahead_bytes,
        open_segments=config.storage.open_segments,
        skip_damaged=config.storage.damaged == "skip",
        max_total_bytes=config.storage.max_total_bytes,
    )


class Shard:
    """One shard from recovery to its last sync."""

    def __init__(self, arguments: ShardArguments, link: ShardLink) -> None:
        self._arguments, self._link, self._config = arguments, link, arguments.config
        self._disk = open_disk(self._config.server.disk_engine)
        self._faults = SyncFaults()
        reserve_path = os.path.join(arguments.data_directory, "reserve")
        self._reserve = Reserve(self._disk, reserve_path, self._config.storage.reserve_bytes)
        metadata_path = os.path.join(arguments.data_directory, "metadata")
        self._metadata_log = MetadataLog(self._disk, metadata_path, self._faults, self._reserve)
        self._writer = MetadataWriter(self._metadata_log, clock_us)
        self._stop, self._may_serve = asyncio.Event(), asyncio.Event()
        self._durability = Durability(self._config.server.durability)
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: ShardContext
        self._listener: Listener
        self._progress = RecoveryProgress()

    async def run(self) -> int:
        """Recover, serve, stop; gives the exit code."""
        # Before it serves nothing needs an orderly end: a stop during recovery is as good as a crash.
        self._link.on_stop, self._link.on_serve = lambda: os._exit(0), self._may_serve.set
        self._link.start()
        progress = self._background(self._report_progress())
        try:
            await self._recover()
        except CorruptionError as error:
            return self._refused(ShardExit.REFUSED, error)
        except StorageError as error:
            return self._refused(ShardExit.REFUSED if self._arguments.read_only else ShardExit.UNWRITABLE, error)
        finally:
            progress.cancel()
        self._link.send_recovered(self._disk.name, degraded=self._arguments.read_only)
        await self._may_serve.wait()
        await self._serve()
        self._link.on_stop, self._link.on_query = self._stop.set, self._statistics
        self._link.send_ready()
        await self._stop.wait()
        await self._end()
        return ShardExit.STOPPED

    def _refused(self, code: ShardExit, error: ShardServerError) -> ShardExit:
        log.critical("recovery_failed", extra={"fields": {"shard": self._arguments.shard, "error": str(error)}})
        return code

    async def _report_progress(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_S)
            progress, share = self._progress, self._progress.share()
            elapsed = time.monotonic() - began
            fields = {"shard": self._arguments.shard, "bytes": progress.read_bytes, "percent": round(100 * share)}
            fields |= {"partitions_done": progress.partitions_done, "partitions": progress.partitions}
            if share:
                fields["seconds_left"] = round(elapsed * (1 - share) / share)
            log.info("recovering", extra={"fields": fields})
            self._link.send_progress(progress.partitions_done, progress.partitions)

    async def _recover(self) -> None:
        read_only = self._arguments.read_only
        await self._reserve.find()
        metadata = await self._writer.recover(read_only=read_only)
        if read_only:
            md.apply(metadata, md.BootEvent())  # of this process only: the log takes nothing
        else:
            await self._write_start()
            known = {partition.uid for _, partition in metadata.live_partitions()} | set(metadata.dying)
            await set_aside_unknown(self._disk, self._arguments.data_directory, known)
        identities = [
            identity_of(topic, partition, self._durability) for topic, partition in metadata.live_partitions()
        ]
        source = RecoveryInput(
            self._arguments.shard,
            metadata.next_uid,
            identities,
            faults=self._faults,
            read_only=read_only,
            reserve=self._reserve,
            progress=self._progress,
        )
        logs = await recover_shard(
            self._disk,
            self._arguments.data_directory,
            log_settings(self._config),
            source,
            clock_us,
            self._on_journal_failure,
        )
        self._context = ShardContext(
            shard=self._arguments.shard,
            version=version("shardserver"),
            data_directory=self._arguments.data_directory,
            writer=self._writer,
            logs=logs,
            disk=self._disk,
            sessions=Sessions(metadata.boot_number, self._arguments.shard),
            verifier=PasswordVerifier(),
            clock=clock_us,
            durability=self._durability,
            max_reply_bytes=self._config.net.max_frame_bytes - 512,
            advertised_host=self._config.server.advertised_address or None,
            port=self._arguments.port,
            started_at=clock_us(),
        )
        self._writer.on_applied = self._on_applied

    async def _write_start(self) -> None:
        """Each start has its own number, durable before a session carries it; the first one makes the root user."""
        events: list[md.Event] = [md.BootEvent()]
        if md.ROOT_ID not in self._writer.metadata.users:
            root = md.User(md.ROOT_ID, "iggy", clock_us(), self._arguments.root_password_hash or "")
            events.insert(0, md.UserCreated(root))
        await self._writer.change(lambda state, now: Plan(events))

    async def _serve(self) -> None:
        net = self._config.net
        limits = NetLimits(
            net.max_frame_bytes,
            net.in_flight_bytes_per_connection,
            net.in_flight_bytes_per_shard,
            net.max_connections,
            net.first_frame_timeout_s,
        )
        self._listener = Listener(Dispatcher(self._context), self._context.sessions, limits)
        if self._arguments.listener is not None:
            await self._listener.start(self._arguments.listener)
        if self._arguments.read_only:
            self._background(self._heal())
            return
        self._background(self._remove_dead_files())
        self._background(self._retain())
        self._background(self._watch_space())

    async def _heal(self) -> None:
        """Try a new journal again and again; with one, end: the next start serves as usual."""
        while True:
            await asyncio.sleep(HEALING_S)
            try:
                await replace_journal(self._context.logs)
            except StorageError as error:
                log.warning("still_read_only", extra={"fields": {"error": str(error)}})
            else:
                log.warning("device_writable_again", extra={"fields": {"shard": self._arguments.shard}})
                os._exit(ShardExit.HEALED)

    async def _watch_space(self) -> None:
        low = self._config.storage.low_watermark_bytes
        resources = self._context.logs.resources
        watch = SpaceWatch(self._disk, self._arguments.data_directory, low, resources.admission, self._reserve)
        while True:
            await watch.look()
            await asyncio.sleep(SPACE_LOOK_S)

    def _on_applied(self, events: list[md.Event]) -> None:
        """Make the logs match the replica: new partitions begin, dead ones end at once and lose their files later."""
        metadata, logs = self._context.metadata, self._context.logs
        live = {}
        for topic, partition in metadata.live_partitions():
            live[partition.uid] = identity_of(topic, partition, self._durability)
        known = {one.uid: one for one in logs.partitions}
        for uid in known.keys() - live.keys():
            logs.forget_partition(uid)
        for uid, identity in live.items():
            if uid not in known:
                logs.create_partition(identity)
            else:
                known[uid].identity = identity
        if metadata.dying:
            self._background(self._remove_dead_files())

    async def _remove_dead_files(self) -> None:
        """Survives a crash in the middle: the uids stay in `dying` until their files are gone."""
        dying = sorted(self._context.metadata.dying)
        for uid in dying:
            await self._context.logs.remove_files(uid)
        if dying:
            await self._writer.change(lambda state, now: Plan([md.DataRemoved(dying)]))

    async def _retain(self) -> None:
        while True:
            await asyncio.sleep(self._config.storage.retention_interval_s)
            removed = await self._context.logs.enforce_retention()
            if removed:
                log.info("segments_expired", extra={"fields": {"segments": removed}})

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_background_end)
        return task

    def _on_background_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background_work_failed", exc_info=task.exception())

    def _on_journal_failure(self, error: StorageError) -> None:
        """Nothing small can be acknowledged any more: end without another write, recovery looks at what is there."""
        os._exit(ShardExit.JOURNAL_FAILED)

    async def _end(self) -> None:
        deadline = self._config.server.shutdown_deadline_s
        self._listener.stop_accepting()
        await self._listener.drain(deadline / 2)
        for task in list(self._tasks):
            task.cancel()
        await self._context.logs.close()
        await self._metadata_log.close()
        self._context.verifier.close()
        await self._disk.shut_down()
        log.info("stopped", extra={"fields": {"shard": self._arguments.shard}})

    def _statistics(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        logs = self._context.logs
        return {
            "shard": self._arguments.shard,
            "connections": len(self._context.sessions.connections),
            "in_flight_bytes": self._listener.in_flight_bytes,
            "log": dataclasses.asdict(logs.statistics()),
            "partitions": [dataclasses.asdict(one.statistics()) for one in logs.partitions],
        }


async def run_shard(arguments: ShardArguments, link: ShardLink) -> int:
    """Run one shard until its supervisor stops it; gives the exit code."""
    return await Shard(arguments, link).run()
