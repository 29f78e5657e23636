"""A bit that flips at rest: a start on a copy of the disk must report it or serve around it, and never serve it.

Sealed segments, their indexes and journals. The very last write of a journal is left out: its damage cannot be told
from a torn write (journal_reader.py); so is a partition's last segment, whose damaged end looks torn too.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shardserver.errors import CorruptionError, StorageError
from shardserver.storage import journal_format as fmt
from shardserver.storage.partition_log import PartitionLog
from shardserver.storage.segment import BLOCK_BYTES, decode_header
from tests.batches import messages_of
from tests.core.shard_world import ProcessEnded, until
from tests.simulation.disk import WorldDisk
from tests.simulation.oracle import Contents, Oracle, require
from tests.simulation.world import World

RECENT_WRITES = 12
HEADER_SHARE, LIVE_SHARE = 0.15, 0.8
MANY = 1 << 30
READ_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Flip:
    kind: str  # segment, index, journal
    path: str
    position: int
    bit: int


def choose_flip(disk: WorldDisk, chance: random.Random) -> Flip | None:
    """None: there is no file of the kind that was drawn."""
    kind = chance.choice(("segment", "segment", "index", "journal"))
    if kind == "journal":
        place = _place_in_journal(disk, chance)
    else:
        sealed = _sealed(disk)
        paths = sealed if kind == "segment" else [path.removesuffix(".log") + ".index" for path in sealed]
        paths = [path for path in paths if path in disk.files and disk.files[path].current]
        place = _place_in(disk, chance.choice(paths), chance) if paths else None
    return None if place is None else Flip(kind, *place, chance.randrange(8))


def _sealed(disk: WorldDisk) -> list[str]:
    """Segments with a successor."""
    directories: dict[str, list[str]] = {}
    for path in sorted(disk.files):
        if path.startswith("data/partitions/") and path.endswith(".log"):
            directories.setdefault(os.path.dirname(path), []).append(path)
    sealed = []
    for paths in directories.values():
        if decode_header(memoryview(bytes(disk.files[paths[-1]].current[:BLOCK_BYTES]))) is not None:
            sealed += paths[:-1]
    return sealed


def _place_in(disk: WorldDisk, path: str, chance: random.Random) -> tuple[str, int]:
    length = len(disk.files[path].current)
    return path, chance.randrange(min(64, length) if chance.random() < HEADER_SHARE else length)


def _place_in_journal(disk: WorldDisk, chance: random.Random) -> tuple[str, int] | None:
    paths = sorted(path for path in disk.files if path.endswith(".journal"))
    if not paths:
        return None
    directory = os.path.dirname(chance.choice(paths))
    paths = [path for path in paths if os.path.dirname(path) == directory]
    writes = sorted(
        (one.sequence, one.position, one.length, path) for path in paths for one in _writes_of(disk.files[path].current)
    )
    if len(writes) > 1 and chance.random() < LIVE_SHARE:
        _, position, length, path = chance.choice(writes[-RECENT_WRITES:-1])
        return path, position + chance.randrange(length)
    path = chance.choice(paths)
    position = chance.randrange(len(disk.files[path].current))
    _, start, length, last_path = writes[-1] if writes else (0, 0, 0, "")
    return None if path == last_path and start <= position < start + length else (path, position)


def _writes_of(raw: bytearray) -> Iterable[fmt.WriteHeader]:
    view = memoryview(bytes(raw))
    for position in range(fmt.BLOCK_BYTES, len(view), fmt.BLOCK_BYTES):
        header = fmt.decode_write(view[position:]) if view[position : position + 8] == fmt.WRITE_MAGIC else None
        if header is not None and header.position == position:
            yield header


async def check_flip(world: World, flip: Flip, *, skip_damaged: bool) -> None:
    """All are dead. A start on a copy, with the bit flipped; the world is afterwards as it was."""
    disk, oracle, settings = world.disk, world.oracle, world.settings
    world.disk, world.oracle = disk.fork(world.chance.getrandbits(32)), copy.deepcopy(oracle)
    world.settings = replace(settings, skip_damaged=skip_damaged)
    world.disk.flip(flip.path, flip.position, flip.bit)
    try:
        outcome = await _start_and_look(world, flip, disk)
    finally:
        world.server.end()
        world.disk, world.oracle, world.settings = disk, oracle, settings
    world.counts[f"flipped bits: {flip.kind}, {outcome}"] += 1


async def _start_and_look(world: World, flip: Flip, original: WorldDisk) -> str:
    refusal = await _start(world)
    if refusal is not None:
        place = os.path.dirname(refusal.path)
        require(flip.kind == "journal" and place == os.path.dirname(flip.path), f"{flip}: refused for {refusal}")
        return "reported"
    if flip.kind != "segment":
        await world.check_all()
        return "no effect"
    return await _look_at_segment(world, flip, original)


async def _start(world: World) -> CorruptionError | None:
    """All serve, or one refuses to: why."""
    world.begin(world.shard_count)

    def refusals() -> list[BaseException]:
        ended = [one.recovery for one in world.server.live.values() if one.recovery is not None and one.recovery.done()]
        return [error for task in ended if (error := task.exception()) is not None]

    await until(lambda: bool(refusals()) or all(one.has_recovered for one in world.server.live.values()))
    for error in refusals():
        if not isinstance(error, CorruptionError | ProcessEnded):
            raise error
    return next((error for error in refusals() if isinstance(error, CorruptionError)), None)


async def _look_at_segment(world: World, flip: Flip, original: WorldDisk) -> str:
    await world.server.wait_settled()
    hit = int(flip.path.split("/")[2], 16)
    live = {partition.uid: partition.shard for _, partition in world.server[0].metadata.live_partitions()}
    for uid in [uid for uid in live if uid != hit]:
        await world.check_partition(uid, live[uid])
    if hit not in live:
        return "no effect"
    log = world.server[live[hit]].logs.partition(hit)
    if log.set_aside is None:
        require(log.fenced is None, f"{flip}: the partition is fenced: {log.fenced}")
    stored = [bytes(node.current) for path, node in original.files.items() if _may_hold(path, flip)]
    seen = await _read_around(log, stored)
    return _judge(world.oracle, flip, log, seen)


def _may_hold(path: str, flip: Flip) -> bool:
    return path.endswith(".journal") or os.path.dirname(path) == os.path.dirname(flip.path)


@dataclass(frozen=True, slots=True)
class Seen:
    """numbers: by offset. damaged: offsets where a read said so."""

    numbers: dict[int, int]
    damaged: set[int]


async def _read_around(log: PartitionLog, stored: list[bytes]) -> Seen:
    """All that is served, each batch bit by bit as it stood there before the flip."""
    seen, offset = Seen({}, set()), log.first_offset
    while offset < log.high_watermark:
        try:
            result = await log.reader.read(offset, MANY, READ_BYTES)
        except StorageError:
            seen.damaged.add(offset)
            offset += 1
            continue
        if not result.count:
            break
        for batch in map(bytes, result.buffers):
            require(any(batch in one for one in stored), f"partition {log.uid}: {offset}: changed bytes are served")
            seen.numbers.update((place, int(payload.split(b" ")[0])) for place, payload in messages_of(batch))
        offset = result.last_offset + 1
    return seen


def _judge(oracle: Oracle, flip: Flip, log: PartitionLog, seen: Seen) -> str:
    missing = set(range(log.first_offset, log.high_watermark)) - set(seen.numbers)
    known = oracle.known_of(log.uid)
    wrong = {place: number for place, number in seen.numbers.items() if known.get(place, number) != number}
    require(not wrong, f"{flip}: {wrong} instead of {[known[place] for place in wrong]}")
    if log.set_aside is not None:
        require(isinstance(log.set_aside, CorruptionError), f"{flip}: set aside for {log.set_aside}")
        return "reported"
    base = int(os.path.basename(flip.path).removesuffix(".log"))
    end = min((one.base_offset for one in log.segments if one.base_offset > base), default=log.high_watermark)
    require(missing <= set(range(base, end)), f"{flip}: {missing} are gone, the segment has {base} to {end}")
    said = len(seen.damaged) + log.reader.skipped_messages
    require(len(missing) <= said, f"{flip}: {missing} are gone, {said} were said to be")
    if not missing:
        oracle.check_contents(log.uid, known, Contents(log.first_offset, list(seen.numbers.values())))
    return "reported" if missing else "no effect"
