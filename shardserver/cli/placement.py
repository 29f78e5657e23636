"""The answer of `shardserver placement` as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from shardserver.cli.table import table_lines

COLUMNS = ("stream", "topic", "partition", "shard", "term", "uid", "reason")
NUMBERS = frozenset({"partition", "shard", "term", "uid"})


def placement_text(answer: dict[str, Any]) -> str:
    """One line a partition, by stream, topic and number, and how many each shard has."""
    rows = sorted(answer["partitions"], key=lambda row: (row["stream"], row["topic"], row["partition"]))
    return "\n".join([*_table(rows), *_totals(rows, answer["shards"])])


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    if rows:
        yield from table_lines(rows, COLUMNS, NUMBERS)
        yield ""


def _totals(rows: list[dict[str, Any]], shards: int) -> Iterator[str]:
    counts = Counter(row["shard"] for row in rows)
    for shard in sorted({*range(shards), *counts}):
        count = counts[shard]
        gone = " (gone)" if shard >= shards else ""
        yield f"shard {shard}{gone}: {count} partition{'' if count == 1 else 's'}"
