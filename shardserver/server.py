"""Composition: reads the configuration and builds one shard out of disk, logs, replica, peers, handlers and sockets."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Coroutine
from importlib.metadata import version
from typing import Any

import msgspec

from shardserver.config import Config, split_address
from shardserver.config_text import describe
from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.authentication import PasswordVerifier
from shardserver.core.calls import Operation
from shardserver.core.context import ShardContext
from shardserver.core.dispatch import Dispatcher
from shardserver.core.groups.access import GroupAccess
from shardserver.core.load import LoadMeter
from shardserver.core.local_owner import LocalOwner
from shardserver.core.logins import Logins
from shardserver.core.operator_commands import encode_loads
from shardserver.core.owned_partitions import OwnedPartitions, owned_identities
from shardserver.core.peer_service import PeerService
from shardserver.core.placement import Placement
from shardserver.core.roles import FollowerRole, Role, WriterRole
from shardserver.core.sessions import ENDS_SESSIONS, Sessions
from shardserver.core.shards import Shards
from shardserver.core.writing import WriterSide
from shardserver.errors import CorruptionError, ShardServerError, StorageError
from shardserver.housekeeping import Housekeeping, heal
from shardserver.io_uring.choose import open_disk
from shardserver.memory.arena import Arena
from shardserver.memory.board import BOARD_BYTES, Board
from shardserver.memory.huge_memory import HugeMemory
from shardserver.memory.shared import map_memory, map_read_only
from shardserver.net.listener import Listener
from shardserver.net.live_figures import LiveFigures
from shardserver.router.peers import Peers
from shardserver.shard_report import ShardReport
from shardserver.shard_settings import log_settings, net_limits, retention_settings, topic_defaults
from shardserver.storage.clock import SystemClock
from shardserver.storage.recovery import RecoveryInput, RecoveryProgress, recover_shard
from shardserver.storage.reserve import Reserve, reserve_path
from shardserver.storage.settings import Durability
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.slow_syncs import SlowSyncs
from shardserver.storage.space import SpaceWatch
from shardserver.storage.sync_times import SyncTimes
from shardserver.storage.synced_write import SyncFaults
from shardserver.supervisor import logs, resources
from shardserver.supervisor.cores import choose_accepting
from shardserver.supervisor.descriptors import OwnDescriptors, PeerDescriptors
from shardserver.supervisor.loop_watch import LoopWatch
from shardserver.supervisor.messages import NewConfig, Recovering
from shardserver.supervisor.shard_exit import ShardExit
from shardserver.supervisor.shard_process import ShardArguments, ShardLink
from shardserver.supervisor.storage_probe import device_name, mount_of

log = logging.getLogger(__name__)

PROGRESS_S, PROGRESS_LOGGED_EVERY = 1.0, 5
DRAIN_LOOK_S = 0.005

clock_us = SystemClock()


class Shard:
    """One shard from its first message to its last sync."""

    def __init__(self, arguments: ShardArguments, link: ShardLink) -> None:
        self._arguments, self._link, self._config = arguments, link, arguments.config
        self._number = arguments.shard
        self._disk = open_disk(self._config.server.disk_engine)
        self._faults = SyncFaults()
        path = reserve_path(arguments.data_directory, self._number)
        self._reserve = Reserve(self._disk, path, self._config.storage.reserve_bytes, self._faults)
        self._durability = Durability(self._config.server.durability)
        self._topic_defaults = topic_defaults(self._config)
        self._sessions = Sessions(self._number)
        self._verifier = PasswordVerifier()
        self._local = LocalOwner(LoadMeter(time.monotonic))
        self._service = PeerService(self._local)
        self._progress = RecoveryProgress()
        self._own, self._may_serve, self._stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._peer_served = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        device = device_name(mount_of(arguments.data_directory).device)
        self._slow_syncs = SlowSyncs(self._number, device, self._waiting)
        # Set by the first message of the supervisor, before any peer can be there.
        self._arena: Arena
        self._peers: Peers
        self._shards: Shards
        self._role: Role
        self._writer_side: WriterSide | None = None
        self._owned: OwnedPartitions
        self._listener: Listener
        self._report: ShardReport
        self._live_figures: LiveFigures

    async def run(self) -> int:
        """Recover, serve, stop; gives the exit code."""
        link = self._link
        # Before it serves nothing needs an orderly end: a stop during recovery is as good as a crash.
        link.on_stop, link.on_serve, link.on_own = lambda: os._exit(0), self._may_serve.set, self._on_own
        link.on_peer, link.on_peer_gone, link.on_config = self._on_peer, self._on_peer_gone, self._on_config
        link.start()
        await self._own.wait()
        progress = self._background(self._report_progress())
        try:
            await self._recover()
        except CorruptionError as error:
            return self._refused(ShardExit.REFUSED, error)
        except StorageError as error:
            return self._refused(ShardExit.REFUSED if self._arguments.read_only else ShardExit.UNWRITABLE, error)
        finally:
            progress.cancel()
        link.on_query = self._answer
        link.send_recovered(self._disk.name, degraded=self._arguments.read_only)
        await self._may_serve.wait()
        link.on_stop = self._stop.set
        self._serve()
        link.send_ready()
        await self._stop.wait()
        await self._end()
        return ShardExit.STOPPED

    def _refused(self, code: ShardExit, error: ShardServerError) -> ShardExit:
        log.critical("recovery_failed", extra={"fields": {"shard": self._number, "error": str(error)}})
        return code

    async def _report_progress(self) -> None:
        began, former = time.monotonic(), list[str]()
        for number in itertools.count(1):
            await asyncio.sleep(PROGRESS_S)
            locked = sorted(self._disk.waits_for)
            if locked and locked != former:
                log.warning("waits_for_lock", extra={"fields": {"shard": self._number, "paths": locked}})
            former = locked
            progress, share = self._progress, self._progress.share()
            elapsed = time.monotonic() - began
            left = round(elapsed * (1 - share) / share, 1) if share else None
            told = Recovering(progress.partitions_done, progress.partitions, progress.read_bytes, left, tuple(locked))
            self._link.send_progress(told)
            if number % PROGRESS_LOGGED_EVERY == 0:
                fields = {"shard": self._number, "percent": round(100 * share)} | msgspec.to_builtins(told)
                log.info("recovering", extra={"fields": fields})

    # Shared memory, and who else has it

    def _on_own(self, own: OwnDescriptors) -> None:
        config, memory = self._config, HugeMemory(own.arena)
        os.close(own.arena)
        memory.start()
        self._arena = Arena(memory, BOARD_BYTES)
        self._peers = Peers(self._arena, own.doorbell, self._service.serve)
        self._peers.serve_sends(self._local.target_of)
        self._peers.on_serving = self._on_peer_serves
        self._peers.on_corrupt = lambda error: os._exit(ShardExit.LINK_BROKEN)
        self._shards = Shards(self._number, self._arguments.shards, self._local, self._peers, self._sessions)
        self._shards.recent_logs = logs.recent.lines
        self._role = self._make_role()
        self._owned = OwnedPartitions(
            self._number,
            self._arguments.shards,
            self._local,
            self._durability,
            lambda: self._role.metadata,
            self._role.report_removed,
            self._topic_defaults,
        )
        self._role.on_applied = self._on_applied
        self._groups = GroupAccess(
            self._number,
            self._arguments.shards,
            self._local,
            self._shards.remote,
            self._sessions,
            lambda: self._role.metadata,
            time.monotonic,
            self._config.groups.rebalancing_timeout_s,
        )
        self._service.control |= self._role.control_handlers() | self._shards.control_handlers()
        self._service.control |= self._owned.control_handlers() | self._groups.control_handlers()
        self._service.control[Operation.LOADS] = lambda asked: encode_loads(self._shards)
        self._listener = Listener(
            Dispatcher(self._context()),
            self._sessions,
            net_limits(config),
            self._number,
            Board(memoryview(memory)),
            socket.socket(fileno=own.inbox),
            choose_accepting(config.net.accept_shards, self._arguments.shards),
            arena=self._arena,
        )
        self._local.load.sources = [self._listener.routes.take_loads, self._peers.take_loads]
        self._faults.others = self._listener.balance.sync_faults_of_others
        self._faults.on_fault = self._note_fault
        self._faults.on_slow = self._slow_syncs.note
        self._faults.times = SyncTimes()
        self._report = ShardReport(
            self._number, self._sessions, self._listener, self._local.load, self._arena, self._peers
        )
        self._live_figures = LiveFigures(
            self._listener, self._peers, self._local.load, self._faults.times, lambda: self._role.metadata
        )
        self._own.set()

    def _on_config(self, new: NewConfig) -> None:
        """A reload. Retention and the end read the configuration when they need it. Nothing here can fail."""
        self._config, config = new.config, new.config
        logs.configure(config.log.level, config.log.format)
        self._listener.limits = net_limits(config)
        self._listener.dispatcher.context.advertised = self._advertised()
        if self._writer_side is not None:
            placement = config.placement
            self._writer_side.reconfigure(placement.strategy, placement.rules, new.partition_limit)
        self._reconfigure_retention(config)

    def _reconfigure_retention(self, config: Config) -> None:
        """Before recovery has ended, the logs are made with it."""
        former, self._topic_defaults = self._topic_defaults, topic_defaults(config)
        self._owned.topic_defaults = self._listener.dispatcher.context.topic_defaults = self._topic_defaults
        if self._writer_side is not None:
            self._writer_side.writer.topic_defaults = self._topic_defaults
        if self._local.logs is not None:
            self._local.logs.retention.settings = retention_settings(config)
            if self._topic_defaults != former:
                self._owned.reconcile()

    def _on_applied(self, events: list[ev.Event] | None) -> None:
        self._owned.reconcile(events)
        self._listener.plane.revision += 1
        for event in events or ():
            if isinstance(event, ev.GroupDeleted):
                topic = self._role.metadata.streams[event.stream_id].topics[event.topic_id]
                self._local.forget_group([one.uid for one in topic.partitions], event.id)
        self._groups.metadata_changed(events)
        if events is None or any(isinstance(event, ENDS_SESSIONS) for event in events):
            self._sessions.end_stale(self._role.metadata)

    def _refill(self) -> None:
        """Who is answered asks again at once, and the next journal write then has its request too."""
        self._listener.plane.flush()
        self._listener.plane.drain()
        self._peers.exchange()

    def _note_fault(self, count: int) -> None:
        self._listener.balance.own.sync_faults = count

    def _waiting(self) -> dict[str, Any]:
        waiting = {"waiting_bytes": self._listener.in_flight_bytes}
        if self._local.logs is not None:
            waiting["waiting_requests"] = sum(one.unanswered for one in self._local.logs.partitions)
        return waiting

    def _make_role(self) -> Role:
        if self._number:
            return FollowerRole(self._peers, self._shards.remote[0], self._on_broken_replica)
        path = os.path.join(self._arguments.data_directory, "metadata")
        placement = Placement(self._config.placement.strategy, self._config.placement.rules, self._arguments.shards)
        self._writer_side = WriterSide(
            self._disk,
            path,
            self._faults,
            self._reserve,
            placement,
            clock_us,
            self._arguments.partition_limit,
        )
        writer, read_only = self._writer_side.writer, self._arguments.read_only
        writer.topic_defaults = self._topic_defaults
        return WriterRole(
            writer, self._peers, self._root_user, self._on_broken_replica, self._verifier, read_only=read_only
        )

    def _root_user(self) -> md.User:
        return md.User(md.ROOT_ID, "iggy", clock_us(), self._arguments.root_password_hash or "")

    def _on_peer(self, number: int, is_serving: bool, given: PeerDescriptors) -> None:
        """Maps keep what they need of a descriptor."""
        out, into, arena = map_memory(given.ring_to), map_memory(given.ring_from), map_read_only(given.arena)
        for descriptor in (given.ring_to, given.ring_from, given.arena):
            os.close(descriptor)
        self._peers.attach(number, out, into, arena, given.doorbell)
        self._listener.attach_peer(number, Board(arena), socket.socket(fileno=given.inbox))
        self._role.peer_began(number, is_serving=is_serving)

    def _on_peer_serves(self, number: int) -> None:
        self._peer_served.set()
        self._groups.peer_serves(number)

    def _on_peer_gone(self, number: int) -> None:
        self._groups.peer_ended(number)
        self._peers.detach(number)
        self._listener.detach_peer(number)
        self._role.peer_ended(number)

    async def _wait_for_peers(self) -> None:
        """Until all other shards take requests."""
        while not all(self._peers.peer(number).is_serving for number in self._shards.remote):
            self._peer_served.clear()
            await self._peer_served.wait()

    def _on_broken_replica(self, error: Exception) -> None:
        """This replica is wrong, or its log has failed: the next process recovers, or joins with a snapshot."""
        log.critical("replica_broken", exc_info=error, extra={"fields": {"shard": self._number}})
        os._exit(ShardExit.JOURNAL_FAILED)

    # Recovery

    async def _recover(self) -> None:
        await self._reserve.find()
        boot_number = await self._role.start()
        self._sessions.begin(boot_number)
        self._groups.begin(boot_number << 32 | 1)
        if self._writer_side is not None and not self._arguments.read_only:
            await self._writer_side.set_aside_unknown(self._arguments.data_directory)
        self._local.logs = await self._open_logs(self._number, self._arena)
        self._local.logs.resources.hooks.before_submit = self._peers.publish
        self._local.logs.resources.hooks.refill = self._refill
        self._local.logs.retention.settings = retention_settings(self._config)  # a reload may have come meanwhile
        self._on_applied(None)
        self._peers.say_serving()
        if self._writer_side is not None:
            await self._writer_side.begin(
                self._arguments.data_directory,
                self._shards,
                self._owned,
                self._open_logs,
                self._wait_for_peers,
                self._groups,
            )

    async def _open_logs(self, shard: int, arena: Arena | None = None) -> ShardLog:
        """Of this shard, or of one that is gone."""
        metadata = self._role.metadata
        source = RecoveryInput(
            shard,
            metadata.next_uid,
            owned_identities(metadata, shard, self._durability, self._topic_defaults),
            faults=self._faults,
            read_only=self._arguments.read_only,
            reserve=self._reserve,
            progress=self._progress,
            memory=arena or self._arena,
            answers_are_known=not self._arguments.is_restart,
        )
        directory, settings = self._arguments.data_directory, log_settings(self._config)
        return await recover_shard(self._disk, directory, settings, source, clock_us, self._on_journal_failure)

    def _on_journal_failure(self, error: StorageError) -> None:
        """Nothing small can be acknowledged any more: end without another write, recovery looks at what is there."""
        os._exit(ShardExit.JOURNAL_FAILED)

    def _context(self) -> ShardContext:
        return ShardContext(
            version=version("shardserver"),
            data_directory=self._arguments.data_directory,
            replica=self._role,
            changes=self._role.changes,
            shards=self._shards,
            sessions=self._sessions,
            groups=self._groups,
            logins=Logins(self._verifier, self._config.users.failed_logins_a_minute, time.monotonic),
            clock=clock_us,
            max_reply_bytes=self._config.net.max_frame_bytes - 512,
            advertised=self._advertised(),
            memory_limit_bytes=resources.memory_limit()[0],
            config_text=lambda: describe(self._config),
            topic_defaults=self._topic_defaults,
        )

    def _advertised(self) -> tuple[str, int]:
        """As the context has it."""
        host, port = split_address(self._config.server.advertised_address)
        return host, port or self._arguments.port

    # Service

    def _serve(self) -> None:
        self._listener.start_accepting(self._arguments.listener)
        if self._arguments.read_only:
            self._background(heal(self._number, self._logs))
            return
        housekeeping = Housekeeping(
            self._number, lambda: self._config, self._space_watch, self._logs, self._listener, self._sessions
        )
        for work in housekeeping.work():
            self._background(work)
        if self._writer_side is not None:
            self._background(self._writer_side.expire_tokens())
        if self._writer_side is not None and self._config.placement.spread:
            self._background(self._writer_side.spread())

    @property
    def _logs(self) -> ShardLog:
        assert self._local.logs is not None
        return self._local.logs

    def _space_watch(self) -> SpaceWatch:
        storage, admission = self._config.storage, self._logs.resources.admission
        low, high = storage.low_watermark_bytes, storage.high_watermark_bytes
        return SpaceWatch(self._disk, self._arguments.data_directory, low, admission, self._reserve, high)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_background_end)
        return task

    def _on_background_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background_work_failed", exc_info=task.exception())

    # The end

    async def _end(self) -> None:
        """Answer what was read, here and for peers; then flush."""
        deadline_s = self._config.server.shutdown_deadline_s / 2
        end = time.monotonic() + deadline_s
        self._listener.stop_accepting()
        await self._listener.drain(deadline_s)
        while time.monotonic() < end and any(board.connections for board in self._listener.balance.boards.values()):
            await asyncio.sleep(DRAIN_LOOK_S)
        for task in list(self._tasks):
            task.cancel()
        self._owned.stop()
        await self._logs.close()
        if self._writer_side is not None:
            await self._writer_side.close()
        self._listener.dispatcher.close()
        self._listener.close()
        await self._disk.shut_down()
        log.info("stopped", extra={"fields": {"shard": self._number}})

    # Questions of the supervisor

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        if command == "stats":
            return self._report.take(self._logs)
        if command == "top":
            return {"shard": self._number} | self._live_figures.take()
        if command == "reload":  # applied by the message before this question
            return {"shard": self._number}
        handler = self._writer_side.commands.get(command) if self._writer_side is not None else None
        if handler is None:
            return {"shard": self._number, "error": f"unknown command {command!r}"}
        return handler(arguments)


async def run_shard(arguments: ShardArguments, link: ShardLink) -> int:
    """Run one shard until its supervisor stops it; gives the exit code."""
    watch = LoopWatch(arguments.shard)
    watch.start()
    try:
        return await Shard(arguments, link).run()
    finally:
        watch.stop()
