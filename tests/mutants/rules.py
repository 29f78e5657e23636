"""The rules that `make mutants` takes out, one after another, and the tests that have to miss each of them.

A mutant is one exact replacement in the server's source. It names the one test, or few, that must fail: they are short,
they end also without the rule, and they are what the run on the unchanged copy takes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """path: from the root. old stands in it exactly once. tests: arguments of pytest."""

    name: str
    rule: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def is_compiled(self) -> bool:
        return self.path.endswith(".pyx")


STORAGE, TESTS = "shardserver/storage", "tests/storage"
DELETIONS = "test_a_crash_at_any_operation_leaves_a_partition_that_begins_at_one_of_its_segments"
ACKNOWLEDGED = f"{TESTS}/test_acknowledged.py"
LOG_FAULTS = f"{TESTS}/test_log_faults.py"
JOURNAL_RECOVERY, MOVES = f"{TESTS}/test_journal_recovery.py", f"{TESTS}/test_moves.py"
APPENDS = f"{TESTS}/test_append_log.py"
RULES, UNSYNCED = f"{TESTS}/test_rules.py", f"{TESTS}/test_unsynced_runs.py"
NEW_SEGMENTS = f"{TESTS}/test_new_segments.py"
SIMULATION = "tests/simulation/test_simulation.py"
BESIDE = "tests/io_uring/test_beside_the_loop.py"
REMOVAL, REMOVALS = "shardserver/io_uring/removal.pyx", "tests/io_uring/test_removal.py"
CRASHES = f"{LOG_FAULTS}::test_what_was_acknowledged_survives_a_crash_at_any_operation"
POWER_LOSS, KILL = f"{CRASHES}[0-power_loss]", f"{CRASHES}[0-kill]"

SYNCED_WRITE = f"{STORAGE}/synced_write.pyx"
START = (
    "        self._disk.start_synced_write(self._file, self._position, self._buffers, self._on_written, self.ended)\n"
)
WITHOUT_SYNC = """        from shardserver.storage.disk import tell_end
        if self._file.path.endswith("{suffix}"):
            write = self._disk.write(self._file, self._position, self._buffers, on_written=self._on_written)
            tell_end(write, self.ended)
            return 0
