"""How far a consumer is in a partition."""

import pytest

from shardserver.protocol.offsets import Progress


@pytest.mark.parametrize(
    ("committed", "current_offset", "messages_count", "expected"),
    [
        (None, 0, 0, Progress(None, None, 0)),
        (None, 9, 10, Progress(None, 9, 10)),
        (3, 9, 10, Progress(3, 9, 6)),
        (9, 9, 10, Progress(9, 9, 0)),
        (3, 99, 10, Progress(3, 99, 10)),
        (None, 99, 10, Progress(None, 99, 10)),
        (3, 99, 0, Progress(3, None, 0)),
        (9, 3, 4, Progress(9, 3, 0)),
    ],
    ids=["empty", "new", "behind", "end", "expired", "new-expired", "all-expired", "cut"],
)
def test_lag_counts_what_is_kept_behind_the_committed_offset(
    committed: int | None, current_offset: int, messages_count: int, expected: Progress
) -> None:
    assert Progress.of(committed, current_offset, messages_count) == expected
