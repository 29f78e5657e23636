"""What clients know, and what must therefore be true: after each step, and after each recovery (storage.md 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from shardserver.storage.settings import Durability

# Messages of one client are numbered from its own multiple of this, so that their order can be seen.
CLIENT_SPAN = 1_000_000

Key = tuple[int, int]  # uid, consumer


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All of one partition that a consumer can see. numbers: of its messages, from the first offset on."""

    first_offset: int
    numbers: list[int]

    @property
    def high_watermark(self) -> int:
        return self.first_offset + len(self.numbers)


@dataclass
class Commits:
    """Of one consumer. tried: in order, None for a deletion. kept: place of the newest acknowledged one.

    cut: what recoveries may have made of those that nobody acknowledged.
    """

    tried: list[int | None] = field(default_factory=lambda: [None])
    kept: int = 0
    cut: set[int | None] = field(default_factory=set)

    @property
    def possible(self) -> set[int | None]:
        return {*self.tried[self.kept :], *self.cut}

    def end_at(self, end: int) -> None:
        """A partition came back with this end: what lies beyond it is cut to its last message (storage rule 13)."""
        last = end - 1 if end else None
        if any(one is not None and one >= end for one in self.possible):
            self.cut = {one for one in self.cut if one is None or one < end} | {last}
        acknowledged = self.tried[self.kept]
        if acknowledged is not None and acknowledged >= end:
            self.tried[self.kept] = last


@dataclass
class Floor:
    """Of a partition that may lose its end: below `synced` nothing is ever lost, below `kept` nothing by `cause`."""

    synced: int = 0
    kept: int = 0
    cause: str = "kill"


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise Violation(sentence)


