"""Which groups a change of metadata may concern: thousands of others and their members need not be looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from shardserver.core import metadata_events as ev
from shardserver.core.groups.coordinator import GroupKey


@dataclass
class Touched:
    """By ids: streams that are gone; (stream, topic) of which something is gone or elsewhere; users with other rights.

    Sessions that end leave their groups by themselves.
    """

    streams: set[int] = field(default_factory=set)
    topics: set[tuple[int, int]] = field(default_factory=set)
    users: set[int] = field(default_factory=set)

    @classmethod
    def by(cls, events: Iterable[ev.Event]) -> Touched:
        touched = cls()
        for event in events:
            touched._add(event)
        return touched

    def concerns(self, key: GroupKey) -> bool:
        return (key.stream_id, key.topic_id) in self.topics or key.stream_id in self.streams

    def _add(self, event: ev.Event) -> None:
        match event:
            case ev.StreamDeleted(id):
                self.streams.add(id)
            case ev.TopicDeleted() | ev.TopicPurged() | ev.PartitionsAdded() | ev.PartitionsRemoved():
                self.topics.add((event.stream_id, event.id))
            case ev.PartitionsMoved(moves):
                self.topics |= {(one.stream_id, one.topic_id) for one in moves}
            case ev.GroupDeleted():
                self.topics.add((event.stream_id, event.topic_id))
            case ev.PermissionsSet():
                self.users.add(event.user_id)
            case ev.StreamCreated() | ev.StreamRenamed() | ev.TopicCreated() | ev.TopicUpdated() | ev.GroupCreated():
                pass
            case ev.UserCreated() | ev.UserUpdated() | ev.UserDeleted() | ev.PasswordSet() | ev.AccessEnded():
                pass
            case ev.TokenCreated() | ev.TokensRemoved() | ev.BootEvent() | ev.DataRemoved():
                pass
            case _:
                assert_never(event)
