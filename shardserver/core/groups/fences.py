"""On the shard of a partition: which member of each group may poll it now, and up to where it was given messages.

The coordinator grants and revokes. Nobody polls without a grant, so that whatever a member believes, no two get the
same message in one generation. A new process has no grants until the coordinators have granted again.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardserver.errors import BackpressureError, Code, RejectedError

NO_OFFSET = -1
Key = tuple[int, int]  # partition uid, group id


@dataclass(slots=True)
class Grant:
    """member: the session of its connection. delivered: the highest offset it was given; -1: none.

    is_revoked: it gets no more, and may still commit what it has.
    """

    member: int
    delivered: int = NO_OFFSET
    is_revoked: bool = False


class Fences:
    """Of one shard's partitions."""

    def __init__(self) -> None:
        self._grants: dict[Key, Grant] = {}

    def grant(self, uid: int, group: int, member: int) -> bool:
        """From now on this member, and no other. Again to the same: what it was given stays known.

        True: another one had it.
        """
        found = self._grants.get((uid, group))
        if found is not None and found.member == member:
            found.is_revoked = False
            return False
        self._grants[uid, group] = Grant(member)
        return found is not None

    def revoke(self, uid: int, group: int, committed: int | None, *, force: bool) -> bool:
        """The member gets no more. True: the grant is gone, as all it has in hand is committed, or by `force`."""
        found = self._grants.get((uid, group))
        if found is None:
            return True
        found.is_revoked = True
        if not force and found.delivered > (NO_OFFSET if committed is None else committed):
            return False
        del self._grants[uid, group]
        return True

    def may_poll(self, uid: int, group: int, member: int) -> bool:
        found = self._grants.get((uid, group))
        return found is not None and found.member == member and not found.is_revoked

    def note_delivered(self, uid: int, group: int, member: int, last_offset: int) -> None:
        """Raises nothing: a reply whose grant went while it was read is not given (`may_poll` is asked again)."""
        found = self._grants.get((uid, group))
        if found is not None and found.member == member:
            found.delivered = max(found.delivered, last_offset)

    def check_commit(self, uid: int, group: int, member: int, *, is_manager: bool) -> None:
        """Its member commits; who manages the topic does while there is none. member: 0: of no member of the group.

        Raises RejectedError(20), BackpressureError: it may be the member's, once its coordinator grants it again.
        """
        found = self._grants.get((uid, group))
        if found is None and is_manager:
            return
        if found is None and member:
            raise BackpressureError(f"group {group} of partition {uid}: granted to nobody yet")
        if found is None or found.member != member:
            raise RejectedError(Code.RESOURCE_NOT_FOUND, f"group {group} of partition {uid}: not the owner")

    def owner(self, uid: int, group: int) -> int | None:
        found = self._grants.get((uid, group))
        return None if found is None else found.member

    def forget(self, uids: set[int] | None = None, group: int | None = None) -> None:
        """Grants of these partitions, of this group, or of both."""
        for key in list(self._grants):
            if (uids is None or key[0] in uids) and (group is None or key[1] == group):
                del self._grants[key]

    def uids(self) -> set[int]:
        return {uid for uid, _ in self._grants}
