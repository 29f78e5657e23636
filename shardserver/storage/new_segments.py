"""New segments, of many partitions at a time: each with its directory and identity where there is none yet.

All is durable before the first run of any of them (storage rule 5), in two calls for a group as for one. Two, as
nothing may be put into a directory while a failed sync, also of a file that is not of the group, may have dropped its
name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from shardserver.errors import StorageError
from shardserver.memory.aligned import aligned_buffer
from shardserver.storage import identity_file
from shardserver.storage.directory import make_synced_directories
from shardserver.storage.disk import Act, Disk, Step
from shardserver.storage.index import index_path
from shardserver.storage.resources import LogResources
from shardserver.storage.segment import BLOCK_BYTES, Segment, SegmentHeader, encode_header, segment_path
from shardserver.storage.synced_write import SyncFaults, do_steps_noted

if TYPE_CHECKING:
    from shardserver.storage.partition_log import PartitionLog

# So many are described before the loop has its turn (storage rule 29).
DESCRIBED_AT_ONCE = 8


class NewSegment(NamedTuple):
    """label: what the identity beside it is to say; empty: none is written."""

    directory: str
    header: SegmentHeader
    label: bytes = b""

    @property
    def path(self) -> str:
        return segment_path(self.directory, self.header.base_offset)

    def made(self, file: object) -> Segment:
        header = self.header
        return Segment(
            self.path, header.base_offset, header.last_timestamp, file=file, follows_hole=header.follows_hole
        )


async def make_segments(resources: LogResources, partitions: Sequence[PartitionLog]) -> list[StorageError | None]:
    """The segment that the next run of each goes into; each needs one. An error for each that has not got it."""
    failed: dict[PartitionLog, StorageError] = {}
    await _make_directories(resources, [one for one in partitions if not one.directory_exists], failed)
    wanted: dict[PartitionLog, NewSegment] = {}
    for number, one in enumerate(partitions, 1):
        if one not in failed and not await _emptied(one, failed):
            wanted[one] = one.describe_segment()
        if number % DESCRIBED_AT_ONCE == 0:
            await asyncio.sleep(0)
    made = await create_segments(resources.disk, resources.faults, list(wanted.values()))
    for (one, new), segment in zip(wanted.items(), made, strict=True):
        if isinstance(segment, StorageError):
            failed[one] = segment
        else:
            one.add_segment(segment)
            await _keep_label(one, new.label)
    return [failed.get(one) for one in partitions]


async def _make_directories(
    resources: LogResources, partitions: Sequence[PartitionLog], failed: dict[PartitionLog, StorageError]
) -> None:
    if not partitions:
        return
    directories = [one.directory for one in partitions]
    errors = await make_synced_directories(resources.disk, resources.faults, directories)
    for one, error in zip(partitions, errors, strict=True):
        one.directory_exists = error is None
        if error is not None:
            failed[one] = error


async def _emptied(one: PartitionLog, failed: dict[PartitionLog, StorageError]) -> bool:
    """Its active segment is used again; or that has failed."""
    try:
        return await one.empty_active()
    except StorageError as error:
        failed[one] = error
        return True


async def _keep_label(one: PartitionLog, written: bytes) -> None:
    """The metadata may have changed while its first identity was written."""
    if written and written != one.identity.label():
        with contextlib.suppress(StorageError):  # the next start looks again
            await one.keep_identity()


async def create_segments(disk: Disk, faults: SyncFaults, wanted: Sequence[NewSegment]) -> list[Segment | StorageError]:
    """Header, sync, directory sync: all before the first run. Replaces what a failed try left."""
    if not wanted:
        return []
    errors, files = await do_steps_noted(disk, faults, len(wanted), _steps(wanted))
    return [error or one.made(files[one.path]) for one, error in zip(wanted, errors, strict=True)]


async def create_segment(disk: Disk, faults: SyncFaults, directory: str, header: SegmentHeader) -> Segment:
    """As create_segments, of one. Raises StorageError."""
    (made,) = await create_segments(disk, faults, [NewSegment(directory, header)])
    if isinstance(made, StorageError):
        raise made
    return made


def _steps(wanted: Sequence[NewSegment]) -> list[Step]:
    """Kind by kind: the first sync writes the file system's journal for all, the others find it written."""
    headers = aligned_buffer(len(wanted) * BLOCK_BYTES)
    labelled = [(chain, one) for chain, one in enumerate(wanted) if one.label]
    steps: list[Step] = []
    for chain, one in labelled:
        block = identity_file.identity_block(one.header.uid, one.label)
        steps += identity_file.build_steps(chain, one.directory, block)
    for chain, one in enumerate(wanted):
        block = headers[chain * BLOCK_BYTES : (chain + 1) * BLOCK_BYTES]
        block[:] = encode_header(one.header)
        steps.append(Step(Act.UNLINK, chain, index_path(one.directory, one.header.base_offset)))
        steps.append(Step(Act.UNLINK, chain, one.path))
        steps.append(Step(Act.CREATE, chain, one.path, block))
    steps += [identity_file.sync_step(chain, one.directory) for chain, one in labelled]
    steps += [Step(Act.SYNC, chain, one.path) for chain, one in enumerate(wanted)]
    for chain, one in labelled:
        steps += identity_file.rename_steps(chain, one.directory)
    steps += [Step(Act.SYNC_DIRECTORY, chain, one.directory) for chain, one in enumerate(wanted)]
    return steps
