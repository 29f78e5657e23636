"""Thousands of members in a thousand groups: what joining, syncing and a rebalance cost, and what others feel of it.

Prints a table of figures; they are measured, not judged. The exit code is 1 when the members of a group do not have
each partition of its topic once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import psutil

from shardserver.protocol.addresses import GroupAddress
from shardserver.protocol.groups import CreateGroupRequest
from shardserver.protocol.table import Command
from tests.scale.sessions_test import SHARDS, memory_bytes
from tests.sharded_server import ShardedServer
from tests.wire_connection import WireConnection

PARTITIONS = 20
REBALANCES, CHANGES = 100, 50
SEND_EVERY_S, QUIET_S = 0.02, 10.0
# One client for all members cannot ping for each of them in time.
CONFIG = "[groups]\nheartbeat_interval_s = 3600.0\n[net]\nmax_connections = {each}\n"


class Members:
    """Connection n is in group n modulo the number of groups."""

    def __init__(self, server: ShardedServer, stack: ExitStack, count: int, groups: int) -> None:
        self._server, self._stack, self._count, self._groups = server, stack, count, groups
        self.all: list[WireConnection] = []

    def connect(self) -> None:
        self.all = [self._stack.enter_context(self._server.connect(timeout_s=120)) for _ in range(self._count)]

    def create_groups(self) -> None:
        for number in range(self._groups):
            self.all[0].ask(Command.CREATE_GROUP, CreateGroupRequest("s", "t", f"g{number}"))

    def join_all(self) -> None:
        for number, one in enumerate(self.all):
            one.ask(Command.JOIN_GROUP, address(number % self._groups))

    def sync_all(self) -> bool:
        """True: in each group each partition has one owner."""
        owned: list[list[int]] = [[] for _ in range(self._groups)]
        for number, one in enumerate(self.all):
            owned[number % self._groups] += partitions_of(one, number % self._groups)
        return all(are_shared_out(one) for one in owned)

    def of_first_group(self) -> list[WireConnection]:
        return self.all[:: self._groups]


class Stopwatch:
    """Prints what a step took by the clock, and of the processors: where others use the machine, only that tells."""

    def __init__(self, server: ShardedServer) -> None:
        self._shards = [psutil.Process(server.shard_pid(number)) for number in range(SHARDS)]

    def __call__(self, what: str, step: Callable[[], object]) -> None:
        began, shards_s, own_s = time.monotonic(), self._cpu_s(), time.process_time()
        step()
        took, shards_s, own_s = time.monotonic() - began, self._cpu_s() - shards_s, time.process_time() - own_s
        print(f"{what:<50}{took:>10.2f} s; CPU of the shards {shards_s:.2f} s, of the client {own_s:.2f} s", flush=True)

    def _cpu_s(self) -> float:
        return sum(one.cpu_times().user + one.cpu_times().system for one in self._shards)


def address(group: int) -> GroupAddress:
    return GroupAddress("s", "t", f"g{group}")


def partitions_of(member: WireConnection, group: int) -> list[int]:
    return list(member.ask(Command.SYNC_GROUP, address(group)).partitions)


def change_metadata(root: WireConnection) -> None:
    for _ in range(CHANGES):
        root.create_stream("other")
        root.delete_stream("other")


def are_shared_out(partitions: list[int]) -> bool:
    return sorted(partitions) == list(range(PARTITIONS))


def send_on_schedule(server: str, told: Pipe) -> None:
    """One message of 100 B each SEND_EVERY_S, until told; then gives (due, seconds from then to the answer) of all."""
    with WireConnection(server) as connection:
        told.send(None)
        taken: list[tuple[float, float]] = []
        due = time.monotonic()
        while not told.poll(max(0.0, due - time.monotonic())):
            connection.send_payloads("other", 0, bytes(100))
            taken.append((due, time.monotonic() - due))
            due += SEND_EVERY_S
        told.send(taken)


def run(directory: Path, count: int, groups: int) -> bool:
    """True: the assignments were right."""
    server = ShardedServer(directory, cores=SHARDS, config=CONFIG.format(each=count // SHARDS + 10))
    try:
        server.serve()
        with ExitStack() as stack:
            return _judge(server, Members(server, stack, count, groups), stack)
    finally:
        server.kill()


def _judge(server: ShardedServer, members: Members, stack: ExitStack) -> bool:
    root = stack.enter_context(server.connect(timeout_s=120))
    root.create_stream("s")
    root.create_topic("s", "t", PARTITIONS)
    root.create_topic("s", "other", 1)
    timed = Stopwatch(server)
    timed("connect and log in all members", members.connect)
    timed(f"{CHANGES} streams made and deleted, nobody in a group", lambda: change_metadata(root))
    before_bytes = memory_bytes(server)
    timed("create the groups", members.create_groups)
    timed("join of all members", members.join_all)
    good: list[bool] = []
    timed("sync of all members", lambda: good.append(members.sync_all()))
    used = memory_bytes(server)
    timed(f"{CHANGES} streams made and deleted, all in a group", lambda: change_metadata(root))
    print(
        f"memory of all shards {used >> 20} MiB, of that {(used - before_bytes) / len(members.all):.0f} B a membership"
    )
    return _disturb(server.address, members.of_first_group(), root) and all(good)


def _disturb(server: str, members: list[WireConnection], extra: WireConnection) -> bool:
    """Rebalances of the first group beside another client's sends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    sender = spawn.Process(target=send_on_schedule, args=(server, theirs), daemon=True)
    sender.start()
    ours.recv()
    time.sleep(QUIET_S)
    began, lasted, good = time.monotonic(), [], True
    for number in range(REBALANCES):
        joins = number % 2 == 0
        due = time.monotonic()
        extra.ask(Command.JOIN_GROUP if joins else Command.LEAVE_GROUP, address(0))
        owned = [partitions_of(one, 0) for one in [*members, *[extra] * joins]]
        lasted.append(time.monotonic() - due)
        good = good and are_shared_out([number for one in owned for number in one])
    ended = time.monotonic()
    ours.send(None)
    sends = ours.recv()
    sender.join()
    print(f"{'a rebalance, until all members have synced':<50}{told_ms(lasted)}")
    print(f"{'sends of another client, without':<50}{told_ms([s for due, s in sends if due < began])}")
    during = [seconds for due, seconds in sends if began <= due <= ended]
    print(f"{f'sends during {REBALANCES} rebalances in {ended - began:.2f} s':<50}{told_ms(during)}")
    print(f"partitions of each group shared out: {'yes' if good else 'NO'}")
    return good


def told_ms(seconds: list[float]) -> str:
    ranked = sorted(seconds)
    p50, p99 = (ranked[int(share * (len(ranked) - 1))] * 1e3 for share in (0.5, 0.99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms of {len(ranked)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=1000)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="shardserver-groups-") as directory:
        return 0 if run(Path(directory), arguments.members, arguments.groups) else 1


if __name__ == "__main__":
    sys.exit(main())
