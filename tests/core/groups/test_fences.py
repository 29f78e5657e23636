"""Who may poll a partition for a group, and what is still in somebody's hands."""

import pytest

from shardserver.core.groups.fences import Fences
from shardserver.errors import BackpressureError, RejectedError

UID, GROUP, NO_MEMBER = 7, 0, 0


def test_only_the_granted_member_polls_and_a_new_process_lets_nobody() -> None:
    fences = Fences()
    assert not fences.may_poll(UID, GROUP, 1)
    fences.grant(UID, GROUP, 1)
    assert fences.may_poll(UID, GROUP, 1) and not fences.may_poll(UID, GROUP, 2)
    assert not fences.may_poll(UID, GROUP + 1, 1) and not fences.may_poll(UID + 1, GROUP, 1)
    fences.grant(UID, GROUP, 2)
    assert not fences.may_poll(UID, GROUP, 1)


def test_a_revoked_member_keeps_what_it_has_in_hand_until_it_commits() -> None:
    fences = Fences()
    fences.grant(UID, GROUP, 1)
    fences.note_delivered(UID, GROUP, 1, 9)
    assert not fences.revoke(UID, GROUP, None, force=False)
    assert not fences.may_poll(UID, GROUP, 1)
    fences.check_commit(UID, GROUP, 1, is_manager=False)
    assert not fences.revoke(UID, GROUP, 8, force=False)
    assert fences.revoke(UID, GROUP, 9, force=False)
    assert fences.owner(UID, GROUP) is None and fences.revoke(UID, GROUP, 9, force=False)


def test_force_takes_it_at_once_and_a_new_grant_to_the_same_member_gives_it_back() -> None:
    fences = Fences()
    fences.grant(UID, GROUP, 1)
    fences.note_delivered(UID, GROUP, 1, 9)
    fences.revoke(UID, GROUP, None, force=False)
    fences.grant(UID, GROUP, 1)
    assert fences.may_poll(UID, GROUP, 1)
    assert not fences.revoke(UID, GROUP, 3, force=False)  # what it was given before is known still
    assert fences.revoke(UID, GROUP, 3, force=True)


def test_others_commit_only_when_they_manage_the_topic_and_nobody_owns_the_partition() -> None:
    fences = Fences()
    fences.check_commit(UID, GROUP, 5, is_manager=True)
    with pytest.raises(RejectedError):
        fences.check_commit(UID, GROUP, NO_MEMBER, is_manager=False)
    fences.grant(UID, GROUP, 1)
    for is_manager in False, True:
        with pytest.raises(RejectedError):
            fences.check_commit(UID, GROUP, 5, is_manager=is_manager)


def test_a_member_asks_again_while_a_partition_is_granted_to_nobody() -> None:
    fences = Fences()
    with pytest.raises(BackpressureError):
        fences.check_commit(UID, GROUP, 5, is_manager=False)
    fences.grant(UID, GROUP, 5)
    fences.check_commit(UID, GROUP, 5, is_manager=False)


def test_a_grant_tells_whether_it_was_anothers() -> None:
    fences = Fences()
    assert [fences.grant(UID, GROUP, member) for member in (1, 1, 2)] == [False, False, True]


def test_what_is_gone_is_forgotten() -> None:
    fences = Fences()
    for uid in 1, 2:
        for group in 0, 1:
            fences.grant(uid, group, 5)
    fences.forget(uids={1}, group=0)
    assert fences.owner(1, 0) is None and fences.owner(1, 1) == 5
    fences.forget(uids={2})
    assert fences.uids() == {1}
