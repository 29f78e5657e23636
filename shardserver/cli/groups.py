"""The answer of `shardserver groups` as text."""

from __future__ import annotations

from typing import Any

from shardserver.cli.table import table_lines

COLUMNS = ("stream", "topic", "group", "partition", "owner", "committed", "end", "lag")
NUMBERS = frozenset(COLUMNS[3:])


def groups_text(answer: dict[str, Any]) -> str:
    """One line a group and partition; `-`: nobody, or nothing."""
    rows = sorted(answer["groups"], key=lambda row: (row["stream"], row["topic"], row["group"], row["partition"]))
    if not rows:
        return "no consumer groups"
    shown = [{name: "-" if row[name] is None else row[name] for name in COLUMNS} for row in rows]
    return "\n".join(table_lines(shown, COLUMNS, NUMBERS))
