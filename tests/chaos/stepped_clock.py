"""A clock of the day that a test steps: a library before libc's adds what a file says to CLOCK_REALTIME.

The machine's own clock is everybody's. Monotonic clocks are left alone, as a step leaves them alone too.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *step_s;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("STEPPED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (page != MAP_FAILED) step_s = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int outcome = real(clock, now);
    if (outcome == 0 && step_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *step_s;
    return outcome;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    int outcome = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return outcome;
}

time_t time(time_t *out) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (out) *out = found.tv_sec;
    return found.tv_sec;
}
"""


class SteppedClock:
    """For processes that are started by `wrapper`. Lives until the test ends."""

    def __init__(self, directory: Path) -> None:
        library, source, self._path = directory / "clock.so", directory / "clock.c", directory / "step"
        source.write_text(_SOURCE)
        self._path.write_bytes(bytes(8))
        command = ["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        self._library = library
        with self._path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)

    @property
    def wrapper(self) -> tuple[str, ...]:
        return ("env", f"LD_PRELOAD={self._library}", f"STEPPED_CLOCK={self._path}")

    @property
    def step_s(self) -> int:
        return int(struct.unpack("<q", self._page)[0])

    def step(self, by_s: int) -> None:
        self._page[:] = struct.pack("<q", self.step_s + by_s)
