"""How the log of a partition behaves: its topic's options, and the server's defaults."""

from __future__ import annotations

from functools import partial

from shardserver.core.metadata import Partition, Stream, Topic
from shardserver.core.partition_label import label_of
from shardserver.protocol.options import PLAIN_DEFAULTS, TopicDefaults, limit_in_force
from shardserver.storage.settings import Durability, PartitionIdentity

_STRICTNESS = {Durability.MEMORY: 0, Durability.WRITE: 1, Durability.FSYNC: 2}
_NAMED = {"persisted": Durability.FSYNC, "write": Durability.WRITE, "memory": Durability.MEMORY}


def durability_of(topic: Topic, option: str, default: Durability) -> Durability:
    """`replicated` means the server's default; of several wishes the strictest wins (docs/durability.md)."""
    wishes = [_NAMED.get(str(topic.options.get(option, "replicated")), default)]
    if topic.options.get("enforce_fsync") is True:
        wishes.append(Durability.FSYNC)
    return max(wishes, key=_STRICTNESS.__getitem__)


def identity_of(
    stream: Stream,
    topic: Topic,
    partition: Partition,
    default: Durability,
    topic_defaults: TopicDefaults = PLAIN_DEFAULTS,
) -> PartitionIdentity:
    """How the log of a partition behaves, as its topic's options say."""
    limit = limit_in_force(topic.options, "max_topic_size", topic_defaults)
    segment_bytes = int(topic.options.get("segment_size", 1 << 30))
    # The limit may be less than a segment for each partition: one is kept then.
    max_bytes = None if limit is None else max(limit // max(1, len(topic.partitions)), segment_bytes)
    return PartitionIdentity(
        uid=partition.uid,
        term=partition.term,
        partition_id=partition.id,
        segment_bytes=segment_bytes,
        durability=durability_of(topic, "durability", default),
        offset_durability=durability_of(topic, "consumer_offset_durability", default),
        max_bytes=max_bytes,
        expiry_us=limit_in_force(topic.options, "message_expiry", topic_defaults),
        save_messages=int(topic.options.get("messages_required_to_save", 0)),
        save_bytes=int(topic.options.get("size_of_messages_required_to_save", 0)),
        label=partial(label_of, stream, topic, partition),
    )
