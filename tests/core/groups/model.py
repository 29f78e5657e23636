"""Groups under random joins, leaves, polls, commits, partition changes and deaths of shards: coordinator and fences
that servers run, with logs of numbers instead of disks. What must hold stands in `Model.check` and `Model.poll`.

`python -m tests.core.groups.model --seconds 60 [--seed 1]` runs it for long.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

from shardserver.core import metadata_events as ev
from shardserver.core.groups import coordinator as coordinating
from shardserver.core.groups.coordinator import Claim, Coordinator, FenceChange, GroupKey
from shardserver.core.groups.fences import Fences
from shardserver.core.metadata import Metadata
from shardserver.errors import BackpressureError, RejectedError

SHARDS, TIMEOUT_S = 3, 30.0
LOG_END = 40  # messages of a partition
coordinating.LOOK_AGAIN_S = 0  # time moves by steps only


class Model:
    """One group; clock and randomness are its own. members: client id -> shard of the connection."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now, self.steps = 0.0, Counter[str]()
        self.metadata = Metadata()
        ev.apply(self.metadata, ev.StreamCreated(0, "s", 1))
        ev.apply(self.metadata, ev.TopicCreated(0, 0, "t", 1, {}, [1, 2, 3], [0, 1, 2]))
        ev.apply(self.metadata, ev.GroupCreated(0, 0, 0, "g", 1))
        self.key = GroupKey(0, 0, self.topic.uid, 0)
        self.fences: list[Fences | None] = [Fences() for _ in range(SHARDS)]
        self.committed: dict[int, int] = {}  # uid -> offset
        self.members: dict[int, int] = {}
        self.told: dict[int, tuple[int, list[int]]] = {}  # what each member's last sync said
        self.generation = 0
        self.clients = 0
        # (uid, offset) -> who was given it, and in which grant of the partition (generation, or epoch of its fence).
        self.given: dict[tuple[int, int], tuple[int, int]] = {}
        self.coordinator = self.new_coordinator(1)

    @property
    def topic(self):  # type: ignore[no-untyped-def]
        return self.metadata.streams[0].topics[0]

    def new_coordinator(self, boot: int) -> Coordinator:
        made = Coordinator(lambda: self.metadata, self.change_fence, lambda: self.now, TIMEOUT_S)
        made.first_generation = boot << 32
        return made

    async def change_fence(self, shard: int, change: FenceChange) -> list[bool]:
        await asyncio.sleep(0)
        fences = self.fences[shard]
        if fences is None:
            raise BackpressureError("down")
        gone = [fences.revoke(uid, group, self.committed.get(uid), force=force) for uid, group, force in change.revoke]
        return gone + [fences.grant(uid, group, member) for uid, group, member in change.grant]

    # Steps

    async def join(self) -> None:
        alive = [shard for shard, fences in enumerate(self.fences) if fences is not None]
        if not alive:
            return
        self.clients += 1
        self.members[self.clients] = self.random.choice(alive)
        await self.coordinator.join(self.key, self.clients, self.members[self.clients])

    async def leave(self) -> None:
        if self.members:
            member = self.random.choice(list(self.members))
            del self.members[member]
            await self.coordinator.leave(self.key, member)

    async def poll(self) -> None:
        """Some member polls some partition, its own or another's."""
        if not self.members or not self.topic.partitions:
            return
        member, partition = self.random.choice(list(self.members)), self.random.choice(self.topic.partitions)
        fences = self.fences[partition.shard]
        if fences is None or not fences.may_poll(partition.uid, 0, member):
            return
        generation = self.generation_of(member)
        start = self.committed.get(partition.uid, -1) + 1
        last = min(start + self.random.randrange(1, 5), LOG_END) - 1
        for offset in range(start, last + 1):
            before = self.given.get((partition.uid, offset))
            # The same message to another member: only after a rebalance.
            assert before is None or before[0] == member or before[1] != generation, (offset, before, member)
            self.given[partition.uid, offset] = member, generation
        if last >= start:
            fences.note_delivered(partition.uid, 0, member, last)
            self.steps["messages"] += last - start + 1

    def generation_of(self, member: int) -> int:
        found = self.coordinator.groups.get(self.key)
        return found.generation if found is not None else -1

    async def commit(self) -> None:
        """A member commits what it has of a partition."""
        if not self.members or not self.topic.partitions:
            return
        member, partition = self.random.choice(list(self.members)), self.random.choice(self.topic.partitions)
        fences = self.fences[partition.shard]
        if fences is None:
            return
        try:
            fences.check_commit(partition.uid, 0, member, is_manager=False)
        except (RejectedError, BackpressureError):
            return
        mine = [offset for (uid, offset), who in self.given.items() if uid == partition.uid and who[0] == member]
        if mine:
            self.committed[partition.uid] = max(self.committed.get(partition.uid, -1), max(mine))

    async def sync(self) -> None:
        for member in self.members:
            found = self.coordinator.sync(self.key, member)
            assert found is not None
            self.told[member] = found

    async def wait(self) -> None:
        self.now += self.random.choice([0.1, 1.0, 40.0])
        await asyncio.sleep(0)

    async def add_partitions(self) -> None:
        if len(self.topic.partitions) < 8:
            uid = self.metadata.next_uid
            ev.apply(self.metadata, ev.PartitionsAdded(0, 0, 1, [uid], [self.random.randrange(SHARDS)]))
            self.coordinator.metadata_changed()

    async def remove_partitions(self) -> None:
        if len(self.topic.partitions) > 1:
            ev.apply(self.metadata, ev.PartitionsRemoved(0, 0, 1))
            self.coordinator.metadata_changed()

    async def purge(self) -> None:
        uids = [self.metadata.next_uid + number for number, _ in enumerate(self.topic.partitions)]
        ev.apply(self.metadata, ev.TopicPurged(0, 0, uids))
        self.coordinator.metadata_changed()

    async def kill_shard(self) -> None:
        """The process of a shard dies: its connections, and the grants of its partitions."""
        shard = self.random.randrange(SHARDS)
        self.fences[shard] = None
        self.members = {member: of for member, of in self.members.items() if of != shard}
        self.coordinator.shard_ended(shard)

    async def start_shard(self) -> None:
        for shard, fences in enumerate(self.fences):
            if fences is None:
                self.fences[shard] = Fences()
                self.coordinator.shard_began(shard)

    async def kill_coordinator(self) -> None:
        """Its next process knows nobody, until the shards name their members; fences elsewhere stay.

        When all had been told of the whole assignment, and nothing was under way, it stays as it was.
        """
        wanted, generation = self.wanted(), self.generation_of(0)
        told = {one: self.told[one] for one in self.members if one in self.told and self.told[one][0] == generation}
        claimed = {number: one for one, (_, numbers) in told.items() for number in numbers}
        is_known = [claimed.get(number) for number in range(len(wanted))] == wanted and self.is_settled()
        for state in self.coordinator.groups.values():
            if state.worker is not None:
                state.worker.cancel()
        self.steps["coordinators"] += 1
        self.coordinator = self.new_coordinator(0)
        self.coordinator.begin(self.steps["coordinators"] + 1 << 32, range(SHARDS))
        for shard in self.random.sample(range(SHARDS), SHARDS):
            if self.fences[shard] is None:
                self.coordinator.shard_ended(shard)
            else:
                self.coordinator.announce(shard, self.claims(shard))
        if is_known and self.members:
            self.steps["kept assignments"] += 1
            assert self.wanted() == wanted

    def wanted(self) -> list[int | None]:
        found = self.coordinator.groups.get(self.key)
        return [] if found is None else list(found.wanted)

    def claims(self, shard: int) -> list[Claim]:
        """What that shard's process says of its members."""
        mine = [member for member, of in self.members.items() if of == shard]
        return [Claim(self.key, member, *self.told.get(member, (0, []))) for member in mine]

    STEPS: tuple[tuple[int, Callable[[Model], object]], ...] = (
        (4, join), (3, leave), (30, poll), (15, commit), (4, wait), (1, add_partitions), (1, remove_partitions),
        (1, purge), (1, kill_shard), (3, start_shard), (1, kill_coordinator), (4, sync),
    )  # fmt: skip

    async def step(self) -> None:
        (chosen,) = self.random.choices([one for _, one in self.STEPS], [weight for weight, _ in self.STEPS])
        self.steps[chosen.__name__] += 1  # type: ignore[attr-defined]
        await chosen(self)  # type: ignore[misc]
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        self.check()

    # What holds

    def check(self) -> None:
        """No partition has two owners, and nobody owns one that is no member by the coordinator."""
        state = self.coordinator.groups.get(self.key)
        if state is None:
            return
        assert len(state.members) == len(self.members)
        numbers = [member.number for member in state.members.values()]
        assert len(set(numbers)) == len(numbers)
        owned = [partition for member in state.members for partition in self.coordinator.sync(self.key, member)[1]]  # type: ignore[index]
        assert len(set(owned)) == len(owned)
        shares = Counter(owner for owner in state.wanted if owner is not None)
        if state.members and len(state.wanted) == len(self.topic.partitions):
            counts = [shares[member] for member in state.members]
            assert max(counts) - min(counts) <= 1

    async def end(self) -> None:
        """With everything up and time enough, each partition is its wanted owner's."""
        await self.start_shard()
        for _ in range(200):
            self.now += TIMEOUT_S + 1
            await asyncio.sleep(0)
            if self.is_settled():
                break
        assert self.is_settled()
        for state in self.coordinator.groups.values():
            assert state.worker is None or state.worker.done()

    def is_settled(self) -> bool:
        state = self.coordinator.groups.get(self.key)
        if state is None:
            return True
        if state.worker is not None and not state.worker.done():
            return False
        if not self.members:
            return True
        return all(
            (fences := self.fences[one.shard]) is not None and fences.owner(one.uid, 0) == wanted
            for one, wanted in zip(self.topic.partitions, state.wanted, strict=True)
        )


async def live(seed: int, steps: int) -> Counter[str]:
    model = Model(seed)
    for _ in range(steps):
        await model.step()
    await model.end()
    return model.steps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    end, seed, total = time.monotonic() + asked.seconds, asked.seed, Counter[str]()
    while time.monotonic() < end:
        try:
            total += asyncio.run(live(seed, 400))
        except AssertionError:
            print(f"seed {seed} fails: python -m tests.core.groups.model --seed {seed} --seconds 0.1")
            raise
        seed += 1
    print(f"{seed - asked.seed} seeds from {asked.seed}, {sum(total.values())} steps and messages, 0 violations")
    for name, count in sorted(total.items()):
        print(f"  {name:20}{count:>8}")


if __name__ == "__main__":
    main()