class Oracle:
    def __init__(self) -> None:
        self.known: dict[int, dict[int, int]] = {}  # uid -> offset -> number: acknowledged, or polled
        self.sent: dict[int, set[int]] = {}  # uid -> numbers that were ever sent to it
        self.high_watermarks: dict[int, int] = {}
        self.cuts: dict[int, int] = {}  # uid -> the first offset that a deletion of segments may leave
        self.commits: dict[Key, Commits] = {}
        self.dead: set[int] = set()
        self.topics: set[str] = set()  # by their names, which are used once
        self.deletions_tried: set[str] = set()
        self.deleted_topics: set[str] = set()
        self.acknowledged = self.polled = self.committed = 0
        self.answered: dict[int, set[int]] = {}  # uid -> offsets of acknowledged messages
        self.floors: dict[int, Floor] = {}  # of uids that died once or were recovered, durability `fsync` apart
        self.lost: Counter[str] = Counter()  # acknowledged messages, by durability and by what took them

    # What clients do and learn

    def note_sent(self, uid: int, numbers: Iterable[int]) -> None:
        self.sent.setdefault(uid, set()).update(numbers)

    def note_seen(self, uid: int, offset: int, numbers: list[int]) -> None:
        """Acknowledged or polled: message `numbers[0]` is at `offset`, and so on."""
        known = self.known.setdefault(uid, {})
        for place, number in enumerate(numbers, offset):
            former = known.setdefault(place, number)
            require(former == number, f"partition {uid}: offset {place} was {former} and is {number}")
            require(number in self.sent.get(uid, ()), f"partition {uid}: {number} was never sent to it")

    def note_acknowledged(self, uid: int, offset: int, numbers: list[int]) -> None:
        self.acknowledged += len(numbers)
        self.answered.setdefault(uid, set()).update(range(offset, offset + len(numbers)))
        self.note_seen(uid, offset, numbers)

    def note_polled(self, uid: int, offset: int, numbers: list[int]) -> None:
        self.polled += len(numbers)
        self.note_seen(uid, offset, numbers)

    def learned_end(self, uid: int) -> int:
        """Behind the message of a partition that somebody has learned of last."""
        return next(reversed(self.known.get(uid, {})), -1) + 1

    def note_tried(self, uid: int, consumer: int, offset: int | None) -> int:
        """A commit or (None) a deletion begins; gives its place."""
        commits = self.commits.setdefault((uid, consumer), Commits())
        commits.tried.append(offset)
        return len(commits.tried) - 1

    def note_committed(self, uid: int, consumer: int, place: int) -> None:
        self.committed += 1
        commits = self.commits[uid, consumer]
        if place > commits.kept:
            commits.kept, commits.cut = place, set()

    def note_cut(self, uid: int, first_offset: int) -> None:
        self.cuts[uid] = max(first_offset, self.cuts.get(uid, 0))

    def note_dead(self, uids: Iterable[int]) -> None:
        """Their deletion or purge was acknowledged."""
        self.dead |= set(uids)

    def note_created(self, name: str) -> None:
        """Answered; whoever saw the topic in a replica before may have asked for its deletion already."""
        if name not in self.deletions_tried:
            self.topics.add(name)

    def note_deletion_tried(self, name: str) -> None:
        self.deletions_tried.add(name)
        self.topics.discard(name)

    # What crashes may take (docs/durability.md, "What an acknowledgement means")

    def note_killed(self, uid: int, durability: Durability, *, synced: int, high_watermark: int) -> None:
        """The process that serves it dies. synced: the end of what its log knows to be on the medium."""
        if durability is not Durability.FSYNC:
            floor = self.floors.setdefault(uid, Floor())
            floor.synced = max(floor.synced, synced)
            floor.kept = high_watermark if durability is Durability.WRITE else floor.synced

    def note_power_loss(self) -> None:
        """All processes have died with it; note_killed was told of each."""
        for floor in self.floors.values():
            floor.kept, floor.cause = floor.synced, "power loss"

    def note_recovered(self, uid: int, durability: Durability, end: int) -> None:
        """A recovery found it up to `end`, and has synced that: whatever lay behind is gone for good."""
        if durability is Durability.FSYNC:
            return
        floor = self.floors.setdefault(uid, Floor())
        require(end >= floor.kept, f"partition {uid}, {durability}: ends at {end}, must have kept {floor.kept}")
        self.floors[uid] = Floor(end, end)
        self.high_watermarks[uid] = end
        known, answered = self.known.get(uid, {}), self.answered.get(uid, set())
        gone = {offset for offset in answered if offset >= end}
        self.lost[f"acknowledged and lost: {durability}, {floor.cause}"] += len(gone)
        answered -= gone
        for offset in [one for one in known if one >= end]:
            del known[offset]
        for commits in [self.commits[key] for key in self.commits if key[0] == uid]:
            commits.end_at(end)

    # What must be true

    def check_high_watermark(self, uid: int, high_watermark: int) -> None:
        former = self.high_watermarks.get(uid, 0)
        require(high_watermark >= former, f"partition {uid}: high watermark {high_watermark}, was {former}")
        sent = len(self.sent.get(uid, ()))
        require(high_watermark <= sent, f"partition {uid}: high watermark {high_watermark}, {sent} were sent")
        self.high_watermarks[uid] = high_watermark

    def known_of(self, uid: int) -> dict[int, int]:
        """As it is now: what is read afterwards must hold it."""
        return dict(self.known.get(uid, ()))

    def check_contents(self, uid: int, known: dict[int, int], found: Contents) -> None:
        """known: known_of before the partition was read."""
        self.check_high_watermark(uid, found.high_watermark)
        cut = self.cuts.get(uid, 0)
        require(found.first_offset <= cut, f"partition {uid}: begins at {found.first_offset}, cut at {cut}")
        for offset, number in known.items():
            if offset >= found.first_offset:
                there = found.numbers[offset - found.first_offset : offset - found.first_offset + 1]
                require(there == [number], f"partition {uid}: {number} is not at {offset}, but {there}")
        self._check_order(uid, found.numbers)

    def _check_order(self, uid: int, numbers: list[int]) -> None:
        newest: dict[int, int] = {}
        for number in numbers:
            client = number // CLIENT_SPAN
            require(
                number > newest.get(client, -1),
                f"partition {uid}: {number} behind {newest.get(client)}: doubled or out of order",
            )
            newest[client] = number
        strangers = set(numbers) - self.sent.get(uid, set())
        require(not strangers, f"partition {uid}: {sorted(strangers)} were sent to others")

    def check_offset(self, uid: int, consumer: int, found: int | None, high_watermark: int) -> None:
        commits = self.commits[uid, consumer]
        require(
            found in commits.possible,
            f"partition {uid}, consumer {consumer}: {found}, tried {commits.tried}, acknowledged {commits.kept}, "
            f"cut {commits.cut}",
        )
        require(found is None or found < high_watermark, f"partition {uid}: committed {found}, end {high_watermark}")

    def consumers_of(self, uid: int) -> list[int]:
        return sorted(consumer for one, consumer in self.commits if one == uid)

    def check_live(self, uids: Iterable[int]) -> None:
        revived = self.dead & set(uids)
        require(not revived, f"partitions {sorted(revived)} were deleted and are there")

    def check_topics(self, names: set[str]) -> None:
        require(self.topics <= names, f"topics {sorted(self.topics - names)} are gone")
        revived = self.deleted_topics & names
        require(not revived, f"topics {sorted(revived)} were deleted and are there")
