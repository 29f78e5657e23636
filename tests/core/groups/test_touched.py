"""Which groups are looked at after a change of metadata."""

import pytest

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.groups.coordinator import GroupKey
from shardserver.core.groups.touched import Touched

# (stream, topic), with a topic of the same id in another stream and another one in the same.
PLACES = [(1, 2), (3, 2), (1, 4)]
MOVE = ev.PartitionMove(1, 2, 0, 11, 1, 2)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (ev.StreamDeleted(1), [(1, 2), (1, 4)]),
        (ev.TopicDeleted(1, 2), [(1, 2)]),
        (ev.TopicPurged(1, 2, [12]), [(1, 2)]),
        (ev.PartitionsAdded(1, 2, 9, [12], [0]), [(1, 2)]),
        (ev.PartitionsRemoved(1, 2, 1), [(1, 2)]),
        (ev.PartitionsMoved([MOVE]), [(1, 2)]),
        (ev.GroupDeleted(1, 2, 0), [(1, 2)]),
        (ev.PermissionsSet(1, None), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_groups_are_touched_where_something_is_gone_or_elsewhere(
    event: ev.Event, expected: list[tuple[int, int]]
) -> None:
    touched = Touched.by([ev.BootEvent(), event])
    assert touched != Touched()
    assert [place for place in PLACES if touched.concerns(GroupKey(*place, topic_uid=5, group_id=0))] == expected
    assert touched.users == ({1} if isinstance(event, ev.PermissionsSet) else set())


@pytest.mark.parametrize(
    "event",
    [
        ev.StreamCreated(1, "s", 1),
        ev.StreamRenamed(1, "s"),
        ev.TopicCreated(1, 2, "t", 1, {}, [11], [0]),
        ev.TopicUpdated(1, 2, "t", {}),
        ev.GroupCreated(1, 2, 0, "g", 1),
        ev.UserCreated(md.User(1, "ann", 1, "")),
        ev.DataRemoved([11]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_new_touches_none(event: ev.Event) -> None:
    assert Touched.by([event]) == Touched()
