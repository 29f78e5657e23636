"""Who is in a group and which member has which partition: on one shard a group, in memory only.

A change of members or partitions makes a new assignment, and a worker brings the fences of the partitions' shards to
it: first revoke, then grant. What a revoked member has in hand and has not committed keeps its partition back until it
commits, leaves, or the time is over. A new process starts without members: the shards of their connections name them
and what they hold, and nothing is assigned or told before all have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from shardserver.core.groups.assignment import Owners, assign
from shardserver.core.metadata import Metadata, Topic
from shardserver.errors import BackpressureError, Code, NotCommittedError, RejectedError, ShardServerError

log = logging.getLogger(__name__)

# Between two looks at a partition that waits for a commit, or for its shard.
LOOK_AGAIN_S = 0.1


class GroupKey(msgspec.Struct, frozen=True, array_like=True):
    """Ids find the topic, its uid tells whether it is still that one."""

    stream_id: int
    topic_id: int
    topic_uid: int
    group_id: int


class FenceChange(msgspec.Struct, frozen=True, array_like=True):
    """For the shard of the partitions. revoke: (uid, group, force). grant: (uid, group, member)."""

    revoke: list[tuple[int, int, bool]]
    grant: list[tuple[int, int, int]]


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A member as its shard names it. partitions: that it was last told to have, in that generation."""

    key: GroupKey
    member: int
    generation: int
    partitions: list[int]


