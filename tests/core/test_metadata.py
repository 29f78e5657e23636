"""The replica: what each event does, and that what is derived always equals what it is derived from."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shardserver.core import metadata_commands
from shardserver.core import metadata_events as ev
from shardserver.core.metadata import Metadata
from shardserver.core.metadata_events import PartitionMove
from shardserver.core.metadata_snapshot import Snapshot, decode_snapshot, encode_snapshot
from shardserver.core.placement import Placement
from shardserver.core.planners import PLANNERS
from shardserver.core.planning import PlanContext
from shardserver.errors import Code, RejectedError
from shardserver.protocol.addresses import StreamAddress, TopicAddress
from shardserver.protocol.streams import CreateStreamRequest, UpdateStreamRequest
from shardserver.protocol.table import Command
from shardserver.protocol.topics import CreateTopicRequest, PartitionsRequest, UpdateTopicRequest
from tests.core.plans import add_topic, make_metadata, shards_of

NAMES = st.sampled_from(["a", "b", "c"])


def test_a_move_changes_shard_and_term_and_nothing_else() -> None:
    metadata = make_metadata({"s/t": [0, 1]})
    expected = copy.deepcopy(metadata)
    ev.apply(metadata, ev.PartitionsMoved([PartitionMove(0, 0, 1, 2, 5, 2)]))
    partition = expected.streams[0].topics[0].partitions[1]
    partition.shard, partition.term, expected.revision = 5, 2, expected.revision + 1
    assert metadata == expected
    assert metadata.shard_counts[0] == metadata.shard_counts[5] == 1 and metadata.shard_counts[1] == 0


@pytest.mark.parametrize("place", [(0, 0, 1, 1), (0, 0, 0, 3), (0, 0, 2, 3), (0, 0, -1, 2), (0, 1, 0, 1), (1, 0, 0, 1)])
def test_a_move_of_what_is_deleted_or_purged_counts_for_nothing(place: tuple[int, int, int, int]) -> None:
    metadata = make_metadata({"s/t": [0, 1]})
    before = copy.deepcopy(metadata)
    ev.apply(metadata, ev.PartitionsMoved([PartitionMove(*place, 5, 2)]))
    before.revision += 1
    assert metadata == before and metadata.shard_counts == before.shard_counts


def test_a_purge_keeps_shard_and_term_and_the_dead_uid_its_owner() -> None:
    metadata = make_metadata({"s/t": [3]})
    ev.apply(metadata, ev.PartitionsMoved([PartitionMove(0, 0, 0, 1, 4, 2)]))
    ev.apply(metadata, ev.TopicPurged(0, 0, [2]))
    (partition,) = metadata.streams[0].topics[0].partitions
    assert (partition.uid, partition.shard, partition.term) == (2, 4, 2)
    assert metadata.dying == {1: 4} and metadata.partitions_count == 1


def test_dying_uids_keep_their_shard_until_their_data_is_removed() -> None:
    metadata = make_metadata({"s/t": [0, 1, 2], "s/u": [3], "r/t": [4]})
    ev.apply(metadata, ev.PartitionsRemoved(0, 0, 2))
    ev.apply(metadata, ev.TopicDeleted(0, 1))
    ev.apply(metadata, ev.StreamDeleted(1))
    assert metadata.dying == {2: 1, 3: 2, 4: 3, 5: 4}
    ev.apply(metadata, ev.DataRemoved([2, 5, 99]))
    assert metadata.dying == {3: 2, 4: 3} and shards_of(metadata) == {1: 0}


def test_an_event_with_fewer_shards_than_uids_is_no_event() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ev.apply(make_metadata({"s/t": []}), ev.PartitionsAdded(0, 0, 1, [1, 2], [0]))


def test_more_partitions_than_the_limit_are_refused_and_deleting_goes_on() -> None:
    metadata = make_metadata({"s/t": [0, 0]})
    context = PlanContext(1, Placement(), partition_limit=3)
    create, add, remove = (PLANNERS[one] for one in (Command.CREATE_TOPIC, Command.CREATE_PARTITIONS,
                                                     Command.DELETE_PARTITIONS))  # fmt: skip
    assert add(metadata, PartitionsRequest("s", "t", 1), context).events
    for plan in (
        lambda: add(metadata, PartitionsRequest("s", "t", 2), context),
        lambda: create(metadata, CreateTopicRequest("s", 2, "u", {}), context),
    ):
        with pytest.raises(RejectedError) as refused:
            plan()
        assert refused.value.code == Code.TOO_MANY_PARTITIONS
    lowered = PlanContext(1, Placement(), partition_limit=1)
    assert remove(metadata, PartitionsRequest("s", "t", 1), lowered).events
    assert create(metadata, CreateTopicRequest("s", 0, "u", {}), lowered).events


def test_streams_and_partitions_of_a_topic_have_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_commands, "MAX_STREAMS", 2)
    monkeypatch.setattr(metadata_commands, "MAX_PARTITION_IDS", 2)
    metadata, context = make_metadata({"s/t": [0]}), PlanContext(1)
    for command, fitting, one_more, code in (
        (Command.CREATE_PARTITIONS, PartitionsRequest("s", "t", 1), None, Code.PARTITION_IDS_EXHAUSTED),
        (Command.CREATE_STREAM, CreateStreamRequest("u", {}), CreateStreamRequest("v", {}), Code.TOO_MANY_STREAMS),
    ):
        for event in PLANNERS[command](metadata, fitting, context).events:
            ev.apply(metadata, event)
        with pytest.raises(RejectedError) as refused:
            PLANNERS[command](metadata, one_more or fitting, context)
        assert refused.value.code == code


def test_new_partitions_carry_the_shards_that_placement_chose() -> None:
    metadata = make_metadata({"s/t": [0]})
    context = PlanContext(1, Placement(shards=3))
    (event,) = PLANNERS[Command.CREATE_PARTITIONS](metadata, PartitionsRequest("s", "t", 3), context).events
    assert event == ev.PartitionsAdded(0, 0, 1, [2, 3, 4], [1, 2, 0])
    (event,) = PLANNERS[Command.CREATE_TOPIC](metadata, CreateTopicRequest("s", 2, "u", {}), context).events
    assert isinstance(event, ev.TopicCreated) and event.shards == [1, 2]


class ReplicaMachine(RuleBasedStateMachine):
    """Any changes that clients and moves can make, beside a second replica that is decoded again now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata, self.other = Metadata(), Metadata()
        self.context = PlanContext(1, Placement(shards=3))

    def ask(self, command: Command, request: object) -> None:
        try:
            events = PLANNERS[command](self.metadata, request, self.context).events
        except RejectedError:
            return
        for event in events:
            self.apply(event)

    def apply(self, event: ev.Event) -> None:
        ev.apply(self.metadata, event)
        ev.apply_change(self.other, ev.decode_change(ev.encode_change(ev.Change([event]))))

    @rule(name=NAMES)
    def create_stream(self, name: str) -> None:
        self.ask(Command.CREATE_STREAM, CreateStreamRequest(name, {}))

    @rule(stream=NAMES, name=NAMES)
    def rename_stream(self, stream: str, name: str) -> None:
        self.ask(Command.UPDATE_STREAM, UpdateStreamRequest(stream, name, {}))

    @rule(stream=NAMES, command=st.sampled_from([Command.DELETE_STREAM, Command.PURGE_STREAM]))
    def end_stream(self, stream: str, command: Command) -> None:
        self.ask(command, StreamAddress(stream))

    @rule(stream=NAMES, name=NAMES, count=st.integers(0, 3))
    def create_topic(self, stream: str, name: str, count: int) -> None:
        self.ask(Command.CREATE_STREAM, CreateStreamRequest(stream, {}))
        self.ask(Command.CREATE_TOPIC, CreateTopicRequest(stream, count, name, {}))

    @rule(stream=NAMES, topic=NAMES, name=NAMES)
    def rename_topic(self, stream: str, topic: str, name: str) -> None:
        self.ask(Command.UPDATE_TOPIC, UpdateTopicRequest(stream, topic, name, {}))

    @rule(stream=NAMES, topic=NAMES, command=st.sampled_from([Command.DELETE_TOPIC, Command.PURGE_TOPIC]))
    def end_topic(self, stream: str, topic: str, command: Command) -> None:
        self.ask(command, TopicAddress(stream, topic))

    @rule(
        stream=NAMES, topic=NAMES, count=st.integers(1, 3),
        command=st.sampled_from([Command.CREATE_PARTITIONS, Command.DELETE_PARTITIONS]),
    )  # fmt: skip
    def change_partitions(self, stream: str, topic: str, count: int, command: Command) -> None:
        self.ask(command, PartitionsRequest(stream, topic, count))

    @rule(place=st.tuples(*[st.integers(0, 2)] * 3, st.integers(1, 9)), shard=st.integers(0, 4))
    def move(self, place: tuple[int, int, int, int], shard: int) -> None:
        self.apply(ev.PartitionsMoved([PartitionMove(*place, shard, 2)]))

    @rule()
    def decode_again(self) -> None:
        self.other = decode_snapshot(encode_snapshot(Snapshot(self.other, []))).metadata

    @invariant()
    def names_lead_to_what_bears_them(self) -> None:
        for one in (self.metadata, self.other):
            assert one.stream_ids == {stream.name: id for id, stream in one.streams.items()}
            for stream in one.streams.values():
                assert stream.topic_ids == {topic.name: id for id, topic in stream.topics.items()}

    @invariant()
    def counts_are_those_of_the_live_partitions(self) -> None:
        places = Counter(shards_of(self.metadata).values())
        assert +self.metadata.shard_counts == places and self.metadata.partitions_count == places.total()

    @invariant()
    def replicas_are_the_same(self) -> None:
        assert self.metadata == self.other and +self.metadata.shard_counts == +self.other.shard_counts

    @invariant()
    def no_uid_is_live_and_dying(self) -> None:
        live = shards_of(self.metadata)
        assert not live.keys() & self.metadata.dying.keys()
        assert all(uid < self.metadata.next_uid for uid in live.keys() | self.metadata.dying.keys())


TestReplica = ReplicaMachine.TestCase


def test_a_topic_is_found_by_its_new_name_and_not_by_its_old_one() -> None:
    metadata = make_metadata({"s/t": []})
    add_topic(metadata, "s/u", [])
    ev.apply(metadata, ev.TopicUpdated(0, 0, "v", {}))
    ev.apply(metadata, ev.StreamRenamed(0, "r"))
    assert metadata.find_topic("r", "v")[1].id == 0
    for stream, topic, code in (("s", "v", Code.STREAM_NOT_FOUND), ("r", "t", Code.TOPIC_NOT_FOUND)):
        with pytest.raises(RejectedError) as refused:
            metadata.find_topic(stream, topic)
        assert refused.value.code == code