"""
READER, RECOVERY = f"{STORAGE}/journal_reader.py", f"{STORAGE}/recovery.py"
SAME_USE = "if writes and (header.sequence, header.nonce) != (writes[0].sequence, writes[0].nonce):"
PLACE = "if header is None or (header.journal_id, header.position) != (journal_id, position):"
COUNTS = "if metadata.terms.get(record.uid) == record.term and record.shard == metadata.shard:"

MUTANTS = [
    Mutant(
        "journal-sync",
        "8: a journal write is synced before it is answered",
        SYNCED_WRITE,
        START,
        WITHOUT_SYNC.format(suffix=".journal") + START,
        (f"{ACKNOWLEDGED}::test_under_fsync_a_completed_sync_covers_what_is_acknowledged",),
    ),
    Mutant(
        "run-sync",
        "2: a direct run is synced before it is answered",
        SYNCED_WRITE,
        START,
        WITHOUT_SYNC.format(suffix=".log") + START,
        (f"{ACKNOWLEDGED}::test_under_fsync_a_completed_sync_covers_what_is_acknowledged",),
    ),
    Mutant(
        "flush-sync",
        "10: a file of the journal is free only when what it holds is synced in segments",
        SYNCED_WRITE,
        "results = await disk.write_group([writes[number] for number in left])",
        "results = [await disk.write(*writes[number]) for number in left]",
        (POWER_LOSS,),
    ),
    Mutant(
        "unsynced-runs",
        "8: what a `write` topic's runs left unsynced is synced before the partition uses the journal",
        f"{STORAGE}/direct_run.py",
        "                await sync_written(self._disk, self._faults, segment.file, since, parts)\n",
        "",
        (f"{UNSYNCED}::test_a_small_append_goes_to_the_journal_behind_the_sync",),
    ),
    Mutant(
        "unsynced-fault",
        "20: they are written again when the sync of another file has failed",
        SYNCED_WRITE,
        "    while faults.count() != since:",
        "    while False:",
        (f"{UNSYNCED}::test_a_failed_sync_of_another_file_has_them_written_again",),
    ),
    Mutant(
        "sync-again",
        "20: a write is made again when the sync of another file has failed",
        SYNCED_WRITE,
        "        elif self._faults.count() != self._before:\n",
        "        elif False:\n",
        (f"{RULES}::test_a_write_whose_blocks_another_files_failed_sync_may_have_dropped_is_made_again",),
    ),
    Mutant(
        "flush-again",
        "20: so is a write of a group",
        SYNCED_WRITE,
        "if outcomes[number] is None] if faults.count() != before else []",
        "if outcomes[number] is None] if False else []",
        (f"{RULES}::test_a_write_whose_blocks_another_files_failed_sync_may_have_dropped_is_made_again",),
    ),
    Mutant(
        "prefix",
        "3: what is behind an unsynced direct run does not go to the journal",
        f"{STORAGE}/append_log.pyx",
        "        if self.running == DIRECT or self.fenced is not None",
        "        if self.running == DIRECT:\n            self.journaled_end = self.next_offset\n"
        "        if self.fenced is not None",
        (f"{RULES}::test_what_came_behind_a_direct_run_is_not_acknowledged_before_it_nor_without_it",),
    ),
    Mutant(
        "prefix-copied",
        "3: nor does what is in it",
        f"{STORAGE}/append_log.pyx",
        "        if self.running == DIRECT or self.fenced is not None",
        "        if self.fenced is not None",
        (f"{APPENDS}::TestEach::test_beside_a_direct_run_nothing_goes_to_the_journal_and_nothing_gets_an_offset",),
    ),
    Mutant(
        "visibility",
        "durability: polls see what is durable, and no more",
        f"{STORAGE}/append_log.pyx",
        "        return self.visible_end()\n",
        "        return self.next_offset\n",
        (f"{APPENDS}::TestEach::test_polls_see_what_is_as_durable_as_the_topic_promises_and_no_more",),
    ),
    Mutant(
        "cut-failed-run",
        "4: the leftover of a failed run is cut",
        f"{STORAGE}/partition_log.py",
        "            await cut_synced(self._disk, self.resources.faults, segment.file, segment.end)\n",
        "            pass\n",
        (f"{RULES}::test_what_a_run_without_room_has_left_is_cut",),
    ),
    Mutant(
        "cut-again",
        "4: its offsets are given to nobody before",
        f"{STORAGE}/direct_run.py",
        "            is_cut = await partition.cut_again(error)",
        "            is_cut = True",
        (f"{SIMULATION}::test_what_a_failed_run_has_left_and_nobody_could_cut_is_not_taken_for_what_came_after_it",),
    ),
    Mutant(
        "cut-torn-end",
        "4: a torn end is cut before the first append",
        f"{STORAGE}/partition_recovery.py",
        "        if end < file_bytes and not self._read_only:\n",
        "        if False:\n",
        (f"{RULES}::test_a_whole_leftover_behind_a_torn_one_does_not_come_back",),
    ),
    Mutant(
        "nonce",
        "9: a write carries its opening's nonce",
        READER,
        SAME_USE,
        "if writes and header.sequence != writes[0].sequence:",
        (f"{RULES}::test_a_valid_write_of_another_identity_at_the_end_is_no_part_of_the_log",),
    ),
    Mutant(
        "sequence",
        "9: a write carries its file's sequence",
        READER,
        SAME_USE,
        "if writes and header.nonce != writes[0].nonce:",
        (f"{RULES}::test_a_valid_write_of_another_identity_at_the_end_is_no_part_of_the_log",),
    ),
    Mutant(
        "position",
        "9: a write carries its position",
        READER,
        PLACE,
        "if header is None or header.journal_id != journal_id:",
        (f"{RULES}::test_a_valid_write_of_another_identity_at_the_end_is_no_part_of_the_log",),
    ),
    Mutant(
        "journal-id",
        "9: a write carries its journal's id",
        READER,
        PLACE,
        "if header is None or header.position != position:",
        (f"{RULES}::test_a_valid_write_of_another_identity_at_the_end_is_no_part_of_the_log",),
    ),
    Mutant(
        "tail-nonce",
        "9: so does one that proves damage before it",
        READER,
        "lambda one: (one.sequence, one.nonce) == (first.sequence, first.nonce),",
        "lambda one: one.sequence == first.sequence,",
        (f"{RULES}::test_a_valid_write_of_another_identity_at_the_end_is_no_part_of_the_log",),
    ),
    Mutant(
        "torn-tail",
        "9: an invalid write is a torn tail only if nothing valid follows it",
        READER,
        "            if header is not None and proves(header):\n",
        "            if False:\n",
        (f"{JOURNAL_RECOVERY}::test_a_valid_write_behind_an_invalid_one_is_damage",),
    ),
    Mutant(
        "read-error",
        "9: a short read is never the end of the log",
        READER,
        'raise CorruptionError(self.file.path, self._filled + got, f"{self.file.file_bytes} bytes of journal")',
        "break",
        (f"{JOURNAL_RECOVERY}::test_a_read_that_ends_early_is_never_the_end_of_the_log",),
    ),
    Mutant(
        "write-again",
        "16: the last journal write is written again before it is served",
        READER,
        "    if not read_only:\n        await _write_again(disk, faults, newest)\n",
        "",
        (f"{JOURNAL_RECOVERY}::test_what_a_recovery_has_found_survives_the_next_power_loss",),
    ),
    Mutant(
        "run-again",
        "16: segment bytes past the hint are written again",
        f"{STORAGE}/segment.py",
        "    if rewrite is not None and result.end > start.position:\n",
        "    if False:\n",
        (KILL,),
    ),
    Mutant(
        "segment-name",
        "5: a segment's directory is synced before its first run",
        f"{STORAGE}/new_segments.py",
        "    steps += [Step(Act.SYNC_DIRECTORY, chain, one.directory) for chain, one in enumerate(wanted)]\n",
        "",
        (f"{ACKNOWLEDGED}::test_a_segment_whose_name_was_not_synced_before_a_kill_keeps_what_is_written_to_it_later",),
    ),
    Mutant(
        "segment-header",
        "5: and its header",
        f"{STORAGE}/new_segments.py",
        "    steps += [Step(Act.SYNC, chain, one.path) for chain, one in enumerate(wanted)]\n",
        "",
        (f"{NEW_SEGMENTS}::test_a_crash_at_any_step_of_a_first_flush_loses_nothing",),
    ),
    Mutant(
        "steps-again",
        "20: what was made beside a failed sync of another file does not count",
        SYNCED_WRITE,
        "    if faults.count() != before:\n        doubt",
        "    if False:\n        doubt",
        (f"{NEW_SEGMENTS}::test_what_was_made_beside_another_files_failed_sync_does_not_count",),
    ),
    Mutant(
        "recovered-names",
        "16: what a recovery found, and found gone, stays so after a power loss, names too",
        RECOVERY,
        "        await _sync_names(logs, directory)\n",
        "        pass\n",
        (
            f"{TESTS}/test_retention_faults.py::{DELETIONS}[0-kill]",
            f"{NEW_SEGMENTS}::test_a_crash_at_any_step_of_a_first_flush_loses_nothing[kill]",
        ),
    ),
    Mutant(
        "partition-name",
        "5: so is that of the partition",
        f"{STORAGE}/directory.py",
        "    steps += [Step(Act.SYNC_DIRECTORY, ALL, one) for one in parents]\n",
        "",
        (f"{RULES}::test_a_partitions_directory_has_a_synced_name_before_its_first_segment_is_made",),
    ),
    Mutant(
        "partition-anew",
        "20: and made anew after a failed sync of its name; so are those of a first start",
        f"{STORAGE}/directory.py",
        "        steps.append(Step(Act.REMOVE_DIRECTORY, chain, directory))\n",
        "",
        (f"{RULES}::test_a_directory_whose_name_a_failed_sync_may_have_dropped_is_made_anew",),
    ),
    Mutant(
        "journal-anew",
        "20: a new journal whose name's sync failed is built anew",
        f"{STORAGE}/directory.py",
        "        await disk.rename(target, path)\n        raise\n",
        "        raise\n",
        (f"{RULES}::test_a_journal_whose_name_a_failed_sync_may_have_dropped_is_built_anew",),
    ),
    Mutant(
        "data-directory-anew",
        "20: so is a new data directory",
        "shardserver/supervisor/data_directory.py",
        "            self._take_back(made)\n",
        "",
        ("tests/supervisor/test_data_directory.py",),
    ),
    Mutant(
        "metadata-name",
        "17: a start syncs the newest metadata generation's name before it goes on there",
        f"{STORAGE}/metadata_log.py",
        "        await sync_directory_noted(self._disk, self._faults, self._directory, self._faults.number)\n",
        "",
        (f"{TESTS}/test_metadata_log.py",),
    ),
    Mutant(
        "metadata-anew",
        "20: a metadata generation whose name's sync failed is taken back",
        f"{STORAGE}/metadata_log.py",
        "            await self._disk.unlink(self._path(generation))\n            raise\n",
        "            raise\n",
        (f"{RULES}::test_a_metadata_generation_whose_name_a_failed_sync_may_have_dropped_is_not_gone_on_with",),
    ),
    Mutant(
        "segment-again",
        "20: a segment whose first run failed is there at any moment",
        f"{STORAGE}/segment.py",
        "    await rewrite_header(disk, faults, segment)\n"
        "    await cut_synced(disk, faults, segment.file, BLOCK_BYTES)\n",
        "    await disk.unlink(segment.path)\n    segment.file = await disk.open(segment.path, create=True)\n"
        "    block = aligned_buffer(BLOCK_BYTES)\n"
        "    block[:] = encode_header(SegmentHeader(1, segment.base_offset, 0))\n"
        "    await write_synced(disk, faults, segment.file, 0, [block])\n",
        (f"{RULES}::test_a_segment_whose_first_run_failed_is_never_missing",),
    ),
    Mutant(
        "snapshot-name",
        "13: a snapshot's name is synced before it counts",
        f"{STORAGE}/offsets.py",
        "    await disk.rename(building, target)\n    await sync_directory_noted(disk, faults, directory, since)\n",
        "    await disk.rename(building, target)\n",
        (POWER_LOSS,),
    ),
    Mutant(
        "last-free-file",
        "10: the last free file of the journal belongs to the next opening",
        f"{STORAGE}/journal.py",
        "if len(free) < (1 if self.current is None else 2):",
        "if len(free) < 1:",
        (f"{RULES}::test_a_ring_that_is_full_keeps_a_file_for_the_next_opening",),
    ),
    Mutant(
        "oldest-live",
        "10: a file is used again only when all in it is in segments",
        f"{STORAGE}/shard_turn.pyx",
        "            oldest = min(self._pinned)\n",
        "            pass\n",
        (CRASHES,),
    ),
    Mutant(
        "uncovered-offsets",
        "10: and when a snapshot covers its offsets",
        f"{STORAGE}/shard_turn.pyx",
        "            oldest = min(oldest, self._uncovered_offsets)\n",
        "            pass\n",
        (POWER_LOSS,),
    ),
    Mutant(
        "group-nogil",
        "29: a group is written without the interpreter's lock",
        "shardserver/io_uring/group.pyx",
        "        with nogil:\n            write_and_sync",
        "        if True:\n            write_and_sync",
        (f"{BESIDE}::test_the_loop_goes_on_while_a_group_is_written",),
    ),
    Mutant(
        "group-at-once",
        "29: and asks nothing of the interpreter for each file",
        "shardserver/io_uring/threads.py",
        "            if not any(numbers):  # else the loop",
        "            if False:  # else the loop",
        (f"{BESIDE}::test_a_thread_runs_as_much_python_for_a_group_as_for_one_file",),
    ),
    Mutant(
        "steps-nogil",
        "29: so are the names and files of a group made",
        "shardserver/io_uring/steps.pyx",
        "        with nogil:\n",
        "        if True:\n",
        (f"{BESIDE}::test_the_loop_goes_on_while_files_are_made",),
    ),
    Mutant(
        "steps-at-once",
        "29: nor for each name",
        "shardserver/io_uring/threads.py",
        "            if program.has_failed:",
        "            if True:",
        (f"{BESIDE}::test_a_thread_runs_as_much_python_for_the_files_of_a_group_as_for_one",),
    ),
    Mutant(
        "removal-nogil",
        "29: and a file removed",
        REMOVAL,
        "    with nogil:\n",
        "    if True:\n",
        (f"{BESIDE}::test_the_loop_goes_on_while_a_file_is_removed",),
    ),
    Mutant(
        "removal-steps",
        "latency: its space goes a mebibyte at a time",
        REMOVAL,
        "STEP = 1 << 20\n",
        "STEP = 1 << 40\n",
        (f"{REMOVALS}::test_a_large_file_loses_its_name_and_then_a_mebibyte_at_a_time",),
    ),
    Mutant(
        "removal-links",
        "5: and only if no name leads to it any more",
        REMOVAL,
        " or found.st_nlink > 0:",
        ":",
        (f"{REMOVALS}::test_a_file_with_another_name_keeps_its_bytes",),
    ),
    Mutant(
        "removed-bytes",
        "5: a read in a deleted segment finds no damage",
        f"{STORAGE}/segment_reader.py",
        "        if self.segment.closed:  # deleted:",
        "        if False:  # deleted:",
        (f"{TESTS}/test_retention.py::test_bytes_that_went_while_a_poll_read_them_are_not_damaged_ones",),
    ),
    Mutant(
        "hint",
        "11: a start reads a segment from the newest hint on",
        f"{STORAGE}/partition_recovery.py",
        "        if hint is not None and hint.segment_base == active.base_offset:\n",
        "        if False:\n",
        (f"{RULES}::test_a_start_reads_as_much_of_a_large_segment_as_of_a_small_one",),
    ),
    Mutant(
        "hint-anew",
        "11: a run makes the hint that was kept for the next checkpoint stale",
        f"{STORAGE}/append_log.pyx",
        "        self.flushed_end, self.encoded_hint = end, None\n",
        "        self.flushed_end = end\n",
        (f"{NEW_SEGMENTS}::test_a_hint_is_encoded_anew_when_its_partition_has_a_new_run_or_segment",),
    ),
    Mutant(
        "index-against-data",
        "6: an index that leads to no batch is made anew from the data",
        f"{STORAGE}/partition_reader.py",
        "                if segment.index_is_stored:\n",
        "                if False:\n",
        (f"{TESTS}/test_damage.py::test_an_index_file_is_only_a_hint",),
    ),
    Mutant(
        "index-checksum",
        "6: an index counts by its checksum",
        f"{STORAGE}/index.py",
        "    if checksum != xxhash.xxh3_64_intdigest(bytes(raw[: _HEADER.size - 8]) + bytes(8) + body):\n",
        "    if False:\n",
        (f"{TESTS}/test_damage.py::test_a_flipped_bit_in_an_index_leads_no_search_by_time_astray",),
    ),
    Mutant(
        "offsets-cut",
        "13: committed offsets are cut to the recovered end",
        f"{STORAGE}/committed_offsets.py",
        "if partition.fenced is not None or offset < partition.next_offset:",
        "if True:",
        (f"{MOVES}::test_a_memory_topics_offset_that_a_crash_has_cut_moves_as_it_was_cut",),
    ),
    Mutant(
        "cut-offsets-kept",
        "13: cut offsets go into the first write",
        f"{STORAGE}/committed_offsets.py",
        "        self._put(OffsetRecord(partition, key[1], key[2], max(0, end), flags))\n",
        "",
        (f"{RULES}::test_an_offset_that_was_cut_stays_cut_when_the_log_has_grown_past_it_again",),
    ),
    Mutant(
        "cut-offsets-first",
        "13: before anything else is appended",
        f"{STORAGE}/cut_offsets.py",
        "            await self._publish_all()\n        elif",
        "            pass\n        elif",
        (f"{RULES}::test_an_offset_that_was_cut_stays_cut_when_the_log_has_grown_past_it_again",),
    ),
    Mutant(
        "cut-offsets-wait",
        "13: without room for them nothing else is appended",
        f"{STORAGE}/cut_offsets.py",
        "            self._resources.admission.refusal = full\n",
        "",
        ("tests/storage/test_full_disk.py::test_nothing_is_appended_before_cut_offsets_have_room_in_the_journal",),
    ),
    Mutant(
        "ring-without-a-file",
        "10: a ring whose last free file was taken gets one more when there is room",
        f"{STORAGE}/journal_growth.py",
        "lambda journal: journal.current is None and not journal.free_files",
        "lambda journal: False",
        ("tests/storage/test_full_disk.py::test_a_journal_without_a_free_file_takes_appends_again_when_there_is_room",),
    ),
    Mutant(
        "term",
        "12: a record counts under its partition's present term only",
        RECOVERY,
        COUNTS,
        "if record.uid in metadata.terms and record.shard == metadata.shard:",
        (f"{RULES}::test_records_under_a_former_term_count_for_nothing",),
    ),
    Mutant(
        "shard",
        "12: and for its present shard only",
        RECOVERY,
        COUNTS,
        "if metadata.terms.get(record.uid) == record.term:",
        (f"{RULES}::test_records_of_another_shard_count_for_nothing",),
    ),
    Mutant(
        "lost-metadata",
        "17: a uid that metadata does not know yet refuses the start",
        RECOVERY,
        "            if record.uid >= metadata.next_uid:\n",
        "            if False:\n",
        (f"{RULES}::test_records_of_a_partition_that_metadata_has_never_heard_of_refuse_the_start",),
    ),
    Mutant(
        "timestamps",
        "19: timestamps of a partition never go back",
        f"{STORAGE}/append_log.pyx",
        "        self.last_timestamp = max(self.last_timestamp, now)\n",
        "        self.last_timestamp = now\n",
        (f"{APPENDS}::TestEach::test_an_end_of_recovery_goes_on_where_the_journal_ended",),
    ),
    Mutant(
        "parked",
        "rings: the producer looks at parked after its tail is shown",
        "shardserver/router/ring.pyx",
        "return ring_load_u32(self._memory + PARKED) == 1 and ring_exchange_u32(self._memory + PARKED, 0) == 1",
        "return False",
        ("tests/router/test_ring.py::test_each_park_brings_one_doorbell",),
    ),
    Mutant(
        "fence",
        "rings: a full fence between the two",
        "shardserver/router/ring.pyx",
        "        ring_full_fence()\n        return ring_load_u32",
        "        return ring_load_u32",
        ("tests/router/test_ring_schedules.py",),
    ),
    Mutant(
        "park-fence",
        "rings: and its pair, between the consumer's parked and its look at tail",
        "shardserver/router/ring.pyx",
        "        ring_full_fence()  # between our store of parked",
        "        # between our store of parked",
        ("tests/router/test_ring_schedules.py",),
    ),
    Mutant(
        "dead-ring",
        "rings: what a dead shard had published counts",
        "shardserver/router/peer.py",
        "            while self.drain():\n                pass\n",
        "            pass\n",
        ("tests/router/test_peer.py::test_what_a_dead_process_had_published_counts",),
    ),
    Mutant(
        "loans",
        "arena: lent blocks are given back",
        "shardserver/router/peer.py",
        "            self._lent.pop(number, None)\n",
        "            pass\n",
        ("tests/router/test_peer.py::test_the_last_view_that_goes_gives_the_buffers_back",),
    ),
    Mutant(
        "blocks",
        "arena: a dropped block is free again",
        "shardserver/memory/arena.pyx",
        "            self._arena._buddies.give_back((self.position - self._arena._first) // UNIT, self._units)\n",
        "",
        ("tests/memory/test_arena.py",),
    ),
    Mutant(
        "lost-floor",
        "repeats: a floor above the recovered end says nothing",
        "shardserver/core/local_owner.py",
        "call.floor if call.floor <= partition.recovered_end else 0",
        "call.floor",
        ("tests/core/test_local_owner.py::test_a_floor_above_the_recovered_end_is_of_answers_that_were_lost",),
    ),
    Mutant(
        "replicas",
        "metadata: a change is answered when all replicas have it",
        "shardserver/core/replication.py",
        "            await asyncio.wait(waits)\n",
        "            pass\n",
        ("tests/core/test_replicas.py::test_a_change_is_in_every_replica_when_it_is_answered",),
    ),
]
