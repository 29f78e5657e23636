"""What a partition's identity file says of it: names, options, ids, owner. Format: docs/formats/identity.md."""

from __future__ import annotations

import msgspec

from shardserver.core.metadata import Partition, Stream, Topic
from shardserver.core.msgpack import decode_value
from shardserver.protocol.options import OptionValue

# A topic whose partitions were added one by one has a run for each: a bound on the size of the file.
MAX_RUNS = 64


class StreamLabel(msgspec.Struct, frozen=True):
    id: int
    name: str
    created_at: int


class TopicLabel(msgspec.Struct, frozen=True):
    """uids: (first uid, count) of its partitions in the order of their ids, MAX_RUNS at most."""

    id: int
    name: str
    created_at: int
    options: dict[str, OptionValue]
    uids: list[tuple[int, int]]

    def partition_uids(self) -> list[int]:
        """By partition id, as far as they are told."""
        return [first + number for first, count in self.uids for number in range(count)]


class PlaceLabel(msgspec.Struct, frozen=True):
    id: int
    created_at: int
    term: int
    shard: int


class PartitionLabel(msgspec.Struct, frozen=True):
    stream: StreamLabel
    topic: TopicLabel
    partition: PlaceLabel


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PartitionLabel)


def encode_label(label: PartitionLabel) -> bytes:
    return _encoder.encode(label)


def decode_label(raw: bytes) -> PartitionLabel | None:
    """None when it means nothing to this version."""
    try:
        return decode_value(_decoder, raw)
    except msgspec.DecodeError:
        return None


def label_of(stream: Stream, topic: Topic, partition: Partition) -> bytes:
    """Encoded, of the metadata as it is now."""
    return encode_label(
        PartitionLabel(
            StreamLabel(stream.id, stream.name, stream.created_at),
            TopicLabel(topic.id, topic.name, topic.created_at, topic.options, _runs(topic)),
            PlaceLabel(partition.id, partition.created_at, partition.term, partition.shard),
        )
    )


def _runs(topic: Topic) -> list[tuple[int, int]]:
    """Counted once for all partitions of the topic. uids are not used again, so three numbers tell a change."""
    present = (len(topic.partitions), topic.partitions[0].uid, topic.partitions[-1].uid)
    if topic.uid_runs is None or topic.uid_runs[0] != present:
        topic.uid_runs = present, _count_runs(topic)
    return topic.uid_runs[1]


def _count_runs(topic: Topic) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for partition in topic.partitions:
        if runs and partition.uid == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif len(runs) == MAX_RUNS:
            break
        else:
            runs.append((partition.uid, 1))
    return runs
