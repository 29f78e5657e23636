"""The `shardserver-bench` command: one load against a server, beside the same load against the loopback echo."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from shardserver.bench import environment, report
from shardserver.bench.disk_speed import LARGE_WRITE, SMALL_SYNC, SMALL_WRITE, DiskSpeed, measure_jobs
from shardserver.bench.group import Report, run_spec
from shardserver.bench.outcome import Outcome
from shardserver.bench.own_server import OwnServer, ServerSetup
from shardserver.bench.peers import Peer, echo, running_server
from shardserver.bench.plan import LoadSpec, Shape
from shardserver.bench.processes import cores_beside
from shardserver.bench.progress import end_progress, no_progress, show_progress
from shardserver.bench.report import Figures
from shardserver.bench.session import DURABILITY_OPTION, Session
from shardserver.errors import ShardServerError
from shardserver.protocol.frame import MAX_FRAME_BYTES

MODES = {"send": (1, 0), "poll": (0, 1), "both": (1, 1)}
PREFILL_BYTES = 32 << 20
DISK_SECONDS = 1.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="shardserver-bench",
        description="Measures a server under sends, polls or both, beside the same load against a loopback echo.",
    )
    load = made.add_argument_group("load")
    load.add_argument("--mode", choices=MODES, default="send", help="what the connections do (default: send)")
    load.add_argument("--connections", type=_positive, default=1, metavar="N", help="of each kind")
    load.add_argument("--processes", type=_positive, metavar="N", help="of the load (default: one a core left)")
    load.add_argument("--partitions", type=_positive, metavar="N", help="default: as many as connections")
    load.add_argument("--switch", action="store_true", help="each request goes to a partition drawn at random")
    load.add_argument("--messages-per-batch", type=_positive, default=10, metavar="M")
    load.add_argument("--message-bytes", type=_range, default=(100, 100), metavar="B|B-B", help="payload, or its range")
    load.add_argument("--depth", type=_positive, default=16, metavar="D", help="requests in flight of a connection")
    load.add_argument("--rate", type=_seconds, metavar="R", help="open loop: requests/s of all connections together")
    load.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help="the measured window")
    load.add_argument("--warmup-seconds", type=_seconds, default=0.5, metavar="S", help="load before the window")
    load.add_argument("--messages", type=_positive, metavar="N", help="end after so many a kind instead of --seconds")
    server = made.add_argument_group("server")
    server.add_argument(
        "--durability", choices=DURABILITY_OPTION, default="fsync", help="of the topic, and of an own server"
    )
    server.add_argument("--shards", type=_positive, default=1, metavar="N", help="of an own server")
    server.add_argument(
        "--data", type=Path, metavar="DIR",
        help="own server: where its directory is made and removed; --server: its data directory",
    )  # fmt: skip
    server.add_argument(
        "--server", metavar="HOST:PORT", help="measure this server; its root password in SHARDSERVER_ROOT_PASSWORD"
    )
    made.add_argument("--verify", action="store_true", help="read everything back: count, order, hash")
    made.add_argument("--kill", action="store_true", help="own server: kill -9 and restart before that (with --verify)")
    made.add_argument("--no-echo", action="store_true", help="leave the echo out")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1e9 or math.isnan(value):
        raise ValueError(text)
    return value


def _range(text: str) -> tuple[int, int]:
    """ "100" or "1-2000"."""
    least, dash, most = text.partition("-")
    found = _positive(least), _positive(most if dash else least)
    if found[0] > found[1]:
        raise ValueError(text)
    return found


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 it failed or the server lost something (a sentence on standard error), 2 wrong usage."""
    given = sys.argv[1:] if argv is None else argv
    made = parser()
    arguments = made.parse_args(given)
    spec = spec_of(arguments)
    if spec.shape.largest_batch_bytes + 1024 > MAX_FRAME_BYTES:
        made.error(f"a batch of {spec.shape.largest_batch_bytes} bytes; a frame holds {MAX_FRAME_BYTES}")
    if arguments.kill and (arguments.server or not arguments.verify):
        made.error("--kill needs an own server and --verify")
    try:
        found = measure(arguments, spec)
    except (ShardServerError, OSError) as error:
        print(f"shardserver-bench: {error}", file=sys.stderr)
        return 1
    found["command"] = shlex.join(["shardserver-bench", *given])
    print(json.dumps(found) if arguments.json else report.as_text(found))
    return 1 - bool(found["correct"])


