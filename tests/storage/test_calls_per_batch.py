"""The hot path makes as many Python calls for a thousand messages as for one (style.md, 7)."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from types import FrameType, ModuleType, SimpleNamespace

import pytest

from shardserver.protocol import batch as compiled
from shardserver.protocol import batch_python as plain
from shardserver.storage import append_log, append_log_python
from shardserver.storage.append_log import Admission
from shardserver.storage.recovery import RecoveryInput, recover_shard
from shardserver.storage.settings import Durability, LogSettings, PartitionIdentity
from shardserver.storage.tail_python import TailTotal
from shardserver.storage.turn import Turn
from tests.batches import make_batch
from tests.fault_disk import FaultDisk
from tests.storage.log_world import ticking_clock

SETTINGS = LogSettings(journal_file_bytes=2 << 20, journal_files=3)


def calls_of(work: Callable[[], object]) -> int:
    """Calls of Python functions and of builtins from Python code; a compiled function's own are invisible."""
    seen: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            seen.append(event)

    gc.disable()  # its callbacks would be counted
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return len(seen)


def calls_of_append(messages: int) -> tuple[int, int]:
    """(calls of append, calls of building the journal write that carries the batch)."""

    async def run() -> tuple[int, int]:
        source = RecoveryInput(0, 2, [PartitionIdentity(1, 1, 0)])
        logs = await recover_shard(FaultDisk(1), "data", SETTINGS, source, ticking_clock(), lambda error: None)
        partition, journal = logs.partition(1), logs.journal
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        batch = make_batch([b"x" * 20] * messages)
        appending = calls_of(lambda: partition.append(batch, messages, done.set_result))
        assert journal.begin()

        def build() -> None:
            assert partition.journal_into(journal.staging, 0, journal.sequence) == messages
            journal.submit(1, clean=False, on_written=lambda: None, on_end=lambda error: None)

        return appending, calls_of(build)

    return asyncio.run(run())


def test_append_and_journal_write_make_as_many_calls_for_a_thousand_messages_as_for_one() -> None:
    few, many = calls_of_append(1), calls_of_append(1000)
    assert few == many and min(few) > 0


@pytest.mark.parametrize("module, grows", [(append_log, False), (append_log_python, True)], ids=["compiled", "plain"])
def test_only_the_plain_twin_stamps_with_calls_per_message(module: ModuleType, grows: bool) -> None:
    def calls(messages: int) -> int:
        turn = Turn(lambda: None, lambda: None)
        resources = SimpleNamespace(settings=SETTINGS, clock=lambda: 1, admission=Admission())
        wakers = turn if module is append_log else SimpleNamespace(wake=lambda log: None, keep_cached=lambda log: None)
        total = turn.tails if module is append_log else TailTotal()
        log = module.AppendLog(resources, PartitionIdentity(1, 1, 0, durability=Durability.MEMORY), wakers, total)
        batch = make_batch([b"x"] * messages)
        return calls_of(lambda: log.append(batch, messages, lambda outcome: None))

    one, thousand = calls(1), calls(1000)
    assert (thousand - one > 999) if grows else (thousand == one)


@pytest.mark.parametrize("module, grows", [(compiled, False), (plain, True)], ids=["compiled", "plain"])
def test_only_the_plain_twin_verifies_with_calls_per_message(module: ModuleType, grows: bool) -> None:
    """The twin is the specification of the compiled module; no server runs it."""
    batches = {count: make_batch([b"x"] * count) for count in (1, 1000)}
    one, thousand = (calls_of(lambda n=n: module.verify_batch(batches[n], n)) for n in (1, 1000))
    assert (thousand - one > 999) if grows else (thousand == one)
