"""A simulated server from a seed: clock, disk, rings, peers and all that is random; real shard cores run in it.

One World lives on while processes, or all of them with the power, come and go. `tests/core/shard_world.py` puts the
processes of one start together; what a supervisor does, starting again what has ended, is done here.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from shardserver.core import metadata as md
from shardserver.core.changes import ChangeRequest
from shardserver.errors import (
    BackpressureError,
    CorruptionError,
    DiskFullError,
    NotOwnerError,
    ShardServerError,
    StorageError,
)
from shardserver.protocol.table import Command
from shardserver.storage.healing import replace_journal
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.settings import Durability, LogSettings
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.space import SpaceWatch
from tests.core.shard_world import ProcessEnded, ShardProcess, until
from tests.core.shard_world import World as ShardWorld
from tests.simulation.clients import KIND, Client
from tests.simulation.disk import CountingDisk, WorldDisk
from tests.simulation.oracle import Contents, Oracle, Violation, require
from tests.storage.log_world import read_numbers

KIB = 1024
SETTINGS = LogSettings(
    journal_file_bytes=256 * KIB,
    journal_files=4,
    max_write_bytes=64 * KIB,
    direct_bytes=32 * KIB,
    flush_run_bytes=192 * KIB,
    whole_bytes=16 * KIB,
    tail_bytes=512 * KIB,
    read_bytes=64 * KIB,
    read_ahead_bytes=128 * KIB,
    linger_s=0.05,
    retry_s=0.01,
    open_segments=16,
)
SEGMENT_BYTES = 1 << 20
ARENA_BYTES = 8 << 20
RESERVE_BYTES = 256 * KIB
LOW_BYTES = 2 << 20
RESTART_S, REPEAT_S, SPACE_LOOK_S = 0.1, 0.05, 1.0
# How long peers ask again for what a dead process did not answer. The server waits a minute, they take no time at all.
ASKED_AGAIN_S = 2.0
RECOVERY_LIMIT_S = 120.0

# What a topic promises is in its name, so that no code of the server has a say in it.
OPTIONS = {Durability.FSYNC: "persisted", Durability.WRITE: "write", Durability.MEMORY: "memory"}


def topic_name(durability: Durability, number: int) -> str:
    return f"{durability}-{number}"


def promises(process: ShardProcess) -> dict[int, Durability]:
    """Of all partitions by uid, as far as this process knows of them."""
    return {one.uid: Durability(topic.name.split("-")[0]) for topic, one in process.metadata.live_partitions()}


def serves(process: ShardProcess, log: PartitionLog) -> bool:
    """It takes sends, as far as the partition itself goes."""
    return not process.is_dead and log.refusal is None and log.closed is None and log.fenced is None


# All partitions by uid, and their committed offsets by consumer.
State = dict[int, tuple[Contents, dict[int, int | None]]]


class World:
    """counts: what happened, by kind. `violation`: the first broken promise that was met beside the steps."""

    def __init__(self, seed: int, shards: int) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.disk = WorldDisk(self._seed(), counts=self.counts)
        self.oracle = Oracle()
        self.violation: BaseException | None = None
        self.shard_count = shards
        self.settings = SETTINGS
        self.server: ShardWorld
        self._clients: dict[ShardProcess, list[asyncio.Task[None]]] = {}
        self._watches: dict[ShardProcess, asyncio.Task[None]] = {}
        self._client_count = 0
        self._tending: asyncio.Task[None] | None = None

    def _seed(self) -> int:
        return self.chance.getrandbits(32)

    # Processes

    def begin(self, shards: int, *, read_only: bool = False) -> None:
        """All processes of a start."""
        self.shard_count = shards
        self.server = ShardWorld(
            shards,
            disk=self.disk,
            seed=self._seed(),
            reserve_bytes=RESERVE_BYTES,
            settings=self.settings,
            arena_bytes=ARENA_BYTES,
            process_disk=CountingDisk,
            asked_again_s=ASKED_AGAIN_S,
        )
        self.server.on_killed, self.server.on_recovered = self._note_killed, self._note_recovered
        self.disk.mark_late()
        for number in range(shards):
            self.server.begin(number, read_only=read_only)

    async def start(self, shards: int) -> None:
        """Begin, and wait until all serve; those that end meanwhile begin again."""
        self.begin(shards)
        self._tending = asyncio.get_running_loop().create_task(self._tend())
        await self.wait_served()

    async def wait_served(self) -> None:
        def serves() -> bool:
            live = self.server.live.values()
            return self.violation is not None or (
                len(live) == self.shard_count and all(one.has_recovered for one in live)
            )

        try:
            async with asyncio.timeout(RECOVERY_LIMIT_S):
                await until(serves)
        except TimeoutError:
            raise Violation(f"no recovery in {RECOVERY_LIMIT_S:g} s") from None
        self.raise_violation()

    async def _tend(self) -> None:
        """What the supervisor does: a process that has ended, or whose recovery failed, is followed by another."""
        while True:
            for number in range(self.shard_count):
                process = self.server.live.get(number)
                if process is None:
                    self.disk.mark_late()
                    self.server.begin(number)
                    self.counts["restarts of a shard"] += 1
                elif process.recovery is not None and process.recovery.done():
                    self._look_at_recovery(process)
                    self._watch_space(process)
            self._end_clients_of_the_dead()
            await asyncio.sleep(RESTART_S * (0.5 + self.chance.random()))

    def _look_at_recovery(self, process: ShardProcess) -> None:
        assert process.recovery is not None
        error = process.recovery.exception()
        if error is None or isinstance(error, ProcessEnded):
            return
        if isinstance(error, CorruptionError) or not isinstance(error, StorageError):
            self.note_violation(error)
        self.counts["recoveries that failed"] += 1
        self.server.kill(process.number)

    def _watch_space(self, process: ShardProcess) -> None:
        if process not in self._watches and not process.is_dead and process.has_recovered:
            self._watches[process] = asyncio.get_running_loop().create_task(self._look_at_space(process))

    async def _look_at_space(self, process: ShardProcess) -> None:
        watch = SpaceWatch(process.disk, "data", LOW_BYTES, process.logs.resources.admission, process.reserve)
        while not process.is_dead:
            with contextlib.suppress(StorageError):
                await watch.look()
            await asyncio.sleep(SPACE_LOOK_S)

    def kill(self, number: int) -> None:
        self.server.kill(number)
        self._end_clients_of_the_dead()

    def _note_killed(self, process: ShardProcess) -> None:
        if process.local.logs is not None:
            promised = promises(process)
            for log in process.logs.partitions:
                if log.uid in promised and log.closed is None and log.set_aside is None:
                    # Of a run whose sync has failed nothing but memory holds what `write` had answered.
                    held = min(log.high_watermark, max(log.journaled_end, log.flushed_end, log.unsynced_end))
                    self.oracle.note_killed(log.uid, promised[log.uid], synced=log.durable_end, high_watermark=held)

    def _note_recovered(self, process: ShardProcess, logs: ShardLog) -> None:
        promised = promises(process)
        for log in logs.partitions:
            if log.set_aside is None:
                self.oracle.note_recovered(log.uid, promised[log.uid], log.next_offset)

    def end(self, *, power_loss: bool) -> None:
        """All processes die at once; what the device has then is the disk of the next start."""
        if self._tending is not None:
            self._tending.cancel()
        self.server.end()
        if power_loss:
            self.oracle.note_power_loss()
        self._end_clients_of_the_dead()
        heir = self.disk.after_power_loss(self._seed()) if power_loss else self.disk.after_kill(self._seed())
        assert isinstance(heir, WorldDisk)
        self.disk = heir

    async def stop(self) -> None:
        """In order, as a stop of the server: what clients have asked is answered, then all processes end."""
        await self.wait_clients()
        assert self._tending is not None
        self._tending.cancel()
        stopping = [self._stop_one(one) for one in self.server.live.values() if one.has_recovered]
        await asyncio.gather(*stopping)
        self.raise_violation()
        self.end(power_loss=False)

    async def _stop_one(self, process: ShardProcess) -> None:
        stopping = asyncio.get_running_loop().create_task(process.stop())
        stopping.add_done_callback(self._note_end)
        await until(lambda: stopping.done() or process.is_dead)
        stopping.cancel()

    # Clients

    def add_client(self, via: int, seed: int, actions: int, *, bulk: bool) -> None:
        process = self.serving(via)
        if process is not None:
            self._client_count += 1
            client = Client(self._client_count, seed, process, self.oracle, bulk=bulk)
            self.add_task(process, client.run(actions))

    def serving(self, number: int) -> ShardProcess | None:
        process = self.server.live.get(number)
        return process if process is not None and process.has_recovered and self.server.is_open else None

    def add_task(self, process: ShardProcess, work: Coroutine[Any, Any, None]) -> None:
        """What hangs on the connection to a process, and ends with it."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._note_end)
        self._clients.setdefault(process, []).append(task)

    async def change(self, process: ShardProcess, command: Command, body: bytes) -> None:
        """A request of a client of its own, repeated while the answer is 57 or 58. Raises ShardServerError."""
        self._client_count += 1
        asked = ChangeRequest(int(command), md.ROOT_ID, body, b"operator %d" % self._client_count, 1)
        while True:
            try:
                await process.role.changes.change(asked)
                return
            except BackpressureError:
                await asyncio.sleep(REPEAT_S)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ProcessEnded):
            self.note_violation(error)

    def note_violation(self, error: BaseException) -> None:
        self.violation = self.violation or error

    def note_unexpected(self, context: dict[str, Any]) -> None:
        """What nobody catches: an error in a callback, or in a task that nobody waits for."""
        error = context.get("exception")
        if error is not None and not isinstance(error, ProcessEnded | StorageError | asyncio.CancelledError):
            self.note_violation(error)

    def raise_violation(self) -> None:
        if self.violation is not None:
            raise self.violation

    def _end_clients_of_the_dead(self) -> None:
        for process in [one for one in self._clients if one.is_dead]:
            for task in self._clients.pop(process):
                task.cancel()
        for process in [one for one in self._watches if one.is_dead]:
            self._watches.pop(process).cancel()

    async def wait_clients(self) -> None:
        """Until all have done what they wanted, or are dead."""
        await until(lambda: all(task.done() for tasks in self._clients.values() for task in tasks))

    # What is true

    def check_step(self) -> None:
        """One owner, and no high watermark goes back; also while processes die and partitions move."""
        self.raise_violation()
        owners: dict[int, int] = {}
        for process in self.server.live.values():
            if process.local.logs is None or process.local.logs.failed is not None:
                continue
            for log in process.local.logs.partitions:
                if log.refusal is None and log.closed is None and log.fenced is None and process.has_recovered:
                    former = owners.setdefault(log.uid, process.number)
                    require(former == process.number, f"partition {log.uid}: owned by {former} and {process.number}")
                    self.oracle.check_high_watermark(log.uid, log.high_watermark)
        self.counts["steps"] += 1

    async def check_shard(self, number: int) -> None:
        """All that this shard serves, while others go on."""
        process = self.server.live.get(number)
        if process is None or not process.has_recovered:
            return
        for uid in [log.uid for log in process.logs.partitions]:
            with contextlib.suppress(ShardServerError, KeyError):  # it moves, is deleted, or its disk fails
                await self._wait(process, self._read(process, uid))

    async def _wait(self, process: ShardProcess, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        await until(lambda: task.done() or process.is_dead)
        if task.done():
            task.result()
        task.cancel()

    async def _read(self, process: ShardProcess, uid: int) -> tuple[Contents, dict[int, int | None]]:
        log, known = process.logs.partition(uid), self.oracle.known_of(uid)
        first, numbers = log.first_offset, await read_numbers(process.logs, uid)
        found = Contents(first, numbers)
        self.oracle.check_contents(uid, known, found)
        return found, {}

    async def check_nearly_full(self, number: int) -> None:
        """Sends are refused, reads go on, and with room sends are taken again, by itself."""
        process = self.serving(number)
        found = None if process is None else self._some_served(process)
        if process is None or found is None:
            return
        admission, log = process.logs.resources.admission, process.logs.partition(found.uid)

        def is_refusing() -> bool:
            self.disk.capacity_bytes = self.disk.used_bytes + LOW_BYTES // 2  # what a purge frees is no room
            return process.is_dead or admission.refusal is not None

        await until(is_refusing)
        outcome = await self._send_once(process, found)
        if not serves(process, log):
            return
        require(isinstance(outcome, DiskFullError), f"a send to a nearly full disk: {outcome!r}")
        with contextlib.suppress(NotOwnerError):  # it moves now
            await self._wait(process, self._read(process, found.uid))
        self.disk.capacity_bytes = None
        await until(lambda: process.is_dead or admission.refusal is None)
        outcome = await self._send_once(process, found)
        require(isinstance(outcome, int) or not serves(process, log), f"a send to a disk with room again: {outcome!r}")
        self.counts["nearly full disks"] += isinstance(outcome, int)

    def _some_served(self, process: ShardProcess) -> md.Partition | None:
        live = [partition for _, partition in process.metadata.live_partitions()]
        logs = {one.uid: process.logs.find_partition(one.uid) for one in live}
        served = [one for one in live if (log := logs[one.uid]) is not None and serves(process, log)]
        return self.chance.choice(served) if served else None

    async def _send_once(self, process: ShardProcess, partition: md.Partition) -> int | ShardServerError | None:
        """None: the process has died."""
        self._client_count += 1
        sent = Client(self._client_count, 0, process, self.oracle).send_once(partition)
        await until(lambda: sent.done() or process.is_dead)
        return sent.result() if sent.done() else None

    async def check_all(self) -> State:
        """After a recovery of all, with nobody there: everything is as the oracle says. Gives what was found."""
        await self.server.wait_settled()
        for process in self.server.live.values():
            require(process.metadata == self.server[0].metadata, f"the replica of shard {process.number} differs")
        state = await self.check_served()
        self._check_directories(set(state))
        return state

    async def check_served(self) -> State:
        """As check_all; files of dead partitions may be left, and followers need not know of the last boot numbers."""
        metadata = self.server[0].metadata
        for replica in [process.metadata for process in self.server.live.values()]:
            require((replica.streams, replica.users) == (metadata.streams, metadata.users), "the replicas differ")
        self.oracle.check_live(partition.uid for _, partition in metadata.live_partitions())
        self.oracle.check_topics({name for stream in metadata.streams.values() for name in stream.topic_ids})
        state: State = {}
        for _, partition in metadata.live_partitions():
            state[partition.uid] = await self.check_partition(partition.uid, partition.shard)
        return state

    async def check_partition(self, uid: int, owner: int) -> tuple[Contents, dict[int, int | None]]:
        for process in self.server.live.values():
            log = process.logs.find_partition(uid)
            serves = log is not None and log.refusal is None and log.closed is None
            require(serves == (process.number == owner), f"partition {uid}: owner {owner}, {process.number}: {serves}")
        process = self.server[owner]
        fenced = process.logs.partition(uid).fenced
        require(fenced is None, f"partition {uid} is fenced: {fenced}")
        contents, _ = await self._read(process, uid)
        offsets = {one: process.logs.offsets.get(uid, KIND, one) for one in self.oracle.consumers_of(uid)}
        for consumer, offset in offsets.items():
            self.oracle.check_offset(uid, consumer, offset, contents.high_watermark)
        return contents, offsets

    async def check_read_only(self) -> None:
        """All are dead. On a copy whose device takes no writes all start read-only: everything is served, nothing is
        taken or changed. When it takes writes again each shard gets out, and the next start finds the same, durable.
        Some die on their way out, and what they had served was not durable yet. The world is afterwards as it was.
        """
        disk, oracle = self.disk, self.oracle
        self.disk, self.oracle = disk.fork(self._seed()), copy.deepcopy(oracle)
        try:
            found = await self._served_read_only()
            self.disk.is_broken = False
            healed = [await self._heal(process) for process in list(self.server.live.values())]
            power_loss = all(healed) or self.chance.random() < 0.5
            self.end(power_loss=power_loss)
            if power_loss and not all(healed):
                self.counts["power losses amid healing"] += 1
                self.oracle = copy.deepcopy(oracle)
                self.oracle.note_power_loss()
            await self.start(self.shard_count)
            state = await self.check_all()
            if all(healed) or not power_loss:
                require(state == found, "the start after a read-only one differs from it")
            self.end(power_loss=False)
        finally:
            self.server.end()
            self.disk, self.oracle = disk, oracle
        self.counts["read-only starts"] += 1

    async def _heal(self, process: ShardProcess) -> bool:
        """False: it died at some operation of that. An error is met by another try, as the server does."""
        disk, fate = process.disk, self.chance.choice(("well", "well", "death", "error"))
        operation = disk.operations + int(1 + 150 * self.chance.random() ** 2)
        disk.die_at = operation if fate == "death" else 0
        disk.fail_at, disk.fail_errno = (
            operation if fate == "error" else 0,
            self.chance.choice((errno.EIO, errno.ENOSPC)),
        )
        while not process.is_dead:
            healing = asyncio.ensure_future(replace_journal(process.logs))
            await until(lambda healing=healing: process.is_dead or healing.done())
            if not healing.done():
                healing.cancel()
            elif healing.exception() is None:
                self.counts["healings"] += 1
                return True
            elif isinstance(healing.exception(), StorageError) and disk.fail_at:
                self.counts["errors amid healing"] += 1
                disk.fail_at = 0
            else:
                healing.result()
        self.counts["deaths amid healing"] += 1
        return False

    async def _served_read_only(self) -> State:
        before = {path: bytes(node.current) for path, node in self.disk.files.items()}
        self.disk.is_broken = True
        self.begin(self.shard_count, read_only=True)
        await self.wait_served()
        found = await self.check_served()
        for process in self.server.live.values():
            partition = self._some_served(process)
            if partition is not None:
                outcome = await self._send_once(process, partition)
                refused = isinstance(outcome, StorageError) and not isinstance(outcome, DiskFullError)
                require(refused, f"a send to a read-only shard: {outcome!r}")
                self.counts["sends refused by read-only shards"] += 1
        after = {path: bytes(node.current) for path, node in self.disk.files.items()}
        require(before == after, "a read-only start wrote")
        return found

    def _check_directories(self, live: set[int]) -> None:
        """No file of a dead partition is left."""
        paths = [path for path in self.disk.files if path.startswith("data/partitions/")]
        dead = {path for path in paths if int(path.split("/")[2], 16) not in live}
        require(not dead, f"files of dead partitions: {sorted(dead)[:3]}")
