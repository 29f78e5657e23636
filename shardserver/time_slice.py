"""Who computes for long and gives way at once, to the kernel's workers too.

A write of the journal ends in a worker of the kernel that is bound to one core. Whoever computes there keeps the worker
waiting until the next tick, 4 ms, whatever its niceness. SCHED_IDLE gives way at once, but among the tasks of one group
only: where each session is a group (autogroup, sched(7)), the kernel's workers are in another one. Who has a longer
slice than they gives way: Linux 6.12 and up has that for ordinary processes (sched_setattr(2)).

That is looked at when the worker wakes up, and not for one that has just had more than its share: it waits until the
slice of the group is over. So the slice is little longer than theirs, and a process in the background has a session of
its own, whose share is the least there is: beside that, hardly anyone has had more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from pathlib import Path

# (sched_setattr, sched_getattr), of asm/unistd.h.
CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
ATTRIBUTES = struct.Struct("=IIQiIQQQ")
LEAST_NICE = 19
LONG_SLICE_NS = 3_000_000  # the kernel's own are 0.7 ms and, with eight cores and more, 2.8 ms (6.18)


def send_to_background(process: int) -> None:
    """Where nobody else wants the core. process: the id of a session's leader. Raises OSError: it is gone."""
    with contextlib.suppress(OSError):  # no autogroup, or set a moment ago: the rest is worth something without
        Path(f"/proc/{process}/autogroup").write_text(str(LEAST_NICE))
    if not lengthen_slice(process, LEAST_NICE):
        os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))


def lengthen_slice(process: int, nice: int) -> bool:
    """process: 0 is the caller's thread. False: this kernel has not done it.

    One that does not know of slices takes the call and reads another one back.
    """
    if (calls := CALLS.get(platform.machine())) is None:
        return False
    libc, found = ctypes.CDLL(None), ctypes.create_string_buffer(ATTRIBUTES.size)
    wanted = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, LONG_SLICE_NS, 0, 0)
    if libc.syscall(calls[0], process, wanted, 0) or libc.syscall(calls[1], process, found, ATTRIBUTES.size, 0):
        return False
    return bool(ATTRIBUTES.unpack(found.raw)[5] == LONG_SLICE_NS)
