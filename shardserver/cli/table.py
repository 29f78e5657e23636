"""Rows as text: aligned columns, and nothing of a client's in them that a terminal would act on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence


def table_lines(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], numbers: Collection[str]
) -> Iterator[str]:
    """A line of names, and one for each row. numbers: columns that stand at the right."""
    cells = [dict(zip(columns, columns, strict=True))]
    cells += [{name: printable(row[name]) for name in columns} for row in rows]
    widths = {name: max(len(row[name]) for row in cells) for name in columns}
    for row in cells:
        padded = [(row[name].rjust if name in numbers else row[name].ljust)(widths[name]) for name in columns]
        yield "  ".join(padded).rstrip()


def printable(value: object) -> str:
    """Names come from clients: no line end or escape sequence of theirs reaches the terminal."""
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]
