"""The `shardserver-bench` command: latency percentiles and rates beside the disk's and the loopback's own."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from shardserver.bench import report as reporting
from shardserver.bench.disk_speed import DiskSpeed, measure_disk
from shardserver.bench.peers import Peer, echo, own_server, running_server
from shardserver.bench.plan import SEND_REPLY_BYTES, STREAM, TOPIC, USERNAME, LoadPlan, Outcome, Shape
from shardserver.bench.processes import cores_beside
from shardserver.bench.report import Figures
from shardserver.bench.worker import LoadGroup, make_batch
from shardserver.client.connection import Connection
from shardserver.errors import ShardServerError
from shardserver.protocol.frame import MAX_FRAME_BYTES

DURABILITY_OPTION = {"fsync": "persisted", "write": "write", "memory": "memory"}
KINDS = {"send": ("send",), "poll": ("poll",), "send-poll": ("send", "poll")}
PREFILL_BYTES, PREFILL_DEPTH = 32 << 20, 16
DISK_SECONDS = 1.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="shardserver-bench",
        description="Measures a server under a closed loop of sends or polls, beside its disk and a loopback echo.",
    )
    made.add_argument("--mode", choices=KINDS, default="send", help="what the connections do (default: send)")
    made.add_argument(
        "--producers",
        type=_positive,
        default=1,
        metavar="N",
        help="connections a kind, each with its process and partition",
    )
    made.add_argument("--depth", type=_positive, default=16, metavar="D", help="requests in flight of a connection")
    made.add_argument("--message-bytes", type=_positive, default=100, metavar="B", help="payload of a message")
    made.add_argument("--messages-per-batch", type=_positive, default=10, metavar="M")
    made.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help="the measured window")
    made.add_argument("--warmup-seconds", type=_seconds, default=0.5, metavar="S", help="load before the window")
    made.add_argument(
        "--durability", choices=DURABILITY_OPTION, default="fsync", help="of the topic, and of an own server"
    )
    made.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="own server: where its directory is made and removed; --server: its data directory",
    )
    made.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="measure this server; its root password stands in SHARDSERVER_ROOT_PASSWORD",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 86_400:
        raise ValueError(text)
    return value


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 it failed or the server lost count (a sentence on standard error), 2 wrong usage."""
    given = sys.argv[1:] if argv is None else argv
    made = parser()
    arguments = made.parse_args(given)
    shape = Shape(arguments.message_bytes, arguments.messages_per_batch, arguments.depth)
    if shape.batch_bytes + 1024 > MAX_FRAME_BYTES:
        made.error(f"a batch of {shape.batch_bytes} bytes; a frame holds {MAX_FRAME_BYTES}")
    try:
        report = measure(arguments, shape)
    except (ShardServerError, OSError) as error:
        print(f"shardserver-bench: {error}", file=sys.stderr)
        return 1
    report["command"] = shlex.join(["shardserver-bench", *given])
    print(json.dumps(report) if arguments.json else reporting.as_text(report))
    return 1 - bool(report["correct"])


def measure(arguments: argparse.Namespace, shape: Shape) -> Figures:
    """Disk, server, echo: one after the other, so that none disturbs the next."""
    directory = arguments.data or Path.cwd()
    disk = _disk(arguments, directory)
    with _peer(arguments, directory) as server:
        cores = cores_beside(server.cores)
        outcome, check = _run_server(arguments, shape, server, cores)
    beside = _run_echo(arguments, shape, server, cores)
    figures = reporting.figures_of(outcome, shape)
    disk_figures = reporting.disk_figures(disk)
    echo_figures = None if beside is None else reporting.figures_of(beside, shape)
    refused = sum(one.refused for one in outcome.kinds.values())
    return {
        "environment": reporting.environment(directory),
        "settings": _settings(arguments, shape, server, cores),
        "warnings": _warnings(arguments, server, cores),
        "server": figures,
        "echo": echo_figures,
        "disk": disk_figures,
        "ratios": reporting.ratios(figures, disk_figures, echo_figures, arguments.durability),
        "check": check,
        "correct": check.startswith("equal") and not refused,
    }


def _disk(arguments: argparse.Namespace, directory: Path) -> DiskSpeed | None:
    """None for a server whose disk is not known."""
    if arguments.server and arguments.data is None:
        return None
    return measure_disk(directory, min(DISK_SECONDS, arguments.seconds))


