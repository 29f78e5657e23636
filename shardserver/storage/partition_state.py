"""The state of one partition's log, and what can be asked of it without the disk. Its offsets: append_log.pyx."""

from __future__ import annotations

from shardserver.storage import journal_format as fmt
from shardserver.storage.append_log import AppendLog
from shardserver.storage.resources import LogResources
from shardserver.storage.segment import Segment
from shardserver.storage.settings import PartitionIdentity
from shardserver.storage.turn import Turn


class PartitionState(AppendLog):
    """Changed by PartitionLog and by recovery, read by PartitionReader."""

    def __init__(self, resources: LogResources, directory: str, identity: PartitionIdentity, turn: Turn) -> None:
        super().__init__(resources, identity, turn, turn.tails)
        self.resources = resources
        self.directory = directory
        self.directory_exists = False
        self.segments: list[Segment] = []
        self.is_closed = False
        self.closed_hint: fmt.Hint | None = None  # of its active segment, while it is closed
        self.answered_offset = 0  # of the newest hint that recovery found: all below was answered
        self.recovered_end = 0  # next offset at the end of recovery

    @property
    def has_unknown_answers(self) -> bool:
        """A former process may have stored batches without answering them, and they may be asked for again."""
        return not self.resources.hooks.answers_are_known and self.answered_offset < self.recovered_end

    @property
    def first_offset(self) -> int:
        """The oldest kept offset; equals high_watermark when the partition is empty."""
        return self.segments[0].base_offset if self.segments else 0

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
        return self.segments_bytes + self.tail.bytes_from(self.flushed_end)

    @property
    def segments_bytes(self) -> int:
        return sum(segment.data_bytes for segment in self.segments)

    def end_of(self, segment: Segment) -> int:
        """The offset behind a segment's last message; its base offset when it was deleted meanwhile."""
        if segment not in self.segments:
            return segment.base_offset
        place = self.segments.index(segment)
        return self.segments[place + 1].base_offset if place + 1 < len(self.segments) else self.flushed_end

    def hint(self) -> fmt.Hint | None:
        """What the journal may say of the active segment; None while there is no segment."""
        if self.closed is not None:
            return self.closed_hint
        if not self.segments:
            return None
        active = self.segments[-1]
        if self.flushed_end < active.base_offset:
            return None
        answered = self.answered_offset if self.has_unknown_answers else self.flushed_end
        return fmt.Hint(active.base_offset, active.end, self.flushed_end, self.last_timestamp, answered)

    def encode_hint(self) -> bytes | None:
        """As hint(), kept until the next run or segment: of many partitions few change between two checkpoints."""
        hint = self.hint()
        raw = None if hint is None else hint.encode()
        if self.closed is None and not self.has_unknown_answers:
            self.encoded_hint = raw
        return raw

    def oldest_unflushed_sequence(self) -> int:
        """The journal file with the oldest record that is in no segment yet; 0 when there is none."""
        if self.flushed_end >= self.journaled_end:
            return 0
        oldest = self.tail.at(self.flushed_end)
        return oldest.sequence if oldest is not None else 0
