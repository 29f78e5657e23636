"""Builds the Cython modules; everything else stands in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# SHARDSERVER_CHECKED=1 makes the build with checks of bounds on, whose functions a profiler sees: those that
# run without the GIL stay invisible, as they may run once a message.
CHECKED = os.environ.get("SHARDSERVER_CHECKED") == "1"

EXTENSIONS = [
    Extension(
        "shardserver.protocol.batch",
        ["shardserver/protocol/batch.pyx"],
        define_macros=[("XXH_INLINE_ALL", "1")],
        extra_compile_args=["-O3"],
    ),
    Extension(
        "shardserver.protocol.wide_xxh3",
        ["shardserver/protocol/wide_xxh3.pyx"],
        define_macros=[("XXH_INLINE_ALL", "1")],
        extra_compile_args=["-O3"],
    ),
    Extension("shardserver.io_uring.queues", ["shardserver/io_uring/queues.pyx"], libraries=["uring"]),
    Extension("shardserver.io_uring.open_file", ["shardserver/io_uring/open_file.pyx"]),
    Extension("shardserver.io_uring.ring", ["shardserver/io_uring/ring.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.io_uring.group", ["shardserver/io_uring/group.pyx"]),
    Extension("shardserver.io_uring.removal", ["shardserver/io_uring/removal.pyx"]),
    Extension("shardserver.io_uring.steps", ["shardserver/io_uring/steps.pyx"]),
    Extension("shardserver.memory.arena", ["shardserver/memory/arena.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.memory.huge_memory", ["shardserver/memory/huge_memory.pyx"]),
    Extension("shardserver.protocol.sends", ["shardserver/protocol/sends.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.tail", ["shardserver/storage/tail.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.staging", ["shardserver/storage/staging.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.synced_write", ["shardserver/storage/synced_write.pyx"], extra_compile_args=["-O3"]),
    Extension(
        "shardserver.storage.journal_writer", ["shardserver/storage/journal_writer.pyx"], extra_compile_args=["-O3"]
    ),
    Extension("shardserver.storage.shard_turn", ["shardserver/storage/shard_turn.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.gather", ["shardserver/storage/gather.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.sync_times", ["shardserver/storage/sync_times.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.clock", ["shardserver/storage/clock.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.append_log", ["shardserver/storage/append_log.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.storage.turn", ["shardserver/storage/turn.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.router.ring", ["shardserver/router/ring.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.router.send_lane", ["shardserver/router/send_lane.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.net.known_routes", ["shardserver/net/known_routes.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.net.wire", ["shardserver/net/wire.pyx"], extra_compile_args=["-O3"]),
    Extension(
        "shardserver.net.frame_reader",
        ["shardserver/net/frame_reader.pyx"],
        define_macros=[("XXH_INLINE_ALL", "1")],
        extra_compile_args=["-O3"],
    ),
    Extension(
        "shardserver.net.route_table",
        ["shardserver/net/route_table.pyx"],
        define_macros=[("XXH_INLINE_ALL", "1")],
        extra_compile_args=["-O3"],
    ),
    Extension("shardserver.net.poll_route", ["shardserver/net/poll_route.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.net.output", ["shardserver/net/output.pyx"], extra_compile_args=["-O3"]),
    Extension("shardserver.net.plane", ["shardserver/net/plane.pyx"], extra_compile_args=["-O3"]),
    Extension(
        "shardserver.bench.load",
        ["shardserver/bench/load.pyx"],
        define_macros=[("XXH_INLINE_ALL", "1"), ("_GNU_SOURCE", "1")],
        extra_compile_args=["-O3"],
    ),
    Extension(
        "shardserver.bench.readback",
        ["shardserver/bench/readback.pyx"],
        define_macros=[("XXH_INLINE_ALL", "1")],
        extra_compile_args=["-O3"],
    ),
    Extension(
        "shardserver.bench.echo",
        ["shardserver/bench/echo.pyx"],
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=["-O3"],
    ),
]

setup(
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        EXTENSIONS,
        nthreads=os.cpu_count() or 1,
        language_level=3,
        compiler_directives={"boundscheck": CHECKED, "profile": CHECKED, "wraparound": False},
    ),
)