@contextlib.contextmanager
def _peer(arguments: argparse.Namespace, directory: Path) -> Iterator[Peer]:
    if arguments.server:
        yield running_server(arguments.server, arguments.data)
    else:
        with own_server(directory, arguments.durability) as made:
            yield made


def _run_server(arguments: argparse.Namespace, shape: Shape, server: Peer, cores: list[int]) -> tuple[Outcome, str]:
    """The run, and whether the topic then holds what was acknowledged. The bench's stream is made and deleted."""
    with Connection(server.host, server.port) as connection:
        assert server.password is not None
        connection.login(USERNAME, server.password)
        connection.create_stream(STREAM)
        try:
            options = {"durability": DURABILITY_OPTION[arguments.durability]}
            connection.create_topic(STREAM, TOPIC, arguments.producers, dict(options))
            filled = _prefill(connection, arguments, shape) if arguments.mode == "poll" else 0
            plans = _plans(arguments, shape, server, cores, log_messages=filled)
            with LoadGroup(plans) as group:
                outcome = group.run(server.pids, warmup_s=arguments.warmup_seconds, seconds=arguments.seconds)
            there = connection.topic_message_count(STREAM, TOPIC)
        finally:
            connection.delete_stream(STREAM)
    sent = outcome.kinds["send"].messages if "send" in outcome.kinds else 0
    due = sent + filled * arguments.producers
    return outcome, f"{'equal' if there == due else 'WRONG'}: {due} messages acknowledged, the topic reports {there}"


def _prefill(connection: Connection, arguments: argparse.Namespace, shape: Shape) -> int:
    """Fill every partition; gives the messages of each."""
    batch, count = make_batch(shape), shape.messages_per_batch
    batches: int = max(1, PREFILL_BYTES // arguments.producers // len(batch))
    for partition in range(arguments.producers):
        pairs = ((batch, count) for _ in range(batches))
        connection.send_all(STREAM, TOPIC, partition, pairs, depth=PREFILL_DEPTH)
    return batches * count


def _plans(
    arguments: argparse.Namespace, shape: Shape, peer: Peer, cores: list[int], log_messages: int
) -> list[LoadPlan]:
    return [
        LoadPlan(kind, peer.host, peer.port, peer.password, number, shape, tuple(cores), log_messages)
        for kind in KINDS[arguments.mode]
        for number in range(arguments.producers)
    ]


def _run_echo(arguments: argparse.Namespace, shape: Shape, server: Peer, cores: list[int]) -> Outcome | None:
    """The same load against the echo. None in the mode whose replies have two sizes."""
    if arguments.mode == "send-poll":
        return None
    reply_bytes = SEND_REPLY_BYTES if arguments.mode == "send" else shape.poll_reply_bytes
    with echo(server.cores, reply_bytes, shape.messages_per_batch, shape.depth) as peer:
        plans = _plans(arguments, shape, peer, cores, log_messages=shape.messages_per_batch)
        with LoadGroup(plans) as group:
            return group.run(peer.pids, warmup_s=arguments.warmup_seconds, seconds=arguments.seconds)


def _settings(arguments: argparse.Namespace, shape: Shape, server: Peer, cores: list[int]) -> Figures:
    return {
        "mode": arguments.mode,
        "producers": arguments.producers,
        "depth": shape.depth,
        "message_bytes": shape.message_bytes,
        "messages_per_batch": shape.messages_per_batch,
        "batch_bytes": shape.batch_bytes,
        "seconds": arguments.seconds,
        "warmup_seconds": arguments.warmup_seconds,
        "durability": arguments.durability,
        "own_server": arguments.server is None,
        "server_cores": list(server.cores) or "unknown",
        "load_cores": cores,
    }


def _warnings(arguments: argparse.Namespace, server: Peer, cores: list[int]) -> list[str]:
    connections = arguments.producers * len(KINDS[arguments.mode])
    checks = {
        "the load shares cores with the server": bool(set(cores) & set(server.cores)),
        "the server is not pinned, or its cores are not known": not server.cores,
        f"{connections} load processes on {len(cores)} core(s)": connections > len(cores),
    }
    return [text for text, holds in checks.items() if holds]


if __name__ == "__main__":
    sys.exit(main())