class FencePort(Protocol):
    def __call__(self, shard: int, change: FenceChange) -> Awaitable[list[bool]]:
        """Of each revocation: whether the grant is gone; of each grant: whether another member had it.

        Raises BackpressureError, NotCommittedError: the shard is down.
        """
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """number: as clients see it. shard: of its connection."""

    number: int
    shard: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A grant that is in force: of this partition, on that shard."""

    uid: int
    shard: int
    member: int


@dataclass
class GroupState:
    """members: by the sessions of their connections, oldest first. granted: by partition id."""

    key: GroupKey
    generation: int
    members: dict[int, Member] = field(default_factory=dict)
    wanted: Owners = field(default_factory=list)
    granted: list[Placed | None] = field(default_factory=list)
    deadlines: dict[int, float] = field(default_factory=dict)
    is_dirty: bool = False
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None


class Coordinator:
    """Owned by one shard's loop.

    first_generation: above all that a former process has given. timeout_s: how long a partition waits for a commit.
    """

    def __init__(
        self,
        metadata: Callable[[], Metadata],
        fence: FencePort,
        clock: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._metadata, self._fence, self._clock, self.timeout_s = metadata, fence, clock, timeout_s
        self.first_generation = 1
        self.groups: dict[GroupKey, GroupState] = {}
        self._awaited: set[int] = set()
        self._claims: list[Claim] = []
        self._gathered = asyncio.Event()
        self._gathered.set()

    # A process begins

    def begin(self, first_generation: int, shards: Iterable[int]) -> None:
        """shards: that are to name their members, each by `announce`, before anything is assigned."""
        self.first_generation, self._awaited = first_generation, set(shards)
        if self._awaited:
            self._gathered.clear()

    async def until_gathered(self) -> None:
        await self._gathered.wait()

    def announce(self, shard: int, claims: list[Claim]) -> None:
        """Members of that shard's connections are these and no others: a former answer of its may have been late."""
        named = {(claim.key, claim.member) for claim in claims}
        changed = self._forget(lambda key, client, member: member.shard == shard and (key, client) not in named)
        for claim in claims:
            if self.exists(claim.key):
                state = self._state(claim.key)
                if claim.member not in state.members:
                    self._add(state, claim.member, shard)
                    changed[state.key] = state
        if not self._gathered.is_set():
            self._claims += claims
        for state in changed.values():
            self._rebalance(state)
        self._no_longer_await(shard)

    def _forget(self, is_gone: Callable[[GroupKey, int, Member], bool]) -> dict[GroupKey, GroupState]:
        """Gives the groups that have lost a member."""
        changed = {}
        for key, state in self.groups.items():
            gone = [client for client, member in state.members.items() if is_gone(key, client, member)]
            for client in gone:
                del state.members[client]
            if gone:
                changed[key] = state
        return changed

    def _no_longer_await(self, shard: int) -> None:
        if shard in self._awaited:
            self._awaited.discard(shard)
            if not self._awaited:
                self.end_gathering()

    def end_gathering(self) -> None:
        """Whoever is not named by now joins anew. Again: nothing."""
        if self._gathered.is_set():
            return
        self._awaited.clear()
        self._gathered.set()
        claims, self._claims = self._claims, []
        for claim in sorted(claims, key=lambda claim: claim.generation):  # who was told last is right
            state = self.groups.get(claim.key)
            if state is not None and claim.member in state.members:
                self._take_claim(state, claim)
        for state in self.groups.values():
            self._rebalance(state)

    def _take_claim(self, state: GroupState, claim: Claim) -> None:
        """As if it was waited for: the fence is told again that it stays, or is asked what the member has in hand."""
        topic = self._topic(state.key)
        assert topic is not None
        _fit(state, [(one.uid, one.shard) for one in topic.partitions])
        for number in claim.partitions:
            if number < len(topic.partitions):
                one = topic.partitions[number]
                state.wanted[number] = claim.member
                state.granted[number] = Placed(one.uid, one.shard, claim.member)
                state.deadlines[number] = self._clock() + self.timeout_s

    # What clients ask

    async def join(self, key: GroupKey, member: int, shard: int) -> None:
        """Done when those partitions are granted that wait for nobody's commit. Raises RejectedError(5000)."""
        state = self._state(key)
        known = state.members.get(member)
        if known is None:
            self._add(state, member, shard)
            self._rebalance(state)
        elif known.shard != shard:
            state.members[member] = Member(known.number, shard)
        await self._settled(state)

    def _add(self, state: GroupState, member: int, shard: int) -> None:
        state.members[member] = Member(_lowest_free({one.number for one in state.members.values()}), shard)

    async def leave(self, key: GroupKey, member: int) -> None:
        """Raises RejectedError 5000, 5006."""
        state = self._state(key)
        if state.members.pop(member, None) is None:
            raise RejectedError(Code.GROUP_MEMBER_NOT_FOUND, f"session {member}")
        self._rebalance(state)
        await self._settled(state)

    async def until_granted(self, key: GroupKey, member: int) -> None:
        """For one pass at most, when the member is to get a partition that no other has."""
        state = self.groups.get(key)
        if state is not None and any(self._is_due(state, number, member) for number in range(len(state.wanted))):
            await self._settled(state)

    def _is_due(self, state: GroupState, number: int, member: int) -> bool:
        if state.wanted[number] != member:
            return False
        placed = state.granted[number] if number < len(state.granted) else None
        return placed is None or (placed.member == member and number in state.deadlines)

    def sync(self, key: GroupKey, member: int) -> tuple[int, list[int]] | None:
        """(generation, partitions it may poll now). None: it is no member."""
        state = self.groups.get(key)
        if state is None or member not in state.members:
            return None
        return state.generation, self._partitions_of(state, member)

    def members(self, key: GroupKey) -> list[tuple[int, list[int]]]:
        """[(number, partitions)], by number."""
        state = self.groups.get(key)
        if state is None:
            return []
        rows = [(member.number, self._partitions_of(state, client)) for client, member in state.members.items()]
        return sorted(rows)

    def owners(self, key: GroupKey) -> list[int | None]:
        """Of each partition, by id: the number of the member that may poll it."""
        state = self.groups.get(key)
        if state is None:
            return []
        found = [one and state.members.get(one.member) for one in state.granted]
        return [member.number if member else None for member in found]

    def _partitions_of(self, state: GroupState, member: int) -> list[int]:
        return [
            partition
            for partition, placed in enumerate(state.granted)
            if placed is not None and placed.member == member and partition not in state.deadlines
        ]

    def exists(self, key: GroupKey) -> bool:
        topic = self._topic(key)
        return topic is not None and key.group_id in topic.groups

    def _state(self, key: GroupKey) -> GroupState:
        if not self.exists(key):
            raise RejectedError(Code.GROUP_NOT_FOUND, f"group {key.group_id}")
        found = self.groups.get(key)
        if found is None:
            found = self.groups[key] = GroupState(key, self.first_generation)
        return found

    def _topic(self, key: GroupKey) -> Topic | None:
        stream = self._metadata().streams.get(key.stream_id)
        topic = stream.topics.get(key.topic_id) if stream else None
        return topic if topic is not None and topic.uid == key.topic_uid else None

    # What happens around it

    def shard_ended(self, shard: int) -> None:
        """Its connections are gone, and with them their memberships."""
        for state in self._forget(lambda key, client, member: member.shard == shard).values():
            self._rebalance(state)
        self._no_longer_await(shard)

    def shard_began(self, shard: int) -> None:
        """Its process has no grants."""
        for state in self.groups.values():
            lost = [number for number, placed in enumerate(state.granted) if placed and placed.shard == shard]
            for number in lost:
                state.granted[number] = None
                _end_wait(state, number)
            if lost:
                self._work(state)

    def metadata_changed(self, concerns: Callable[[GroupKey], bool] = lambda key: True) -> None:
        """Topics, partitions or groups that these keys name may be others now."""
        for state in [one for key, one in self.groups.items() if concerns(key)]:
            topic = self._topic(state.key)
            if topic is None or state.key.group_id not in topic.groups:
                self._drop(state)
            elif len(state.wanted) != len(topic.partitions):
                self._rebalance(state)
            elif state.worker is not None and not state.worker.done():
                state.is_dirty = True  # what it asks for now may be elsewhere when the answer comes
            elif any(placed and not _is_at(topic, number, placed) for number, placed in enumerate(state.granted)):
                self._work(state)

    def _drop(self, state: GroupState) -> None:
        del self.groups[state.key]
        if state.worker is not None:
            state.worker.cancel()
        for waiter in state.waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Assignments

    def _rebalance(self, state: GroupState) -> None:
        """Not before all members are known."""
        if not self._gathered.is_set():
            return
        topic = self._topic(state.key)
        assert topic is not None
        state.wanted = assign(list(state.members), len(topic.partitions), state.wanted)
        state.generation += 1
        self._work(state)

    def _work(self, state: GroupState) -> None:
        state.is_dirty = True
        if state.worker is None or state.worker.done():
            state.worker = asyncio.get_running_loop().create_task(self._bring_about(state))

    async def _settled(self, state: GroupState) -> None:
        """Until a pass that began from now on has ended."""
        if state.worker is None or state.worker.done():
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiters.append(done)
        await done

    async def _bring_about(self, state: GroupState) -> None:
        """Until what is granted is what is wanted."""
        waits = True
        while waits or state.is_dirty:
            state.is_dirty = False
            waiters, state.waiters = state.waiters, []
            try:
                waits = await self._pass(state)
            except ShardServerError as error:
                log.warning("rebalance_put_off", extra={"fields": {"group": state.key.group_id, "error": str(error)}})
                waits = True
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            if waits and not state.is_dirty:
                await asyncio.sleep(LOOK_AGAIN_S)
        for waiter in state.waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _pass(self, state: GroupState) -> bool:
        """Revoke, then grant. True: something waits, for a commit or for a shard."""
        topic = self._topic(state.key)
        if topic is None:
            return False
        places = [(one.uid, one.shard) for one in topic.partitions]
        _fit(state, places)
        waits = await self._revoke_all(state, places)
        return await self._grant_all(state, places) or waits

    async def _revoke_all(self, state: GroupState, places: Sequence[tuple[int, int]]) -> bool:
        """From members that are to have them no more."""
        by_shard: dict[int, list[int]] = {}
        for number, placed in enumerate(state.granted):
            if placed is not None and placed.member != state.wanted[number]:
                by_shard.setdefault(placed.shard, []).append(number)
        waits = False
        for shard, numbers in by_shard.items():
            rows = [(places[number][0], state.key.group_id, self._is_over(state, number)) for number in numbers]
            try:
                gone = await self._fence(shard, FenceChange(rows, []))
            except (BackpressureError, NotCommittedError):  # its next process has no grants
                waits = True
                continue
            for number, is_gone in zip(numbers, gone, strict=True):
                waits = self._note_revoked(state, number, is_gone) or waits
        return waits

    def _is_over(self, state: GroupState, number: int) -> bool:
        """Waiting for what the member has in hand: it is gone, or its time is over."""
        placed = state.granted[number]
        return (placed is not None and placed.member not in state.members) or (
            number in state.deadlines and self._clock() >= state.deadlines[number]
        )

    def _note_revoked(self, state: GroupState, number: int, is_gone: bool) -> bool:
        """True: it is still waited for."""
        if number >= len(state.granted):  # fewer partitions meanwhile
            return False
        if is_gone:
            _end_wait(state, number)
            state.granted[number] = None
            return False
        state.deadlines.setdefault(number, self._clock() + self.timeout_s)
        return True

    async def _grant_all(self, state: GroupState, places: Sequence[tuple[int, int]]) -> bool:
        by_shard: dict[int, list[tuple[int, Placed]]] = {}
        for number, member in enumerate(state.wanted[: len(places)]):
            placed = state.granted[number]
            # Also one that was to lose it and keeps it after all.
            if member is not None and (placed is None or (placed.member == member and number in state.deadlines)):
                uid, shard = places[number]
                by_shard.setdefault(shard, []).append((number, Placed(uid, shard, member)))
        waits = False
        for shard, rows in by_shard.items():
            change = FenceChange([], [(placed.uid, state.key.group_id, placed.member) for _, placed in rows])
            try:
                taken = await self._fence(shard, change)
            except (BackpressureError, NotCommittedError):
                waits = True
                continue
            state.generation += any(taken)  # a former process gave it to somebody whom nobody has named
            for number, placed in rows:
                if number < len(state.granted):
                    state.granted[number] = placed
                    state.deadlines.pop(number, None)
        return waits


def _fit(state: GroupState, places: Sequence[tuple[int, int]]) -> None:
    """As many entries as there are partitions; a grant of one that is elsewhere now, or was purged, counts no more."""
    state.wanted = (state.wanted + [None] * len(places))[: len(places)]
    state.granted = [
        placed if placed is not None and (placed.uid, placed.shard) == place else None
        for placed, place in zip(state.granted + [None] * len(places), places, strict=False)
    ]
    for number in [one for one in state.deadlines if one >= len(places) or state.granted[one] is None]:
        _end_wait(state, number)


def _end_wait(state: GroupState, number: int) -> None:
    """Nobody's commit is waited for any more, be it that the fence is gone with its shard.

    Who gets the partition now has to see that there is something new, and gets again what its former member had in
    hand: in a later generation.
    """
    if state.deadlines.pop(number, None) is not None:
        state.generation += 1


def _is_at(topic: Topic, number: int, placed: Placed) -> bool:
    if number >= len(topic.partitions):
        return False
    partition = topic.partitions[number]
    return (partition.uid, partition.shard) == (placed.uid, placed.shard)


def _lowest_free(used: set[int]) -> int:
    number = 0
    while number in used:
        number += 1
    return number
