"""Some shards in one process: their real logs, peers, rings and roles, on one disk that may fail; and what is true.

A process of a shard dies by `World.kill`: its disk completes nothing any more, its peers are told, and what its tasks
would still do reaches nobody. `World.start` begins the next one, with fresh rings and a fresh arena. It is put together
as server.py does it, and joined with the others as supervisor/mesh.py does it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Sequence

from shardserver.core import metadata as md
from shardserver.core.authentication import PasswordVerifier
from shardserver.core.calls import OffsetCall, Operation, SendCall
from shardserver.core.changes import ChangeRequest
from shardserver.core.load import LoadMeter
from shardserver.core.local_owner import LocalOwner
from shardserver.core.metadata import Metadata
from shardserver.core.operator_commands import encode_loads
from shardserver.core.owned_partitions import OwnedPartitions, owned_identities
from shardserver.core.peer_service import PeerService
from shardserver.core.placement import Placement, Rule
from shardserver.core.remote_owner import Unanswered
from shardserver.core.roles import FollowerRole, Role, WriterRole
from shardserver.core.sessions import Sessions
from shardserver.core.shards import Shards
from shardserver.core.writing import WriterSide
from shardserver.errors import BackpressureError, NotCommittedError, ShardServerError, StorageError
from shardserver.memory.arena import Arena
from shardserver.memory.board import BOARD_BYTES
from shardserver.protocol.addresses import TopicAddress
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import CreateTopicRequest, PartitionsRequest
from shardserver.router.peers import Peers
from shardserver.router.ring_python import make_ring, ring_bytes
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.reserve import Reserve, reserve_path
from shardserver.storage.settings import Durability, LogSettings
from shardserver.storage.shard_log import ShardLog
from shardserver.storage.synced_write import SyncFaults
from tests.batches import make_batch
from tests.core.simulated_loop import SimulatedLoop
from tests.fault_disk import FaultDisk
from tests.process_disk import Locks, ProcessDisk
from tests.storage.log_world import SETTINGS, read_numbers

ARENA_BYTES = 4 << 20
RING_SLOTS = 64
PAUSE_S = 0.05  # of a client before it repeats


class ProcessEnded(BaseException):
    """What os._exit is to a process: nothing of it goes on."""


class ShardProcess:
    """One process of a shard, from its join to its death."""

    def __init__(self, world: World, number: int, *, read_only: bool = False) -> None:
        self.world, self.number, self.read_only = world, number, read_only
        self.disk = world.process_disk(world.disk, world.locks, world.next_seed())
        self.disk.died = lambda: world.kill(number)
        self.faults = SyncFaults()
        self.faults.others = lambda: world.sync_faults - self.faults.own
        self.faults.on_fault = world.note_fault
        self.answers_are_known = True
        self.reserve = Reserve(self.disk, reserve_path("data", number), world.reserve_bytes, self.faults)
        self.sessions = Sessions(number)
        self.local = LocalOwner(LoadMeter(asyncio.get_running_loop().time))
        self.service = PeerService(self.local)
        self.memory = mmap.mmap(-1, world.arena_bytes)
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.peers = Peers(Arena(self.memory, BOARD_BYTES), self.doorbell, self.service.serve)
        self.peers.serve_sends(self.local.target_of)
        self.local.load.sources = [self.peers.take_loads]
        self.peer_served = asyncio.Event()
        self.peers.on_serving = lambda peer: self.peer_served.set()
        self.shards = Shards(number, world.count, self.local, self.peers, self.sessions)
        self.side: WriterSide | None = None
        self.role = self._make_role()
        self.owned = OwnedPartitions(
            number, world.count, self.local, Durability.FSYNC, lambda: self.role.metadata, self.role.report_removed
        )
        self._connect()
        self.boot_number = 0
        self.is_dead = self.has_recovered = False
        self.ended_by: Exception | None = None
        self.recovery: asyncio.Task[None] | None = None

    def _make_role(self) -> Role:
        if self.number:
            return FollowerRole(self.peers, self.shards.remote[0], self.end)
        self.side = WriterSide(
            self.disk, "data/metadata", self.faults, self.reserve, self.world.placement, clock_us, 1000
        )
        return WriterRole(
            self.side.writer, self.peers, root_user, self.end, PasswordVerifier(), read_only=self.read_only
        )

    def _connect(self) -> None:
        self.role.on_applied = self.owned.reconcile
        self.service.control |= self.role.control_handlers() | self.shards.control_handlers()
        self.service.control |= self.owned.control_handlers()
        self.service.control[Operation.LOADS] = lambda asked: encode_loads(self.shards)

    @property
    def metadata(self) -> Metadata:
        return self.role.metadata

    @property
    def logs(self) -> ShardLog:
        assert self.local.logs is not None
        return self.local.logs

    def end(self, error: Exception) -> None:
        """os._exit."""
        if not self.is_dead:
            self.ended_by = error
            self.world.kill(self.number)
        raise ProcessEnded(str(error))

    async def recover(self) -> None:
        await self.reserve.find()
        self.boot_number = await self.role.start()
        if self.side is not None and not self.read_only:
            await self.side.set_aside_unknown("data")
        self.local.logs = await self.open_logs(self.number)
        self.local.logs.resources.hooks.before_submit = self.peers.publish
        self.owned.reconcile()
        self.peers.say_serving()
        if self.side is not None:
            await self.side.begin("data", self.shards, self.owned, self.open_logs, self._wait_for_peers)
        self.has_recovered = True
        live = self.world.live.values()
        self.world.is_open |= len(live) == self.world.count and all(one.has_recovered for one in live)
        if not self.answers_are_known:
            assert self.world.asked_again_s is not None
            asyncio.get_running_loop().call_later(self.world.asked_again_s, self._settle_answers)

    def _settle_answers(self) -> None:
        self.logs.resources.hooks.answers_are_known = True

    async def open_logs(self, shard: int) -> ShardLog:
        source = RecoveryInput(
            shard,
            self.metadata.next_uid,
            owned_identities(self.metadata, shard, Durability.FSYNC),
            faults=self.faults,
            read_only=self.read_only,
            reserve=self.reserve,
            answers_are_known=self.answers_are_known,
        )
        logs = await recover_shard(self.disk, "data", self.world.settings, source, clock_us, self.end)
        if not self.is_dead:
            self.world.on_recovered(self, logs)
        return logs

    async def _wait_for_peers(self) -> None:
        while not all(self.peers.peer(number).is_serving for number in self.shards.remote):
            self.peer_served.clear()
            await self.peer_served.wait()

    # What the supervisor tells

    def on_peer(self, other: ShardProcess, out: mmap.mmap, into: mmap.mmap) -> None:
        if not self.is_dead:
            self.peers.attach(other.number, out, into, other.memory, os.dup(other.doorbell))
            self.role.peer_began(other.number, is_serving=other.has_recovered)

    def on_peer_gone(self, number: int) -> None:
        if not self.is_dead:
            self.peers.detach(number)
            self.role.peer_ended(number)

    def die(self) -> None:
        self.is_dead = True
        self.disk.kill()
        self.peers.close()
        for peer in self.peers:
            if peer.rings is not None:
                os.close(peer.rings.doorbell)
            peer.rings = None
            peer.questions.clear()
        if self.local.logs is not None:
            self.local.logs.failed = StorageError("the modelled process is dead")

    async def stop(self) -> None:
        await self.logs.close()
        if self.side is not None:
            await self.side.close()


def clock_us() -> int:
    return int(asyncio.get_running_loop().time() * 1e6) + 1


def root_user() -> md.User:
    return md.User(md.ROOT_ID, "iggy", 1, "hash")


class World:
    """shards: how many. Give the disk of a former world to go on where it ended.

    asked_again_s: how long the next process of a shard expects that its peers ask again; None: it never does.
    on_recovered: told of logs before anybody is served by them, those of a shard that is gone too. on_killed: told of a
    process before it dies.
    """

    def __init__(
        self,
        shards: int,
        *,
        disk: FaultDisk | None = None,
        seed: int = 1,
        rules: Sequence[Rule] = (),
        strategy: str = "balanced",
        reserve_bytes: int = 0,
        settings: LogSettings = SETTINGS,
        arena_bytes: int = ARENA_BYTES,
        process_disk: type[ProcessDisk] = ProcessDisk,
        asked_again_s: float | None = None,
    ) -> None:
        self.count, self._seed, self.reserve_bytes = shards, seed, reserve_bytes
        self.settings, self.arena_bytes, self.process_disk = settings, arena_bytes, process_disk
        self.asked_again_s = asked_again_s
        self.is_open = False  # all have recovered once, and clients may be there
        self.sync_faults = 0  # of all processes, the dead included
        self.disk = disk if disk is not None else FaultDisk(seed)
        self.locks = Locks()
        self.placement = Placement(strategy, rules, shards)
        self.live: dict[int, ShardProcess] = {}
        self._all: list[ShardProcess] = []
        self._last_request = 0
        self.ledger = Ledger()
        self.on_recovered: Callable[[ShardProcess, ShardLog], None] = lambda process, logs: None
        self.on_killed: Callable[[ShardProcess], None] = lambda process: None

    def next_seed(self) -> int:
        self._seed += 1
        return self._seed

    def note_fault(self, count: int) -> None:
        self.sync_faults += 1

    def __getitem__(self, number: int) -> ShardProcess:
        return self.live[number]

    # Processes

    def begin(self, number: int, *, read_only: bool = False) -> ShardProcess:
        """A process joins the others and recovers in the background."""
        assert number not in self.live
        process = ShardProcess(self, number, read_only=read_only)
        self._all.append(process)
        process.answers_are_known = self.asked_again_s is None or not self.is_open
        for other in self.live.values():
            there, back = make_ring_memory(), make_ring_memory()
            asyncio.get_running_loop().call_soon(other.on_peer, process, back, there)
            process.on_peer(other, there, back)
        self.live[number] = process
        process.recovery = asyncio.get_running_loop().create_task(process.recover())
        return process

    async def start(self, *numbers: int, read_only: bool = False) -> None:
        """Begin and recover these, or all. Raises what ended a recovery; returns early when one died."""
        begun = [self.begin(number, read_only=read_only) for number in numbers or range(self.count)]
        await self.wait_recovered(*begun)

    async def wait_recovered(self, *begun: ShardProcess) -> None:
        for process in begun:
            assert process.recovery is not None
            await until(lambda process=process: process.is_dead or process.recovery.done())
            if process.recovery.done() and not process.recovery.cancelled():
                error = process.recovery.exception()
                if error is not None and not isinstance(error, ProcessEnded):
                    raise error

    def kill(self, number: int) -> None:
        process = self.live.pop(number)
        self.on_killed(process)
        process.die()
        for other in self.live.values():
            asyncio.get_running_loop().call_soon(other.on_peer_gone, number)

    async def restart(self, number: int, *, read_only: bool = False) -> None:
        if number in self.live:
            self.kill(number)
        await self.start(number, read_only=read_only)

    def end(self) -> FaultDisk:
        """All die at once; what the device has now."""
        for number in list(self.live):
            self.kill(number)
        for process in self._all:
            os.close(process.doorbell)
        self._all.clear()
        return self.disk

    async def stop(self) -> FaultDisk:
        """In order, as a stop of the server."""
        for process in self.live.values():
            await process.stop()
        return self.end()

    # Clients

    async def change(self, command: Command, body: bytes, *, via: int = 0, request: int = 0) -> bytes:
        """One request of a client of shard `via`, repeated while the answer is 57 or 58, or when that shard dies."""
        if not request:
            self._last_request += 1
            request = self._last_request
        asked = ChangeRequest(int(command), md.ROOT_ID, body, b"client of shard%d" % via, request)
        while True:
            answer = await self._ask(self.live.get(via), asked)
            if answer is not None:
                return answer
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, process: ShardProcess | None, asked: ChangeRequest) -> bytes | None:
        if process is None:
            return None
        answer = asyncio.ensure_future(process.role.changes.change(asked))
        await until(lambda: answer.done() or process.is_dead)
        if process.is_dead:
            answer.cancel()
            return None
        try:
            return answer.result()
        except BackpressureError:
            return None

    async def create_stream(self, name: str = "s", *, via: int = 0) -> bytes:
        return await self.change(Command.CREATE_STREAM, CreateStreamRequest(name, {}).encode(), via=via)

    async def create_topic(self, name: str = "t", partitions: int = 1, *, via: int = 0, request: int = 0) -> bytes:
        body = CreateTopicRequest("s", partitions, name, {}).encode()
        return await self.change(Command.CREATE_TOPIC, body, via=via, request=request)

    async def delete_topic(self, name: str = "t", *, via: int = 0) -> bytes:
        return await self.change(Command.DELETE_TOPIC, TopicAddress("s", name).encode(), via=via)

    async def purge_topic(self, name: str = "t", *, via: int = 0) -> bytes:
        return await self.change(Command.PURGE_TOPIC, TopicAddress("s", name).encode(), via=via)

    async def change_partitions(self, command: Command, count: int, name: str = "t", *, via: int = 0) -> bytes:
        return await self.change(command, PartitionsRequest("s", name, count).encode(), via=via)

    def partition(self, topic: Identifier = "t", number: int = 0, *, via: int = 0) -> md.Partition:
        """As the replica of shard `via` has it."""
        return self.live[via].metadata.find_topic("s", topic)[1].partitions[number]

    async def send(self, number: int, *, topic: str = "t", partition: int = 0, via: int = 0, size: int = 0) -> None:
        """One batch of two messages, numbered `number` and the next, in the ledger once it is answered.

        Repeated while the answer is 57 or 58, as SDKs do. When the shard of the connection dies, nobody knows.
        """
        connection = self.live[via]
        unanswered: Unanswered = {}
        batch = bytes(make_batch([b"%d " % one + b"x" * size for one in (number, number + 1)]))
        while True:
            found = self._find(connection, topic, partition)
            if found is None:
                return
            uid = found.uid  # a purge gives the same partition another one
            outcome = await self._attempt(connection, found, batch, unanswered)
            if connection.is_dead:
                return
            if isinstance(outcome, int):
                self.ledger.take(uid, outcome, [number, number + 1])
                return
            if not isinstance(outcome, BackpressureError):
                return
            await asyncio.sleep(PAUSE_S)

    async def store_offset(self, offset: int, *, partition: int = 0) -> None:
        """By consumer 7, acknowledged. Repeated as send."""
        while True:
            one = self.partition(number=partition)
            try:
                owner = self.live[0].shards.owner_of(one)
                return await owner.store_offset(OffsetCall(one.uid, 1, 7, offset, acknowledged=True))
            except BackpressureError:
                await asyncio.sleep(PAUSE_S)

    async def get_offset(self, *, partition: int = 0) -> int | None:
        one = self.partition(number=partition)
        return (await self.live[0].shards.get_offset(one, OffsetCall(one.uid, 1, 7)))[1]

    def _find(self, connection: ShardProcess, topic: str, partition: int) -> md.Partition | None:
        try:
            return connection.metadata.find_topic("s", topic)[1].partitions[partition]
        except (ShardServerError, IndexError):
            return None

    async def _attempt(
        self, connection: ShardProcess, partition: md.Partition, batch: bytes, unanswered: Unanswered
    ) -> int | ShardServerError:
        answered: asyncio.Future[int | ShardServerError] = asyncio.get_running_loop().create_future()

        def done(outcome: int | ShardServerError) -> None:
            if not answered.done():
                answered.set_result(outcome)

        call = SendCall(partition.uid, 2)
        try:
            owner = connection.shards.owner_of(partition)
            if isinstance(owner, LocalOwner):
                owner.send(call, batch, done)
            else:
                owner.send(call, batch, done, unanswered)
        except ShardServerError as error:
            return error
        await until(lambda: answered.done() or connection.is_dead)
        return answered.result() if answered.done() else NotCommittedError("the connection is gone")

    # What is true

    async def check(self) -> None:
        """All replicas are equal, each partition is served by its owner alone, and holds what was acknowledged."""
        await self.wait_settled()
        writer = self.live[0].metadata
        for process in self.live.values():
            assert process.metadata == writer, f"the replica of shard {process.number} differs"
        for _, partition in writer.live_partitions():
            for process in self.live.values():
                found = process.logs.find_partition(partition.uid)
                serves = found is not None and found.refusal is None and found.closed is None and found.fenced is None
                owns = process.number == partition.shard
                assert serves == owns, f"partition {partition.uid}: shard {process.number} serves {serves}, owns {owns}"
            logs = self.live[partition.shard].logs
            self.ledger.check(partition.uid, await read_numbers(logs, partition.uid))
            assert logs.partition(partition.uid).identity.term == partition.term

    async def wait_settled(self) -> None:
        """Until no dead files are left."""
        await until(lambda: not any(one.metadata.dying for one in self.live.values()))


class Ledger:
    """What was acknowledged: of each uid the offset of each number."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, dict[int, int]] = {}

    def take(self, uid: int, base_offset: int, numbers: list[int]) -> None:
        found = self.acknowledged.setdefault(uid, {})
        found.update((number, base_offset + place) for place, number in enumerate(numbers))

    def forget(self, *uids: int) -> None:
        """Their topic is purged."""
        for uid in uids:
            self.acknowledged.pop(uid, None)

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    def check(self, uid: int, numbers: list[int]) -> None:
        assert len(set(numbers)) == len(numbers), f"partition {uid}: doubled: {numbers}"
        for number, offset in self.acknowledged.get(uid, {}).items():
            assert offset < len(numbers) and numbers[offset] == number, f"partition {uid}: {number} is not at {offset}"


async def turns(count: int) -> None:
    """Of the loop; the clock moves, a little, only when nothing else happens."""
    loop, idle = asyncio.get_running_loop(), 0
    assert isinstance(loop, SimulatedLoop)
    for _ in range(count):
        idle = 0 if loop.has_ready else idle + 1
        await asyncio.sleep(0.001 if idle > 2 else 0)


async def until(holds: Callable[[], bool]) -> None:
    """Turns of the loop until it holds; after some of them the clock moves, ever faster."""
    pause_s = 0.0
    while not holds():
        for _ in range(64):
            await asyncio.sleep(0)
            if holds():
                return
        pause_s = min(1.0, 2 * pause_s + 0.001)
        await asyncio.sleep(pause_s)


def make_ring_memory() -> mmap.mmap:
    memory = mmap.mmap(-1, -(-ring_bytes(RING_SLOTS) // 4096) * 4096)
    with memoryview(memory) as view:
        make_ring(view, RING_SLOTS)
    return memory
