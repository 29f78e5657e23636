"""Writes the table command x client into docs/compatibility.md, from what the tests noted (tap.py).

A command counts for a client when a test that passed has seen it answered without an error. Codes are those that
passing tests provoked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from shardserver.protocol.table import TABLE, Command
from tests.conformance.tap import RESULTS

PAGE = Path("docs/compatibility.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
# Result file -> heading.
CLIENTS = {
    "python": "Python 0.9.0",
    "rust": "Rust 0.11.0 (CLI 0.14.0)",
    "vectors-python": "recorded Python",
    "vectors-node": "recorded Node",
    "frames": "plain frames",
}
Rows = dict[str, dict[str, Any]]


def read_results(directory: Path = RESULTS) -> dict[str, Rows]:
    """Of the clients that have been run; the tests that passed."""
    found = {}
    for client in CLIENTS:
        path = directory / f"{client}.json"
        if path.exists():
            rows = json.loads(path.read_text())
            found[client] = {test: row for test, row in rows.items() if row["passed"]}
    return found


def codes(rows: Rows, command: Command) -> list[int | str]:
    """Different answers to a command, good ones first, evictions last."""
    seen = {code for row in rows.values() for code in row["commands"].get(command.name, [])}
    return sorted(seen, key=lambda code: (isinstance(code, str), str(code) if isinstance(code, str) else code))


def cell(rows: Rows, command: Command) -> str:
    """How many tests saw it answered; `refused` when never without an error; empty when never asked."""
    good = sum(0 in row["commands"].get(command.name, []) for row in rows.values())
    return str(good) if good else "refused" if codes(rows, command) else ""


def table(results: dict[str, Rows]) -> str:
    head = ["code", "op", "command", *(CLIENTS[client] for client in results), "other answers seen"]
    lines = [head, ["---:", "---:", "---", *("---:" for _ in results), "---"]]
    for command, row in sorted(TABLE.items()):
        cells = [cell(rows, command) for rows in results.values()]
        others = {code for rows in results.values() for code in codes(rows, command) if code != 0}
        told = ", ".join(
            str(one) for one in sorted(others, key=lambda code: (isinstance(code, str), str(code).zfill(9)))
        )
        lines.append([str(int(command)), str(row.operation), command.name.lower(), *cells, told])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs(results: dict[str, Rows]) -> str:
    """How many tests stand behind the table, on how many shards."""
    lines = []
    for client, rows in results.items():
        layouts = sorted({(row["shards"], row["hand-over"]) for row in rows.values()})
        told = ", ".join(f"{shards}{' with hand-over' * handover}" for shards, handover in layouts)
        lines.append(f"{CLIENTS[client]}: {len(rows)} tests, shards: {told}.")
    return "\n".join(f"* {line}" for line in lines)


def never_answered(results: dict[str, Rows]) -> list[str]:
    return [
        command.name.lower()
        for command in TABLE
        if not any(0 in codes(rows, command) for rows in results.values())
    ]  # fmt: skip


def main() -> int:
    results = read_results()
    if not results:
        print("no results in build/conformance: make conformance first", file=sys.stderr)
        return 1
    missing = never_answered(results)
    told = f"Never answered without an error: {', '.join(missing) or 'none'}."
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{runs(results)}\n\n{told}\n\n{END}{after}")
    print(f"{sum(map(len, results.values()))} tests of {len(results)} clients; {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
