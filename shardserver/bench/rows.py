"""The table of what the server is to reach: one row is a server, a load, a ceiling of the same run, and a limit.

Rows that name the same case share its measurement. Ratios are ours over the ceiling's; `least` is for what should be
large, `most` for what should be small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from shardserver.bench.disk_speed import LARGE_READ, LARGE_SYNC, LARGE_WRITE, SMALL_SYNC, DiskJob
from shardserver.bench.own_server import ServerSetup
from shardserver.bench.plan import LoadSpec, Shape


class Figure(Enum):
    """What of a case is compared, and its unit."""

    RATE = "requests/s"
    CPU = "µs CPU"
    BYTES = "MB/s"
    P50 = "µs p50"
    JOURNAL_WRITES = "writes/request"


@dataclass(frozen=True, slots=True)
class Case:
    """One server under one load. echo: the same load runs against the echo. fill_bytes: polls go round over so much.

    settle_s: load before the first window, settle_depth requests in flight a connection: as long as the first send to
    each partition costs more than the next, and until the memory of recent batches has been used once. It is repeated
    until partitions were flushed settle_flushes times. in_bursts: what it costs comes in bursts, such as flushes: its
    windows are long enough for them.
    """

    server: ServerSetup
    spec: LoadSpec
    echo: bool = True
    disk: DiskJob | None = None
    fill_bytes: int = 0
    settle_s: float = 0.0
    settle_depth: int = 1
    settle_flushes: int = 0
    in_bursts: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """against: another case whose same figure is the ceiling; else the case's own echo, disk or both (P50).

    least_of_echo: where the disk is faster than the echo's path, this share of the echo's bytes is enough.
    is_quick: also in the short form.
    """

    name: str
    case: Case
    figure: Figure
    least: float | None = None
    most: float | None = None
    against: Case | None = None
    least_of_echo: float | None = None
    is_quick: bool = False


MEMORY, FSYNC, WRITE = (ServerSetup(durability) for durability in ("memory", "fsync", "write"))
SMALL, LARGE, MIXED = Shape.fixed(1, 100), Shape.fixed(1000, 1000), Shape(1, 1, 2000)
SENDS = LoadSpec(SMALL, senders=64, partitions=16)
LARGE_SENDS = LoadSpec(LARGE, senders=8, partitions=8)
LARGE_POLLS = LoadSpec(LARGE, pollers=8, partitions=8)

SMALL_MEMORY = Case(MEMORY, SENDS, settle_s=3, settle_depth=16)
SMALL_FSYNC = Case(FSYNC, SENDS, settle_s=3, settle_depth=16)
SMALL_1000 = Case(FSYNC, replace(SENDS, partitions=1000, switches=True), echo=False, settle_s=3, settle_depth=16)
SMALL_16 = Case(FSYNC, replace(SENDS, switches=True), echo=False, settle_s=3, settle_depth=16)
ONE_CONNECTION = Case(FSYNC, LoadSpec(SMALL, senders=1), disk=SMALL_SYNC)
SMALL_POLLS = Case(FSYNC, LoadSpec(SMALL, pollers=64, partitions=16), fill_bytes=1 << 20)
PRODUCE_FSYNC = Case(FSYNC, LARGE_SENDS, echo=False, disk=LARGE_SYNC)
PRODUCE_WRITE = Case(WRITE, LARGE_SENDS, disk=LARGE_WRITE)
CONSUME_TAIL = Case(FSYNC, LARGE_POLLS, fill_bytes=64 << 20)
# Four times what is kept in memory: the tail's 16 MiB and the read-ahead's 16 x 1 MiB, and then some.
CONSUME_DISK = Case(
    ServerSetup("fsync", environment=(("SHARDSERVER_STORAGE_TAIL_BYTES", str(16 << 20)),)),
    LARGE_POLLS,
    echo=False,
    disk=LARGE_READ,
    fill_bytes=512 << 20,
)
MIXED_FSYNC = Case(FSYNC, replace(SENDS, shape=MIXED, switches=True), settle_s=2, settle_depth=16)


def two_shards(owner: int) -> Case:
    """Two shards on one core; shard 0 accepts, `owner` has the partitions, connections stay where they are."""
    rule = f'[[placement.rules]]\nstream = "*"\ntopic = "*"\nshards = [{owner}]\n'
    config = f'[net]\naccept_shards = "0"\nhandover_requests = 0\n\n{rule}'
    return Case(ServerSetup("memory", shards=2, shares_core=True, config=config), SENDS, echo=False)


CROSSING, NOT_CROSSING = two_shards(1), two_shards(0)

ROWS = (
    Row("small sends, memory", SMALL_MEMORY, Figure.RATE, least=0.70),
    Row("  CPU of the shard", SMALL_MEMORY, Figure.CPU, most=1.5),
    Row("small sends, fsync", SMALL_FSYNC, Figure.RATE, least=0.60, is_quick=True),
    Row("  CPU of the shard", SMALL_FSYNC, Figure.CPU, most=1.7, is_quick=True),
    Row("  journal writes a request", SMALL_FSYNC, Figure.JOURNAL_WRITES, most=0.1, is_quick=True),
    Row("small sends, fsync, 1000 partitions : 16", SMALL_1000, Figure.RATE, least=0.80, against=SMALL_16),
    Row("one connection, fsync : echo + disk", ONE_CONNECTION, Figure.P50, most=1.8),
    Row("small polls of the tail", SMALL_POLLS, Figure.RATE, least=0.60, is_quick=True),
    Row("produce 1000 x 1000 B, fsync : disk", PRODUCE_FSYNC, Figure.BYTES, least=0.80),
    Row(
        "produce 1000 x 1000 B, write : disk",
        PRODUCE_WRITE,
        Figure.BYTES,
        least=0.75,
        least_of_echo=0.45,
        is_quick=True,
    ),
    Row("consume 1000 x 1000 B of the tail", CONSUME_TAIL, Figure.RATE, least=0.50),
    Row("consume 1000 x 1000 B from disk : disk", CONSUME_DISK, Figure.BYTES, least=0.70),
    Row("small sends crossing shards : not", CROSSING, Figure.RATE, least=0.60, against=NOT_CROSSING),
    Row("sends of 1-2000 B, fsync, switching", MIXED_FSYNC, Figure.RATE, least=0.50),
)

# A stop flushes every partition that has something to flush: more than the default deadline allows for so many.
PATIENT = ServerSetup("fsync", environment=(("SHARDSERVER_SERVER_SHUTDOWN_DEADLINE_S", "120"),))
# The first flush of each partition makes its directory and its first segment: once, like the first touch of memory.
# From then on a partition is flushed once in a turn of three quarters of the ring, all of them within a few seconds.
BURSTS = Case(PATIENT, SENDS, echo=False, settle_s=15, settle_depth=16, in_bursts=True)
# When each was flushed a second time the journal has gone round, and nothing is touched for the first time any more.
PARTITIONS_10000 = replace(BURSTS, spec=replace(SENDS, partitions=10_000, switches=True), settle_flushes=20_000)
PARTITIONS_1 = replace(BURSTS, spec=replace(SENDS, partitions=1))
LONG_ROWS = (Row("small sends, 10,000 partitions : 1", PARTITIONS_10000, Figure.CPU, most=1.3, against=PARTITIONS_1),)
