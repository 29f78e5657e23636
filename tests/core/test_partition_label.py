"""What a partition's identity file tells of its siblings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.partition_label import MAX_RUNS, decode_label, label_of

CHANGES = st.lists(st.tuples(st.sampled_from(["add", "remove", "purge"]), st.integers(1, 5)), max_size=12)


def told(metadata: md.Metadata) -> list[int]:
    stream = metadata.streams[1]
    topic = stream.topics[1]
    label = decode_label(label_of(stream, topic, topic.partitions[0]))
    assert label is not None
    return label.topic.partition_uids()


@given(CHANGES)
def test_the_uids_of_all_partitions_are_told_after_any_changes(changes: list[tuple[str, int]]) -> None:
    metadata = md.Metadata()
    ev.apply(metadata, ev.StreamCreated(1, "s", 1))
    ev.apply(metadata, ev.TopicCreated(1, 1, "t", 1, {}, [1, 2, 3], [0, 0, 0]))
    topic = metadata.streams[1].topics[1]
    for change, count in changes:
        first = metadata.next_uid + count  # other topics take some
        if change == "add":
            ev.apply(metadata, ev.PartitionsAdded(1, 1, 2, list(range(first, first + count)), [0] * count))
        elif change == "remove" and count < len(topic.partitions):
            ev.apply(metadata, ev.PartitionsRemoved(1, 1, count))
        elif change == "purge":
            ev.apply(metadata, ev.TopicPurged(1, 1, list(range(first, first + len(topic.partitions)))))
        assert told(metadata) == [one.uid for one in topic.partitions]


def test_a_topic_of_many_runs_tells_the_first_ones() -> None:
    metadata = md.Metadata()
    uids = list(range(1, 4 * MAX_RUNS, 2))
    ev.apply(metadata, ev.StreamCreated(1, "s", 1))
    ev.apply(metadata, ev.TopicCreated(1, 1, "t", 1, {}, uids, [0] * len(uids)))
    assert told(metadata) == uids[:MAX_RUNS]
