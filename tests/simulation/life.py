"""One simulated life: the steps of a plan on a World, with what must be true after each."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from unittest.mock import patch

from shardserver.core import metadata as md
from shardserver.core.calls import CutCall
from shardserver.core.placement import Move
from shardserver.errors import ShardServerError
from shardserver.protocol.addresses import TopicAddress
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.tlv import KIND_STRING, KIND_U64, Typed
from shardserver.protocol.topics import CreateTopicRequest, PartitionsRequest
from shardserver.storage.settings import Durability
from tests.core.shard_world import ShardProcess, turns, until
from tests.core.simulated_loop import simulate
from tests.simulation.disk import Trap
from tests.simulation.flips import check_flip, choose_flip
from tests.simulation.oracle import require
from tests.simulation.plan import Plan
from tests.simulation.world import OPTIONS, SEGMENT_BYTES, World, topic_name

STREAM = "s"
FIRST_TOPICS = {Durability.FSYNC: 2, Durability.MEMORY: 1, Durability.WRITE: 2}
MANY_PARTITIONS = 60  # on few shards: the ring of a journal has 64 KiB for each, and grows


class Life:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(plan.seed, plan.shards)
        self._chance = random.Random()  # of the step that is being taken
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "clients": self._clients,
            "bulk": self._bulk,
            "run": self._run,
            "create topic": self._create_topic,
            "create many partitions": self._create_many,
            "add partitions": self._add_partitions,
            "delete partitions": self._delete_partitions,
            "delete topic": self._delete_topic,
            "purge": self._purge,
            "cut": self._cut,
            "move": self._move,
            "fail an operation": self._fail,
            "fail a sync": self._fail_sync,
            "fill the disk": self._fill,
            "nearly fill the disk": self._nearly_fill,
            "slow disk": self._slow,
            "flip a bit": self._flip,
            "start read-only": self._start_read_only,
            "kill a shard": self._kill,
            "die at an operation": self._die_at,
            "die after an error": self._die_after_error,
            "kill all": self._kill_all,
            "power loss": self._lose_power,
            "stop": self._stop,
        }

    async def play(self) -> None:
        world = self.world
        await world.start(self.plan.shards)
        process = world.server[0]
        await world.change(process, Command.CREATE_STREAM, CreateStreamRequest(STREAM, {}).encode())
        for durability, partitions in FIRST_TOPICS.items():
            await self._create(topic_name(durability, 0), durability, partitions, process)
        for step in self.plan.steps:
            self._chance.seed(step.seed)
            world.counts[f"step: {step.kind}"] += 1
            await self._kinds[step.kind]()
            await self._let_run()
            world.check_step()
        await self._finish()

    async def _let_run(self) -> None:
        for _ in range(self._chance.choice((1, 2, 5))):
            await turns(self._chance.choice((10, 40, 150)))
            self.world.check_step()

    async def _finish(self) -> None:
        """Quiet, then once more through a power loss and an orderly stop."""
        world = self.world
        world.disk.calm()
        await world.wait_served()
        await world.wait_clients()
        world.raise_violation()
        before = await self._restart("power loss", world.shard_count)
        await world.stop()
        await world.start(world.shard_count)
        require(await world.check_all() == before, "an orderly stop has changed something")
        world.check_step()
        world.end(power_loss=False)

    # Clients

    async def _clients(self) -> None:
        for _ in range(self._chance.randrange(1, 4)):
            self.world.add_client(
                self._some_shard(), self._chance.getrandbits(32), self._chance.randrange(5, 30), bulk=False
            )

    async def _bulk(self) -> None:
        for _ in range(self._chance.randrange(1, 3)):
            self.world.add_client(
                self._some_shard(), self._chance.getrandbits(32), self._chance.randrange(3, 15), bulk=True
            )

    async def _run(self) -> None:
        await turns(self._chance.choice((100, 400)))

    def _some_shard(self) -> int:
        return self._chance.randrange(self.world.shard_count)

    # Metadata

    def _ask(self, work: Callable[[ShardProcess], Awaitable[None]]) -> None:
        """Of some shard, in the background; nobody asks when that one is down."""
        process = self.world.serving(self._some_shard())
        if process is None:
            return

        async def quietly() -> None:
            with contextlib.suppress(ShardServerError):  # such as a full disk, or what is deleted already
                await work(process)

        self.world.add_task(process, quietly())

    async def _create(self, name: str, durability: Durability, partitions: int, process: ShardProcess) -> None:
        options = {
            "durability": Typed(KIND_STRING, OPTIONS[durability]),
            "segment_size": Typed(KIND_U64, SEGMENT_BYTES),
        }
        body = CreateTopicRequest(STREAM, partitions, name, options).encode()
        await self.world.change(process, Command.CREATE_TOPIC, body)
        self.world.oracle.note_created(name)

    async def _create_topic(self) -> None:
        self._create_some(self._chance.choice((1, 2, 4)))

    async def _create_many(self) -> None:
        self._create_some(MANY_PARTITIONS)

    def _create_some(self, partitions: int) -> None:
        durability = self._chance.choice(tuple(Durability))
        name = topic_name(durability, self._chance.getrandbits(48))
        self._ask(lambda process: self._create(name, durability, partitions, process))

    def _some_topic(self, process: ShardProcess) -> tuple[md.Stream, md.Topic] | None:
        found = [(stream, topic) for stream in process.metadata.streams.values() for topic in stream.topics.values()]
        return self._chance.choice(found) if found else None

    def _ask_about_topic(
        self, command: Command, body: Callable[[md.Topic], bytes], *, kills: Callable[[md.Topic], list[int]]
    ) -> None:
        """kills: the uids that are dead once it is answered."""
        process = self.world.serving(self._some_shard())
        found = self._some_topic(process) if process is not None else None
        if process is None or found is None:
            return
        topic, oracle = found[1], self.world.oracle

        async def ask() -> None:
            dead, request = kills(topic), body(topic)
            if command is Command.DELETE_TOPIC:
                oracle.note_deletion_tried(topic.name)
            with contextlib.suppress(ShardServerError):
                await self.world.change(process, command, request)
                oracle.note_dead(dead)
                self.world.counts["purges"] += command is Command.PURGE_TOPIC
                if command is Command.DELETE_TOPIC:
                    oracle.deleted_topics.add(topic.name)

        self.world.add_task(process, ask())

    async def _delete_topic(self) -> None:
        self._ask_about_topic(
            Command.DELETE_TOPIC, lambda topic: TopicAddress(STREAM, topic.name).encode(), kills=uids_of
        )

    async def _purge(self) -> None:
        self._ask_about_topic(
            Command.PURGE_TOPIC, lambda topic: TopicAddress(STREAM, topic.name).encode(), kills=uids_of
        )

    async def _add_partitions(self) -> None:
        count = self._chance.randrange(1, 4)
        self._ask_about_topic(
            Command.CREATE_PARTITIONS,
            lambda topic: PartitionsRequest(STREAM, topic.name, count).encode(),
            kills=lambda topic: [],
        )

    async def _delete_partitions(self) -> None:
        """Which ones go, is the server's choice: the last ones it has then."""
        self._ask_about_topic(
            Command.DELETE_PARTITIONS,
            lambda topic: PartitionsRequest(STREAM, topic.name, 1).encode(),
            kills=lambda topic: [],
        )

    async def _cut(self) -> None:
        """Delete the oldest segments of the largest partitions."""
        count = self._chance.randrange(1, 3)
        process = self.world.serving(self._some_shard())
        if process is None:
            return
        live = [partition for _, partition in process.metadata.live_partitions()]
        known = self.world.oracle.high_watermarks
        for partition in sorted(live, key=lambda one: known.get(one.uid, 0))[-3:]:
            self.world.add_task(process, self._cut_one(process, partition, count))

    async def _cut_one(self, process: ShardProcess, partition: md.Partition, count: int) -> None:
        with contextlib.suppress(ShardServerError):
            owner = process.shards.owner_of(partition)
            stays = await owner.find_cut(CutCall(partition.uid, count))
            self.world.oracle.note_cut(partition.uid, stays)
            await owner.cut(CutCall(partition.uid, stays))
            self.world.counts["segments cut"] += stays > 0

    async def _move(self) -> None:
        """Some partitions to any shard."""
        process, target = self.world.serving(0), self._some_shard()
        share = self._chance.choice((0.2, 0.5, 1.0))
        if process is None:
            return
        moves = [
            Move(stream.id, topic.id, one.id, one.uid, one.shard, target)
            for stream in process.metadata.streams.values()
            for topic in stream.topics.values()
            for one in topic.partitions
            if one.shard != target and self._chance.random() < share
        ]
        self.world.add_task(process, self._move_all(process, moves))

    async def _move_all(self, process: ShardProcess, moves: list[Move]) -> None:
        assert process.side is not None
        with contextlib.suppress(ShardServerError):
            outcome = await process.side.mover.move(moves)
            self.world.counts["partitions moved"] += outcome.moved
            self.world.counts["moves given up"] += len(outcome.errors)

    # The disk

    async def _fail(self) -> None:
        code = self._chance.choice((errno.EIO, errno.EIO, errno.ENOSPC))
        what = self._chance.choice(("any", "any", "write", "read", "open", "truncate"))
        await self._set_trap(Trap(what, self._chance.choice((0, 3, 30)), code))

    async def _fail_sync(self) -> None:
        what, passed = self._chance.choice((("sync", 0), ("sync", 3), ("sync", 12), ("sync directory", 0)))
        await self._set_trap(Trap(what, passed))

    async def _set_trap(self, trap: Trap) -> None:
        self.world.disk.trap = trap
        await turns(200)
        self.world.disk.trap = None

    async def _fill(self) -> None:
        disk = self.world.disk
        disk.capacity_bytes = disk.used_bytes + self._chance.choice((0, 50_000, 400_000))
        await turns(400)
        disk.capacity_bytes = None
        self.world.counts["full disks"] += disk.refused_for_room > 0
        disk.refused_for_room = 0

    async def _nearly_fill(self) -> None:
        """Below the low watermark, and not full."""
        await self.world.wait_served()
        try:
            await self.world.check_nearly_full(self._some_shard())
        finally:
            self.world.disk.capacity_bytes = None

    async def _slow(self) -> None:
        self.world.disk.slow_s = self._chance.choice((0.005, 0.2))
        await turns(300)
        self.world.disk.slow_s = 0.0

    async def _flip(self) -> None:
        """At rest, between two starts."""
        world = self.world
        await world.wait_served()
        self._end("kill")
        flip = choose_flip(world.disk, self._chance)
        if flip is not None:
            await check_flip(world, flip, skip_damaged=self._chance.random() < 0.5)
        await world.start(world.shard_count)
        await world.check_all()

    async def _start_read_only(self) -> None:
        """After a death of all amid their work."""
        world = self.world
        await world.wait_served()
        await self._until_busy()
        self._end(self._chance.choice(("kill", "power loss")))
        await world.check_read_only()
        await world.start(world.shard_count)
        await world.check_all()

    # Deaths

    async def _until_busy(self) -> None:
        """Half of the deaths come while a write is in flight, so that it may land late, or while a sync is."""
        if self._chance.random() < 0.5:
            await self._chance.choice((self._clients, self._bulk))()
            what = self._chance.choice(("write", "sync"))
            for _ in range(300):
                if self.world.disk.is_at(what):
                    return
                await turns(1)

    async def _kill(self) -> None:
        number = self._some_shard()
        await self._until_busy()
        if number in self.world.server.live:
            self.world.kill(number)
            self.world.counts["crash points"] += 1
            await self._check_again(number)

    async def _die_at(self) -> None:
        """One process dies at its n-th operation, and perhaps the next one at one of its recovery."""
        number = self._some_shard()
        for _ in range(self._chance.choice((1, 1, 2))):
            process = self.world.server.live.get(number)
            if process is None:
                return
            process.disk.die_at = process.disk.operations + int(1 + 150 * self._chance.random() ** 2)
            await self._until_dead(process)
            await turns(self._chance.choice((100, 300)))
        await self._check_again(number)

    async def _die_after_error(self) -> None:
        """No write into a segment of one shard succeeds for a while; while its partitions get over it, it dies."""
        process = self.world.serving(self._some_shard())
        if process is None:
            return
        disk, failed = process.disk, process.disk.failures
        disk.failing_path = "partitions/"
        await self._bulk()
        for _ in range(40):
            if disk.failures > failed + 2 or process.is_dead:
                break
            await turns(20)
        disk.failing_path = ""
        if disk.failures == failed or process.is_dead:
            return
        disk.die_at = disk.operations + int(1 + 100 * self._chance.random() ** 2)
        await self._until_dead(process)
        self.world.counts["deaths amid a partition's healing"] += process.is_dead
        self.world.counts["partitions healed, no death"] += not process.is_dead
        if self._chance.random() < 0.5:
            await self._restart("power loss", self.world.shard_count)
        else:
            await self._check_again(process.number)

    async def _until_dead(self, process: ShardProcess) -> None:
        for _ in range(20):
            if process.is_dead:
                self.world.counts["crash points"] += 1
                return
            await turns(20)
        process.disk.die_at = 0

    async def _check_again(self, number: int) -> None:
        """What the next process serves, beside clients."""
        if self._chance.random() < 0.5:
            await self.world.wait_served()
            await self.world.check_shard(number)
            self.world.counts["recoveries checked"] += 1

    async def _kill_all(self) -> None:
        await self._restart("kill", self._next_count())

    async def _lose_power(self) -> None:
        await self._restart("power loss", self._next_count())

    async def _stop(self) -> None:
        world = self.world
        await world.wait_served()
        await world.stop()
        await world.start(self._next_count())
        await world.check_all()

    def _next_count(self) -> int:
        """Of shards."""
        count = self._chance.choice((self.world.shard_count, self.world.shard_count, 1, 2, 3))
        self.world.counts["other numbers of shards"] += count != self.world.shard_count
        return count

    async def _restart(self, end: str, shards: int) -> dict[int, object]:
        """All die; so do some recoveries. Then everything is there, and the second recovery equals the first."""
        world = self.world
        await self._until_busy()
        self._end(end)
        for _ in range(self._chance.choice((0, 0, 1, 2))):
            await self._die_in_recovery(shards, end)
        if self._chance.random() < 0.2:
            world.disk.trap = Trap(self._chance.choice(("any", "read", "sync", "write")), self._chance.randrange(60))
        await world.start(shards)
        world.disk.trap = None
        first = await self._checked(shards)
        self._end("power loss")
        await world.start(shards)
        require(await world.check_all() == first, "the second recovery differs from the first")
        world.counts["recoveries checked"] += 2
        return dict(first)

    async def _checked(self, shards: int) -> dict[int, object]:
        """A partition that its disk's error has set aside is well after the next start."""
        world = self.world
        if any(log.fenced is not None for one in world.server.live.values() for log in one.logs.partitions):
            self._end("kill")
            await world.start(shards)
        return dict(await world.check_all())

    def _end(self, end: str) -> None:
        self.world.end(power_loss=end == "power loss")
        self.world.counts["crash points"] += 1
        self.world.counts["power losses"] += end == "power loss"

    async def _die_in_recovery(self, shards: int, end: str) -> None:
        """All die at some operation of one of them."""
        world = self.world
        world.begin(shards)
        one = world.server[self._chance.randrange(shards)]
        one.disk.die_at = int(1 + 120 * self._chance.random() ** 2)
        await until(lambda: one.is_dead or one.has_recovered)
        world.counts["deaths in recovery"] += one.is_dead
        self._end(end)


def uids_of(topic: md.Topic) -> list[int]:
    return [one.uid for one in topic.partitions]


@dataclass(frozen=True, slots=True)
class Outcome:
    """trace: equal for equal runs. error: what was broken; None: nothing."""

    counts: Counter[str]
    trace: int
    error: BaseException | None


def play(plan: Plan) -> Outcome:
    """The same for the same plan, in any process."""
    chance = random.Random(plan.seed)
    lives: list[Life] = []

    async def live() -> None:
        life = Life(plan)
        lives.append(life)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: life.world.note_unexpected(context))
        await life.play()

    error: BaseException | None = None
    with patch.object(secrets, "randbits", chance.getrandbits):
        try:
            simulate(live())
        except Exception as broken:  # a bug of any kind is what is looked for
            error = broken
    world = lives[0].world
    counts = world.counts
    counts["messages acknowledged"] += world.oracle.acknowledged
    counts["messages polled"] += world.oracle.polled
    counts["offsets committed"] += world.oracle.committed
    counts.update(world.oracle.lost)
    return Outcome(counts, world.disk.trace, error)
