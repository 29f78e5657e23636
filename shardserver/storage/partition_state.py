"""The state of one partition's log, and what can be asked of it without the disk.

Offsets in rising order, each the first one that is *not yet* what its name says:

    flushed_end <= durable_end <= next_offset      journaled_end: given to a journal write or a run
    high_watermark: what polls see; it follows durable_end, written_end or next_offset as the topic's
    durability says (docs/durability.md)
"""

from __future__ import annotations

from shardserver.errors import NotOwnerError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.resources import LogResources
from shardserver.storage.segment import Segment
from shardserver.storage.settings import Durability, PartitionIdentity
from shardserver.storage.tail import Tail


class PartitionState:
    """Changed by PartitionLog and by recovery, read by PartitionReader."""

    def __init__(self, resources: LogResources, directory: str, identity: PartitionIdentity) -> None:
        self.resources = resources
        self.identity = identity
        self.directory = directory
        self.directory_exists = False
        self.tail = Tail()
        self.segments: list[Segment] = []
        self.next_offset = 0
        self.journaled_end = 0
        self.durable_end = 0
        self.written_end = 0
        self.flushed_end = 0
        self.last_timestamp = 0
        self.is_closed = False
        self.fenced: StorageError | None = None
        self.set_aside: StorageError | None = None  # recovery could not bring back all: reads at the end say so
        self.refusal: NotOwnerError | None = None  # it is leaving or arriving: no appends, no changes of offsets
        self.closed: NotOwnerError | None = None  # another shard may have its files: no reads either
        self.closed_hint: fmt.Hint | None = None  # of its active segment, while it is closed
        self.answered_offset = 0  # of the newest hint that recovery found: all below was answered
        self.recovered_end = 0  # next offset at the end of recovery

    @property
    def uid(self) -> int:
        return self.identity.uid

    @property
    def has_unknown_answers(self) -> bool:
        """A former process may have stored batches without answering them, and they may be asked for again."""
        return not self.resources.hooks.answers_are_known and self.answered_offset < self.recovered_end

    @property
    def first_offset(self) -> int:
        """The oldest kept offset; equals high_watermark when the partition is empty."""
        return self.segments[0].base_offset if self.segments else 0

    @property
    def high_watermark(self) -> int:
        durability = self.identity.durability
        if durability is Durability.FSYNC:
            return self.durable_end
        return self.written_end if durability is Durability.WRITE else self.next_offset

    @property
    def is_empty(self) -> bool:
        return self.high_watermark <= self.first_offset

    @property
    def current_offset(self) -> int:
        return max(0, self.high_watermark - 1)

    @property
    def message_count(self) -> int:
        return max(0, self.high_watermark - self.first_offset)

    @property
    def segments_count(self) -> int:
        return max(1, len(self.segments))

    @property
    def size_bytes(self) -> int:
        return self.segments_bytes + sum(len(entry.data) for entry in self.tail.from_offset(self.flushed_end))

    @property
    def segments_bytes(self) -> int:
        return sum(segment.data_bytes for segment in self.segments)

    def end_of(self, segment: Segment) -> int:
        """The offset behind a segment's last message; its base offset when it was deleted meanwhile."""
        if segment not in self.segments:
            return segment.base_offset
        place = self.segments.index(segment)
        return self.segments[place + 1].base_offset if place + 1 < len(self.segments) else self.flushed_end
