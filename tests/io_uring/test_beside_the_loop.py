"""What the disk's threads ask of the interpreter, whose lock they share with the loop (storage rule 29). No times."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shardserver.io_uring import threads
from shardserver.io_uring.group import SyncsEnd, write_group
from shardserver.io_uring.removal import remove_file
from shardserver.io_uring.steps import Steps
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage.disk import ALL, Act, Step
from tests.io_uring.test_disk_contract import BLOCK, make_engine

GROUP = 64  # storage/flush.py: GROUP_PARTITIONS
MOST_TRIES = 500

Work = Callable[[Any, list[Any], int], Awaitable[object]]


@pytest.fixture
def events() -> Iterator[list[str]]:
    """Calls, of Python and of C, and returns inside the work of an operation, in threads that start in the test."""
    found: list[str] = []
    inside = threading.local()

    def note(frame: FrameType, event: str, argument: object) -> None:
        is_work = frame.f_back is not None and frame.f_back.f_code.co_name == "in_thread"
        if is_work and event == "call":
            inside.now = frame.f_code.co_filename == threads.__file__
        if getattr(inside, "now", False):
            found.append(f"{event} {frame.f_code.co_name} {argument}")
        if is_work and event == "return":
            inside.now = False

    threading.setprofile(note)
    yield found
    threading.setprofile(None)  # type: ignore[arg-type]  # typeshed knows no None here


def events_of(tmp_path: Path, events: list[str], engine: str, work: Work, amount: int) -> int:
    """What the threads of a new engine did for one operation."""

    async def life() -> int:
        disk = make_engine(engine)
        files = [await disk.open(str(tmp_path / f"{engine} {number}"), create=True) for number in range(amount)]
        events.clear()
        await work(disk, files, amount)
        found = len(events)
        for file in files:
            await disk.close(file)
            await disk.unlink(file.path)
        await disk.shut_down()
        return found

    return asyncio.run(life())


async def write_a_group(disk: Any, files: list[Any], amount: int) -> None:
    block = aligned_buffer(BLOCK)
    assert await disk.write_group([(file, 0, [block, block]) for file in files]) == [None] * amount


async def write_much(disk: Any, files: list[Any], amount: int) -> None:
    await disk.write(files[0], 0, [aligned_buffer(amount * BLOCK)], sync=True)


async def read_much(disk: Any, files: list[Any], amount: int) -> None:
    await disk.read(files[0], 0, aligned_buffer(amount * BLOCK))


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_a_thread_runs_as_much_python_for_a_group_as_for_one_file(
    tmp_path: Path, events: list[str], engine: str
) -> None:
    one, one_each, group = (
        events_of(tmp_path, events, engine, write_a_group, amount) for amount in (1, threads.GROUP_THREADS, GROUP)
    )
    assert 0 < one * threads.GROUP_THREADS == one_each == group


@pytest.mark.parametrize("work", [write_much, read_much])
def test_a_thread_runs_as_much_python_for_a_mebibyte_as_for_a_block(
    tmp_path: Path, events: list[str], work: Work
) -> None:
    counts = [events_of(tmp_path, events, "threads", work, amount) for amount in (1, 256)]
    assert 0 < counts[0] == counts[1]


@pytest.mark.parametrize("work", [write_much, read_much])
def test_on_io_uring_no_thread_takes_part_in_a_write_or_read(tmp_path: Path, events: list[str], work: Work) -> None:
    assert events_of(tmp_path, events, "io_uring", work, 4) == 0


def steps_of(directory: Path, amount: int) -> list[Step]:
    """A directory and a file of each, synced, with what belongs to none alone."""
    steps = []
    for chain in range(amount):
        steps.append(Step(Act.MAKE_DIRECTORY, chain, f"{directory}/{chain}"))
        steps.append(Step(Act.UNLINK, chain, f"{directory}/{chain}/new"))
        steps.append(Step(Act.CREATE, chain, f"{directory}/{chain}/new", aligned_buffer(BLOCK)))
        steps.append(Step(Act.SYNC, chain, f"{directory}/{chain}/new"))
        steps.append(Step(Act.CLOSE, chain, f"{directory}/{chain}/new"))
        steps.append(Step(Act.RENAME, chain, f"{directory}/{chain}/new", f"{directory}/{chain}/old"))
        steps.append(Step(Act.SYNC_DIRECTORY, chain, f"{directory}/{chain}"))
    return [*steps, Step(Act.SYNC_DIRECTORY, ALL, str(directory))]


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_a_thread_runs_as_much_python_for_the_files_of_a_group_as_for_one(
    tmp_path: Path, events: list[str], engine: str
) -> None:
    async def make(disk: Any, files: list[Any], amount: int) -> None:
        end = await disk.do_steps(amount, steps_of(tmp_path, amount))
        assert end == ([None] * amount, 0, {})

    counts = [events_of(tmp_path, events, engine, make, amount) for amount in (1, GROUP)]
    assert 0 < counts[0] == counts[1]


@pytest.fixture
def lock_is_kept() -> Iterator[None]:
    """A thread that runs Python keeps the interpreter's lock until it lets go of it by itself."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(former)


@pytest.mark.usefixtures("lock_is_kept")
def test_the_loop_goes_on_while_a_group_is_written(tmp_path: Path) -> None:
    """Once in some tries it wakes before the thread has come back; it never would if the thread kept the lock."""
    block = aligned_buffer(BLOCK)
    with open(tmp_path / "a", "wb") as file:
        group = [(file.fileno(), 0, [block] * GROUP)]
        assert any(loop_went_on_beside(lambda: write_group(group, SyncsEnd())) for _ in range(MOST_TRIES))


@pytest.mark.usefixtures("lock_is_kept")
def test_the_loop_goes_on_while_files_are_made(tmp_path: Path) -> None:
    programs = [Steps(4, steps_of(tmp_path, 4)) for _ in range(50)]  # here: memory for them lets go of the lock
    assert any(loop_went_on_beside(lambda one=one: one.run(os.O_DIRECT)) for one in programs)


@pytest.mark.usefixtures("lock_is_kept")
def test_the_loop_goes_on_while_a_file_is_removed(tmp_path: Path) -> None:
    for number in range(50):
        with open(tmp_path / str(number), "wb") as file:
            file.truncate(2 << 30)  # without a block: its steps take 3 ms
    assert any(loop_went_on_beside(lambda one=one: remove_file(str(one))) for one in tmp_path.iterdir())


def test_a_thread_that_keeps_the_lock_is_noticed(lock_is_kept: None) -> None:
    assert not any(loop_went_on_beside(lambda: sum(range(10_000))) for _ in range(20))


def loop_went_on_beside(work: Callable[[], object]) -> bool:
    began, ended = threading.Lock(), False
    began.acquire()

    def in_thread() -> None:
        nonlocal ended
        began.release()
        work()
        ended = True

    thread = threading.Thread(target=in_thread)
    thread.start()
    began.acquire()
    went_on = not ended
    thread.join()
    return went_on
