"""An ext4 filesystem in an image file on a loop device, and its copy as a power cut would leave it.

The copy is taken from the image file below the mounted filesystem, without unmounting or syncing: what only the page
cache or ext4's memory holds is not in it. The device writes with O_DIRECT, so nothing hides in the host's cache either.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

IMAGE_BYTES = 3 << 30


class ImageError(Exception):
    """A loop device or a mount could not be had."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


class Image:
    """A mounted image. `directory` is where it is mounted."""

    def __init__(self, path: Path, directory: Path, image_bytes: int = IMAGE_BYTES) -> None:
        self.path, self.directory, self.image_bytes = path, directory, image_bytes
        self._device = ""

    def create(self) -> None:
        with self.path.open("wb") as file:
            file.truncate(self.image_bytes)
        # Nothing is left for a kernel thread to initialise later: its writes would fall into the copying.
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.path))

    def mount(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._device = run("losetup", "--find", "--show", "--direct-io=on", str(self.path))
        try:
            # Only what the server syncs shall be there: ext4 commits by itself as seldom as it can.
            run("mount", "-o", "noatime,commit=300", self._device, str(self.directory))
        except ImageError:
            run("losetup", "--detach", self._device)
            self._device = ""
            raise

    def unmount(self) -> None:
        if not self._device:
            return
        for _ in range(50):
            with contextlib.suppress(ImageError):
                run("umount", str(self.directory))
                break
            time.sleep(0.1)  # a process that was killed has not been reaped yet
        run("losetup", "--detach", self._device)
        self._device = ""

    def written_sectors(self) -> int:
        """Sectors written to the device since it was made (Documentation/block/stat.rst, field 7)."""
        name = self._device.removeprefix("/dev/")
        return int(Path(f"/sys/block/{name}/stat").read_text().split()[6])

    def flushes(self) -> int:
        """Flush requests that the device completed (the same page, field 16)."""
        name = self._device.removeprefix("/dev/")
        return int(Path(f"/sys/block/{name}/stat").read_text().split()[15])

    def copy(self, target: Path) -> bool:
        """Copy the image file as it stands. False: something was written meanwhile, so the copy is of no one moment."""
        before = self.written_sectors()
        run("dd", f"if={self.path}", f"of={target}", "bs=4M", "iflag=direct", "conv=sparse", "status=none")
        return self.written_sectors() == before
