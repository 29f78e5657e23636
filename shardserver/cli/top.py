"""`shardserver top`: what the shards do now, as the difference of two answers of the control socket."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from shardserver.cli.control import ask
from shardserver.cli.table import table_lines

SHOWN = 10
# As the server's own rebalancing weighs them: so many bytes are as much work as a request.
BYTES_WEIGHT = 16 << 10
CLEAR = "\x1b[H\x1b[2J"

Row = dict[str, Any]
RowOf = Callable[[Row, Row, float], Row]

# Field -> what stands above it.
SHARD_TITLES = {
    "shard": "shard",
    "busy_percent": "busy %",
    "requests_per_s": "requests/s",
    "cross_percent": "cross %",
    "for_others_per_s": "for others/s",
    "ring_fill_percent": "ring %",
    "syncs_per_s": "syncs/s",
    "sync_p99_ms": "sync p99 ms",
    "connections": "connections",
    "in_flight_bytes": "in flight B",
}
_LOAD = {"shard": "shard", "requests_per_s": "requests/s"}
PARTITION_TITLES = {"stream": "stream", "topic": "topic", "partition": "partition"} | _LOAD | {"bytes_per_s": "bytes/s"}
CONNECTION_TITLES = {"address": "connection", "client_id": "client id", "user_id": "user"} | _LOAD
CONNECTION_TITLES |= {"in_flight_bytes": "in flight B"}
TEXTS = frozenset({"stream", "topic", "connection"})


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    top = commands.add_parser("top", help="what the shards of a running server do now, again and again")
    top.add_argument("--data", dest="command_data", metavar="DIR")
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (1)")
    top.add_argument("--once", action="store_true", help="one interval, then end")
    top.add_argument("--json", action="store_true", help="one line of JSON for each interval")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: 0.1 to 3600 seconds")
    return value


def run(data: str, arguments: argparse.Namespace, sleep: Callable[[float], None] = time.sleep) -> int:
    """Until it is interrupted, or the reader of its output has gone. Raises NoServerError."""
    try:
        before = ask(data, "top")["shards"]
        while True:
            sleep(arguments.interval)
            now = ask(data, "top")["shards"]
            _show(figures_between(before, now), arguments)
            if arguments.once:
                return 0
            before = now
    except (KeyboardInterrupt, BrokenPipeError):
        return 0


def _show(figures: Row, arguments: argparse.Namespace) -> None:
    text = json.dumps(figures) if arguments.json else top_text(figures)
    is_screen = sys.stdout.isatty() and not arguments.json and not arguments.once
    print((CLEAR if is_screen else "") + text, flush=True)


# Figures


def figures_between(before: list[Row], now: list[Row]) -> Row:
    """Rates of each shard, and the busiest partitions and connections of all of them. Rows: the answers of shards."""
    former = {row["shard"]: row for row in before}
    pairs = [(_former(former, row), row) for row in now]
    counted = [(old, new) for old, new in pairs if old is not None]
    return {
        "shards": [_shard_row(old, new, counted) for old, new in pairs],
        "partitions": _busiest(counted, "partitions", "uid", _partition_row),
        "connections": _busiest(counted, "busiest_connections", "client_id", _connection_row),
    }


def _former(former: dict[int, Row], row: Row) -> Row | None:
    """What the same process said before. None: it has not answered, or is another one now."""
    found = former.get(row["shard"])
    return found if found is not None and "pid" in row and found.get("pid") == row["pid"] else None


def _shard_row(old: Row | None, new: Row, counted: list[tuple[Row, Row]]) -> Row:
    if old is None:
        return {"shard": new["shard"], "state": new.get("error") or new.get("state", "has just started")}
    elapsed = new["clock_s"] - old["clock_s"]
    requests, crossed = new["requests"] - old["requests"], _crossings(old, new)
    served = sum(_crossings(*pair, only=str(new["shard"])) for pair in counted)
    syncs = _syncs_between(old["syncs"], new["syncs"])
    return {
        "shard": new["shard"],
        "busy_percent": _rounded(100 * (new["cpu_s"] - old["cpu_s"]), elapsed),
        "requests_per_s": _rounded(requests, elapsed),
        "cross_percent": _rounded(100 * min(crossed, requests), requests),
        "for_others_per_s": _rounded(served, elapsed),
        "ring_fill_percent": _rounded(100 * new["ring_used"], new["ring_slots"]),
        "syncs_per_s": _rounded(sum(syncs.values()), elapsed),
        "sync_p99_ms": _percentile_ms(syncs, 0.99),
        "connections": new["connections"],
        "in_flight_bytes": new["in_flight_bytes"],
    }


def _crossings(old: Row, new: Row, only: str | None = None) -> int:
    """Requests that this shard had for others; `only`: for that one."""
    return sum(
        count - old["crossings"].get(peer, 0) for peer, count in new["crossings"].items() if only in (None, peer)
    )


def _rounded(part: float, whole: float) -> float:
    return round(part / whole, 1) if whole else 0.0


def _syncs_between(old: list[list[int]], new: list[list[int]]) -> dict[int, int]:
    former = {most_us: count for most_us, count in old}
    return {most_us: count - former.get(most_us, 0) for most_us, count in new}


def _percentile_ms(syncs: dict[int, int], share: float) -> float | None:
    """Milliseconds in which that share of the syncs was done, or up to an eighth more. None: there were none."""
    due = share * sum(syncs.values())
    for most_us, count in sorted(syncs.items()):
        due -= count
        if due <= 0 < count:
            return most_us / 1000
    return None


def _busiest(counted: list[tuple[Row, Row]], name: str, key: str, row_of: RowOf) -> list[Row]:
    rows = []
    for old, new in counted:
        former = {one[key]: one for one in old[name]}
        # Whoever was not told is new, unless there were more than are told: then nobody knows what it had done before.
        unknown = {"requests": 0, "bytes": 0} if len(former) < old["told"] else None
        for one in new[name]:
            known = former.get(one[key], unknown)
            if known is not None:
                rows.append(row_of(known, one, new["clock_s"] - old["clock_s"]) | {"shard": new["shard"]})
    busy = [row for row in rows if row["requests_per_s"] > 0]
    return sorted(busy, key=lambda row: -row["requests_per_s"] - row.get("bytes_per_s", 0) / BYTES_WEIGHT)[:SHOWN]


def _partition_row(old: Row, new: Row, elapsed: float) -> Row:
    return {
        "stream": new["stream"],
        "topic": new["topic"],
        "partition": new["partition"],
        "requests_per_s": _rounded(new["requests"] - old["requests"], elapsed),
        "bytes_per_s": _rounded(new["bytes"] - old["bytes"], elapsed),
    }


def _connection_row(old: Row, new: Row, elapsed: float) -> Row:
    return {
        "client_id": new["client_id"],
        "address": new["address"],
        "user_id": new["user_id"],
        "requests_per_s": _rounded(new["requests"] - old["requests"], elapsed),
        "in_flight_bytes": new["in_flight_bytes"],
    }


# Text


def top_text(figures: Row) -> str:
    return "\n".join(_lines(figures))


def _lines(figures: Row) -> Iterator[str]:
    yield from _table([row for row in figures["shards"] if "state" not in row], SHARD_TITLES)
    for row in figures["shards"]:
        if "state" in row:
            yield f"shard {row['shard']}: {row['state']}"
    for name, titles in (("partitions", PARTITION_TITLES), ("connections", CONNECTION_TITLES)):
        if figures[name]:
            yield ""
            yield from _table(figures[name], titles)


def _table(rows: list[Row], titles: dict[str, str]) -> Iterator[str]:
    named = [{title: "-" if row[name] is None else row[name] for name, title in titles.items()} for row in rows]
    if named:
        yield from table_lines(named, list(titles.values()), set(titles.values()) - TEXTS)
