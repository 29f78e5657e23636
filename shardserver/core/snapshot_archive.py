"""What get_snapshot gives: a ZIP archive with what one would look at first when a server misbehaves.

Made by a process of its own (`python -m`): walking the directory and packing are seconds of Python (storage rule 29).

Nothing secret is in it: of processes no command line and no environment, of the configuration the tree, which has no
secrets, and no message and no hash. The peer runs commands of the system for it; what those would show
of other users' processes is left out on purpose.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import psutil

from shardserver.protocol.statistics import Statistics
from shardserver.protocol.system import SnapshotRequest

ALL = 100
# A directory of many thousand partitions is told by its beginning.
MAX_PATHS = 20_000
# zstd and xz (4, 6) have no writer here: their archives are deflated and packed with LZMA. An archive says so itself.
METHODS = {
    1: zipfile.ZIP_STORED,
    2: zipfile.ZIP_DEFLATED,
    3: zipfile.ZIP_BZIP2,
    4: zipfile.ZIP_DEFLATED,
    5: zipfile.ZIP_LZMA,
    6: zipfile.ZIP_LZMA,
}


@dataclass(frozen=True, slots=True)
class Material:
    """supervisor: its process id. logs: of each shard; None: it does not answer."""

    data_directory: str
    supervisor: int
    config: str
    logs: dict[int, list[str] | None]
    statistics: Statistics | None
    request: SnapshotRequest


def main() -> None:
    """Material on standard input, the archive on standard output."""
    material = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Material)
    sys.stdout.buffer.write(build_archive(material))


def build_archive(material: Material) -> bytes:
    """No types at all means all of them."""
    kinds = set(material.request.types) or {ALL}
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", METHODS[material.request.compression]) as archive:
        for kind, (name, write) in PARTS.items():
            if kind in kinds or ALL in kinds:
                archive.writestr(name, "".join(f"{line}\n" for line in write(material)))
    return raw.getvalue()


# The parts: the lines of a text each


def _filesystem(material: Material) -> Iterator[str]:
    usage = psutil.disk_usage(material.data_directory)
    yield f"data directory, bytes: total {usage.total}, used {usage.used}, free {usage.free}"
    yield from itertools.islice(_paths(material.data_directory), MAX_PATHS)


def _paths(directory: str) -> Iterator[str]:
    for parent, directories, files in os.walk(directory):
        directories.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)
            try:
                found = os.stat(path, follow_symlinks=False)
            except OSError:  # it is gone again
                continue
            yield f"{found.st_size:>16} {found.st_blocks * 512:>16} {os.path.relpath(path, directory)}"


def _processes(material: Material) -> Iterator[str]:
    """Those of this server, without the one that looks."""
    supervisor = psutil.Process(material.supervisor)
    yield "pid parent threads rss_bytes cpu_s state name"
    for process in [supervisor, *supervisor.children(recursive=True)]:
        if process.pid == os.getpid():
            continue
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                seconds = round(times.user + times.system, 2)
                row = (process.pid, process.ppid(), process.num_threads(), memory.rss, seconds, process.status())
                yield " ".join(map(str, (*row, process.name())))
        except psutil.Error:  # it is gone again
            continue


def _resources(material: Material) -> Iterator[str]:
    memory = psutil.virtual_memory()
    yield f"memory, bytes: total {memory.total}, available {memory.available}"
    yield f"load average: {' '.join(f'{one:.2f}' for one in os.getloadavg())}, cores {os.cpu_count()}"
    yield f"open files: limit {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    if material.statistics is None:
        yield "statistics: a shard does not answer"
        return
    for name in Statistics.__slots__:
        yield f"{name}: {getattr(material.statistics, name)}"


def _test(material: Material) -> Iterator[str]:
    yield "a snapshot can be taken"


def _logs(material: Material) -> Iterator[str]:
    """What the shards have logged last; the supervisor's own events are on its standard error only."""
    for shard, lines in sorted(material.logs.items()):
        yield f"# shard {shard}"
        yield from ["does not answer"] if lines is None else lines


def _config(material: Material) -> Iterator[str]:
    yield from material.config.splitlines()


# Type on the wire (commands 2) -> file name, as the peer calls it, and its lines.
PARTS: dict[int, tuple[str, Callable[[Material], Iterator[str]]]] = {
    1: ("filesystem_overview.txt", _filesystem),
    2: ("process_list.txt", _processes),
    3: ("resource_usage.txt", _resources),
    4: ("test.txt", _test),
    5: ("server_logs.txt", _logs),
    6: ("server_config.txt", _config),
}

if __name__ == "__main__":
    main()
