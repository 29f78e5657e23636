"""Metadata put together again: the log up to its damage, then what the partitions' own directories and journals say.

Where the log is whole it holds, and only partitions with a uid that it never gave out are added. Where it is damaged,
an identity file is newer than it, or as new. A partition whose names nobody knows is brought under the stream LOST, so
that its messages can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardserver.admin.metadata_sources import Sources
from shardserver.core import metadata as md
from shardserver.core.metadata import Metadata, Partition, Stream, Topic
from shardserver.core.partition_label import PartitionLabel, PlaceLabel, StreamLabel, TopicLabel
from shardserver.protocol.options import OptionValue

LOST = "lost+found"
# The log may have lost so many starts of shard processes: sessions of clients must not come again.
LOST_BOOTS = 1 << 16


@dataclass(slots=True)
class Rebuild:
    """`run` gives the metadata; `said` is a sentence for each thing that an operator should know."""

    sources: Sources
    said: list[str] = field(default_factory=list)
    _known: int = 0  # uids below were given out by the log that is left: they live there, or are dead
    _live: dict[int, Partition] = field(default_factory=dict)

    @property
    def metadata(self) -> Metadata:
        return self.sources.snapshot.metadata

    def run(self) -> Metadata:
        metadata = self.metadata
        self._known = metadata.next_uid
        self._live = {one.uid: one for _, one in metadata.live_partitions()}
        for uid, label in self.sources.labels.items():
            self._take_label(uid, label)
        for uid in sorted({*self.sources.bare, *self.sources.mentions}):
            self._take_unnamed(uid)
        self._take_owners()
        metadata.next_uid = max(metadata.next_uid, self.sources.newest_uid + 1)
        if not self.sources.is_whole:
            metadata.boot_number += LOST_BOOTS
        self._add_root()
        metadata.__post_init__()  # names and counts anew
        return metadata

    # What identity files say

    def _take_label(self, uid: int, label: PartitionLabel) -> None:
        if uid < self._known and uid not in self._live:
            self.said.append(f"partition {uid} was deleted or purged: its directory is left to the next start")
            return
        if uid < self._known and self.sources.is_whole:
            return
        topic = self._topic_of(self._stream_of(label.stream), label.topic)
        self._add_siblings(topic, label.topic)
        self._close_gap(topic, label.partition.id)
        self._place(topic, uid, label.partition)

    def _stream_of(self, label: StreamLabel) -> Stream:
        streams = self.metadata.streams
        found = streams.get(label.id)
        if found is not None and found.created_at == label.created_at:
            found.name = _free_name(label.name, streams, found.id)
            return found
        number = label.id if found is None else max(streams) + 1
        made = streams[number] = Stream(number, _free_name(label.name, streams, number), label.created_at)
        return made

    def _topic_of(self, stream: Stream, label: TopicLabel) -> Topic:
        found = stream.topics.get(label.id)
        if found is not None and found.created_at == label.created_at:
            found.name = _free_name(label.name, stream.topics, found.id)
            found.options = found.options | label.options
            return found
        number = label.id if found is None else max(stream.topics) + 1
        name = _free_name(label.name, stream.topics, number)
        made = stream.topics[number] = Topic(number, name, label.created_at, dict(label.options))
        return made

    def _add_siblings(self, topic: Topic, label: TopicLabel) -> None:
        """Those without a directory, too: they are empty, or stand in a journal only."""
        for number, uid in enumerate(label.partition_uids()):
            if uid in self._live:
                continue
            if uid < self._known:
                return  # the log says that it is dead: this file is older
            self._place(topic, uid, PlaceLabel(number, topic.created_at, 1, 0))

    def _close_gap(self, topic: Topic, up_to: int) -> None:
        """Ids have no gaps: what the file has left out gets a uid that nobody has."""
        while len(topic.partitions) < up_to:
            uid = max(self.metadata.next_uid, self.sources.newest_uid + 1)
            self.metadata.next_uid = uid + 1
            self._place(topic, uid, PlaceLabel(len(topic.partitions), topic.created_at, 1, 0))
            self.said.append(f"partition {len(topic.partitions) - 1} of topic {topic.name!r} is new and empty")

    def _place(self, topic: Topic, uid: int, place: PlaceLabel) -> None:
        """The greater uid has the place: a purge gives new ones, and the files of the old ones may still be there."""
        there = topic.partitions[place.id] if place.id < len(topic.partitions) else None
        if there is not None and there.uid > uid:
            self.said.append(f"partition {uid} gives way to {there.uid}, which has its place after a purge")
        elif there is not None and there.uid == uid:
            if place.term >= there.term:
                there.term, there.shard = place.term, place.shard
        else:
            made = Partition(place.id, uid, place.created_at, place.term, place.shard)
            if there is not None:
                self._live.pop(there.uid, None)
                self.metadata.dying[there.uid] = there.shard
            topic.partitions[place.id : place.id + 1] = [made]
            self._live[uid] = made

    # What has no name

    def _take_unnamed(self, uid: int) -> None:
        if uid in self._live or uid in self.metadata.dying:
            return
        if uid < self._known:
            if uid in self.sources.bare:
                self.said.append(
                    f"partition {uid} is not in the metadata and has no identity: the next start sets it aside"
                )
            return
        mention = self.sources.mentions.get(uid)
        if uid not in self.sources.bare and (mention is None or not mention.batches):
            return
        stream = next((one for one in self.metadata.streams.values() if one.name == LOST), None)
        if stream is None:
            number = max(self.metadata.streams, default=0) + 1
            stream = self.metadata.streams[number] = Stream(number, LOST, 0)
        number = max(stream.topics, default=0) + 1
        options: dict[str, OptionValue] = {}
        topic = stream.topics[number] = Topic(number, f"{uid:016x}", 0, options)
        topic.partitions.append(Partition(0, uid, 0))
        self._live[uid] = topic.partitions[0]
        self.said.append(f"partition {uid} has no identity: it is topic {uid:016x} of stream {LOST} now")

    def _take_owners(self) -> None:
        """A record counts by term and shard: those of the newest that were acknowledged."""
        for uid, partition in self._live.items():
            mention = self.sources.mentions.get(uid)
            if mention is None or (self.sources.is_whole and uid < self._known):
                continue
            # The higher term of a move that was given up carries no messages.
            is_told = uid in self.sources.labels
            if mention.term >= partition.term + is_told and (mention.batches or not is_told):
                partition.term, partition.shard = mention.term, mention.shard

    def _add_root(self) -> None:
        if md.ROOT_ID not in self.metadata.users:
            self.metadata.users[md.ROOT_ID] = md.User(md.ROOT_ID, "iggy", 0, "")
            self.said.append("no user was left: set a password with `shardserver reset-root-password`")


def _free_name(name: str, taken: Mapping[int, Stream | Topic], number: int) -> str:
    names = {one.name for key, one in taken.items() if key != number}
    return name if name not in names else f"{name[:200]}~{number}"
