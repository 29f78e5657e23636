"""`shardserver top`: rates out of two answers, and the whole of it against a busy server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardserver.cli import top
from shardserver.cli.top import figures_between, top_text
from shardserver.errors import ConfigError
from shardserver.protocol.table import Command
from tests.sharded_server import ShardedServer, rule

Row = dict[str, Any]


def answer(shard: int = 0, **figures: Any) -> Row:
    made: Row = {
        "shard": shard,
        "pid": 100 + shard,
        "told": 2,
        "clock_s": 10.0,
        "cpu_s": 1.0,
        "connections": 3,
        "in_flight_bytes": 0,
        "requests": 0,
        "crossings": {},
        "ring_slots": 1024,
        "ring_used": 0,
        "syncs": [],
        "partitions": [],
        "busiest_connections": [],
    }
    return made | figures


def partition(uid: int, requests: int, size: int = 0) -> Row:
    return {"uid": uid, "stream": "s", "topic": f"t{uid}", "partition": 0, "requests": requests, "bytes": size}


def connection(number: int, requests: int) -> Row:
    address = f"127.0.0.1:{number}"
    return {"client_id": number, "address": address, "user_id": None, "requests": requests, "in_flight_bytes": 0}


def test_a_shard_s_rates_are_those_between_two_answers() -> None:
    before = answer(requests=1000, crossings={"1": 10}, syncs=[[100, 5], [2000, 1]])
    now = answer(
        clock_s=12.0,
        cpu_s=2.5,
        requests=1400,
        crossings={"1": 110},
        ring_used=256,
        syncs=[[100, 103], [300, 1], [2000, 2]],
        connections=4,
        in_flight_bytes=9,
    )
    other = [answer(1, crossings={"0": 4}), answer(1, clock_s=12.0, crossings={"0": 10})]
    assert figures_between([before, other[0]], [now, other[1]])["shards"][0] == {
        "shard": 0,
        "busy_percent": 75.0,
        "requests_per_s": 200.0,
        "cross_percent": 25.0,
        "for_others_per_s": 3.0,
        "ring_fill_percent": 25.0,
        "syncs_per_s": 50.0,
        "sync_p99_ms": 0.3,
        "connections": 4,
        "in_flight_bytes": 9,
    }


def test_nothing_to_divide_by_is_zero_and_no_sync_is_no_time() -> None:
    row = figures_between([answer()], [answer(clock_s=11.0, ring_slots=0)])["shards"][0]
    assert (row["cross_percent"], row["ring_fill_percent"], row["sync_p99_ms"]) == (0.0, 0.0, None)


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_the_p99_leaves_out_one_sync_of_a_hundred(slow: int) -> None:
    row = figures_between([answer()], [answer(clock_s=11.0, syncs=[[50, 100 - slow], [8000, slow]])])["shards"][0]
    assert row["sync_p99_ms"] == (8.0 if slow > 1 else 0.05)


def test_a_shard_that_does_not_answer_or_is_another_process_has_no_rates() -> None:
    down = {"shard": 0, "error": "the shard died"}
    figures = figures_between([answer(), answer(1, requests=10**6)], [down, answer(1, pid=999, clock_s=11.0)])
    assert figures["shards"] == [
        {"shard": 0, "state": "the shard died"},
        {"shard": 1, "state": "has just started"},
    ]
    assert figures_between([down], [answer()])["shards"] == [{"shard": 0, "state": "has just started"}]
    assert figures_between([down], [{"shard": 0, "state": "recovering"}])["shards"][0]["state"] == "recovering"
    assert top_text(figures).splitlines() == ["shard 0: the shard died", "shard 1: has just started"]


def test_the_ten_busiest_of_all_shards_are_shown() -> None:
    before = [answer(number, told=40, partitions=[partition(number, 500)]) for number in range(2)]
    now = [
        answer(number, told=40, clock_s=12.0, partitions=[partition(uid, 500 + uid) for uid in range(number, 24, 2)])
        for number in range(2)
    ]
    rows = figures_between(before, now)["partitions"]
    assert [row["topic"] for row in rows] == [f"t{uid}" for uid in range(23, 13, -1)]
    assert rows[0] == {
        "stream": "s",
        "topic": "t23",
        "partition": 0,
        "shard": 1,
        "requests_per_s": 261.5,
        "bytes_per_s": 0.0,
    }


def test_bytes_count_beside_requests() -> None:
    now = answer(clock_s=11.0, partitions=[partition(1, 100), partition(2, 1, 200 << 14)])
    assert [row["topic"] for row in figures_between([answer(told=9)], [now | {"told": 9}])["partitions"]] == [
        "t2",
        "t1",
    ]


def test_who_was_not_told_because_there_were_too_many_is_left_out_once() -> None:
    full = answer(busiest_connections=[connection(1, 10), connection(2, 10)])
    now = answer(clock_s=11.0, busiest_connections=[connection(1, 15), connection(3, 10**6)])
    assert [row["client_id"] for row in figures_between([full], [now])["connections"]] == [1]
    few = answer(busiest_connections=[connection(1, 10)])
    assert [row["client_id"] for row in figures_between([few], [now])["connections"]] == [3, 1]


def test_names_cannot_move_the_cursor() -> None:
    named = partition(1, 5) | {"stream": "\x1b[2J", "topic": "a\nb"}
    text = top_text(figures_between([answer()], [answer(clock_s=11.0, partitions=[named])]))
    assert "\x1b" not in text and "\\x1b[2J" in text and "a\\nb" in text


def test_an_interval_is_a_tenth_of_a_second_to_an_hour() -> None:
    for text in ("0", "nan", "-1", "4000"):
        with pytest.raises(argparse.ArgumentTypeError):
            top._seconds(text)
    assert top._seconds("0.5") == 0.5


# With a real server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardedServer]:
    made = ShardedServer(tmp_path, cores=2, config="[net]\nhandover_requests = 0\n" + rule("s", "*", 1))
    try:
        yield made.serve()
    finally:
        made.kill()


def test_a_busy_server_is_shown_as_what_it_does(server: ShardedServer, capsys: pytest.CaptureFixture[str]) -> None:
    with server.connect() as one:
        one.create_stream("s")
        one.create_topic("s", "busy", 1)
    by_shard = server.connect_each()
    crossing = by_shard[0]

    def work(interval_s: float) -> None:
        for _ in range(50):
            crossing.send_payloads("busy", 0, b"x" * 1000)

    arguments = argparse.Namespace(interval=1.0, once=True, json=True)
    assert top.run(str(server.data), arguments, sleep=work) == 0
    figures = json.loads(capsys.readouterr().out)
    first, second = figures["shards"]
    assert first["requests_per_s"] > 0 == second["requests_per_s"]
    assert first["cross_percent"] > 90 and second["cross_percent"] == 0
    assert second["for_others_per_s"] > 0 == first["for_others_per_s"]
    assert second["syncs_per_s"] > 0 and second["sync_p99_ms"] > 0
    busy = {name: figures["partitions"][0][name] for name in ("stream", "topic", "partition", "shard")}
    assert busy == {"stream": "s", "topic": "busy", "partition": 0, "shard": 1}
    assert figures["partitions"][0]["bytes_per_s"] > 1000 * figures["partitions"][0]["requests_per_s"]
    (connected,) = figures["connections"]
    assert connected["client_id"] == crossing.ask(Command.GET_ME).info.client_id and connected["user_id"] == 0
    assert top.run(str(server.data), argparse.Namespace(interval=1.0, once=True, json=False), sleep=work) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["shard", "busy", "%"] and "127.0.0.1:" in lines[-1]
    for one in by_shard:
        one.close()
    assert server.stop() == 0
    with pytest.raises(ConfigError, match="no server runs"):
        top.run(str(server.data), arguments, sleep=work)
