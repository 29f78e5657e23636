"""When a shard is started read-only."""

from shardserver.supervisor.shard_exit import JOURNAL_GRACE_S, ReadOnlyRule, ShardExit


def test_a_recovery_that_cannot_write_is_followed_by_a_read_only_start() -> None:
    rule = ReadOnlyRule()
    assert rule.after(ShardExit.UNWRITABLE, 0.0)
    assert not rule.after(ShardExit.HEALED, 40.0)


def test_only_a_second_journal_failure_soon_after_the_first_makes_it_read_only() -> None:
    rule = ReadOnlyRule()
    assert not rule.after(ShardExit.JOURNAL_FAILED, 0.0)
    assert not rule.after(ShardExit.JOURNAL_FAILED, JOURNAL_GRACE_S)
    assert rule.after(ShardExit.JOURNAL_FAILED, 2 * JOURNAL_GRACE_S - 1)
    assert not rule.after(-9, 2 * JOURNAL_GRACE_S)