def spec_of(arguments: argparse.Namespace) -> LoadSpec:
    senders, pollers = MODES[arguments.mode]
    count = arguments.connections
    return LoadSpec(
        shape=Shape(arguments.messages_per_batch, *arguments.message_bytes),
        senders=senders * count,
        pollers=pollers * count,
        partitions=arguments.partitions or count,
        switches=arguments.switch,
        depth=arguments.depth,
        rate=arguments.rate,
        requests=None if arguments.messages is None else -(-arguments.messages // arguments.messages_per_batch),
    )


def measure(arguments: argparse.Namespace, spec: LoadSpec) -> Figures:
    """Disk, server, echo: one after the other, so that none disturbs the next."""
    directory = arguments.data or Path.cwd()
    disk = _disk(arguments, directory)
    with _server(arguments, directory) as (peer, own):
        cores = cores_beside(peer.cores)
        session = Session(peer, arguments.durability, cores, arguments.processes or 0)
        spec, outcome, faults = _run_server(arguments, spec, session, own)
    beside = None if arguments.no_echo else _run_echo(arguments, spec, peer, session)
    return report.of_run(
        place=environment.environment(directory),
        settings=_settings(arguments, spec, peer, cores),
        warnings=_warnings(arguments, peer, cores),
        spec=spec,
        server=outcome,
        echo=beside,
        disk=disk,
        faults=faults,
        verified=arguments.verify,
        acknowledged=session.acknowledged.total,
    )


def _disk(arguments: argparse.Namespace, directory: Path) -> list[DiskSpeed]:
    """Empty for a server whose disk is not known."""
    if arguments.server and arguments.data is None:
        return []
    return measure_jobs(directory, [SMALL_SYNC, SMALL_WRITE, LARGE_WRITE], min(DISK_SECONDS, arguments.seconds))


@contextlib.contextmanager
def _server(arguments: argparse.Namespace, directory: Path) -> Iterator[tuple[Peer, OwnServer | None]]:
    if arguments.server:
        yield running_server(arguments.server, arguments.data), None
    else:
        with OwnServer(directory, ServerSetup(arguments.durability, arguments.shards)) as own:
            yield own.peer, own


@contextlib.contextmanager
def _watched(arguments: argparse.Namespace) -> Iterator[Report]:
    """Progress goes to a terminal only."""
    if arguments.json or not sys.stderr.isatty():
        yield no_progress
        return
    yield show_progress
    end_progress()


def _run_server(
    arguments: argparse.Namespace, spec: LoadSpec, session: Session, own: OwnServer | None
) -> tuple[LoadSpec, Outcome, list[str]]:
    """What was run, what it found, what is wrong with the data. The stream is removed from a server that stays."""
    session.create(spec.partitions)
    with contextlib.ExitStack() as stack:
        if own is None:
            stack.callback(session.delete)
        if not spec.senders:
            spec = session.fill(spec, PREFILL_BYTES)
        with _watched(arguments) as progress:
            outcome = session.run(spec, warmup_s=arguments.warmup_seconds, seconds=arguments.seconds, report=progress)
        if own is not None and arguments.kill:
            session.kill_and_restart(own)
        return spec, outcome, _faults(arguments, spec, session)


def _faults(arguments: argparse.Namespace, spec: LoadSpec, session: Session) -> list[str]:
    acknowledged, there = session.counts()
    faults = session.faults(spec) if arguments.verify else []
    if acknowledged != there:
        faults.insert(0, f"{acknowledged} messages were acknowledged, the topic reports {there}")
    return faults


def _run_echo(arguments: argparse.Namespace, spec: LoadSpec, server: Peer, session: Session) -> Outcome:
    with echo(server.cores, spec) as peer:
        return run_spec(
            spec,
            peer,
            session.cores,
            processes=session.processes,
            warmup_s=arguments.warmup_seconds,
            seconds=arguments.seconds,
        )


def _settings(arguments: argparse.Namespace, spec: LoadSpec, server: Peer, cores: list[int]) -> Figures:
    return {
        "mode": arguments.mode,
        "senders": spec.senders,
        "pollers": spec.pollers,
        "partitions": spec.partitions,
        "switches": spec.switches,
        "depth": spec.depth,
        "rate": spec.rate,
        "requests": spec.requests,
        "message_bytes": [spec.shape.least_bytes, spec.shape.most_bytes],
        "messages_per_batch": spec.shape.messages_per_batch,
        "batch_bytes": spec.shape.batch_bytes,
        "seconds": arguments.seconds,
        "warmup_seconds": arguments.warmup_seconds,
        "durability": arguments.durability,
        "own_server": arguments.server is None,
        "killed": arguments.kill,
        "server_cores": list(server.cores) or "unknown",
        "load_cores": cores,
        "load_processes": min(arguments.processes or len(cores), spec.connections),
    }


def _warnings(arguments: argparse.Namespace, server: Peer, cores: list[int]) -> list[str]:
    processes = arguments.processes or 0
    checks = {
        "the load shares cores with the server": bool(set(cores) & set(server.cores)),
        "the server is not pinned, or its cores are not known": not server.cores,
        f"{processes} load processes on {len(cores)} core(s)": processes > len(cores),
    }
    return [text for text, holds in checks.items() if holds]


if __name__ == "__main__":
    sys.exit(main())
