"""The kernel's FUSE protocol, as far as the server's file operations need it, on a volatile tree.

Straight on /dev/fuse: layouts and numbers are those of include/uapi/linux/fuse.h, protocol 7.31. All files are opened
with FOPEN_DIRECT_IO, so the kernel keeps no page of them, and every write and fsync is one request. Locks stay with the
kernel, as they are not asked for. Errors of the tree are OSError, and become the reply. Direct writes that change no
length are asynchronous for the kernel (FUSE_ASYNC_DIO): one that is held back outlives the process that submitted it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from tests.powercut.volatile_tree import BLOCK_BYTES, Directory, File, Node, VolatileTree

LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, MKDIR, UNLINK, RMDIR, RENAME = 1, 2, 3, 4, 8, 9, 10, 11, 12
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 14, 15, 16, 17, 18, 20, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, CREATE, INTERRUPT, DESTROY = 27, 28, 29, 30, 35, 36, 38
BATCH_FORGET, FALLOCATE, RENAME2 = 42, 43, 45
# ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES.
WANTED_FLAGS = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 22
FOPEN_DIRECT_IO, SETS_SIZE, SETS_MODE = 1, 1 << 3, 1 << 0
MAX_WRITE_BYTES = 1 << 20
CAPACITY_BYTES = 2 << 30
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2

_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extension, padding
_OUT = struct.Struct("<IiQ")
_OPEN_FLAGS = struct.Struct("<I")  # in a write, at 32: those that its file was opened with
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_libc = ctypes.CDLL(None, use_errno=True)


class MountError(Exception):
    """No FUSE here: no /dev/fuse, or no right to mount."""


def _check(outcome: int, what: str) -> None:
    if outcome:
        raise MountError(f"{what}: {os.strerror(ctypes.get_errno())}")


class FuseMount:
    """One mount of a tree; `serve` answers until it is unmounted. has_power False: nothing answers but EIO.

    holds_next: the next direct write is held, unanswered, until `land`; no other request waits for it.
    """

    def __init__(self, tree: VolatileTree, directory: Path) -> None:
        self.tree, self._directory, self.has_power = tree, directory, True
        self.holds_next, self.held = False, b""
        self._nodes: dict[int, Node] = {1: tree.root}
        self._handlers: dict[int, Callable[[Node, memoryview], bytes]] = {
            LOOKUP: self._lookup, GETATTR: self._getattr, SETATTR: self._setattr, MKNOD: self._mknod,
            MKDIR: self._mkdir, UNLINK: self._unlink, RMDIR: self._rmdir, RENAME: self._rename, RENAME2: self._rename2,
            OPEN: self._open, OPENDIR: self._open, READ: self._read, WRITE: self._write, STATFS: self._statfs,
            RELEASE: self._nothing, RELEASEDIR: self._nothing, FLUSH: self._nothing, FSYNC: self._sync,
            FSYNCDIR: self._sync, READDIR: self._readdir, CREATE: self._create, FALLOCATE: self._fallocate,
        }  # fmt: skip
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise MountError(str(error)) from error
        options = f"fd={self._device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
        arguments = (b"volatile", str(directory).encode(), b"fuse.volatile", MS_NOSUID | MS_NODEV, options.encode())
        _check(_libc.mount(*arguments), "mount")

    def unmount(self) -> None:
        _check(_libc.umount2(str(self._directory).encode(), MNT_DETACH), "umount")

    def serve(self) -> None:
        """Until the mount is gone."""
        buffer = bytearray(MAX_WRITE_BYTES + (1 << 16))
        view = memoryview(buffer)
        try:
            while True:
                try:
                    length = os.readv(self._device, [buffer])
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # interrupted before it was read
                        continue
                    if error.errno == errno.ENODEV:
                        return
                    raise
                self._take(view[:length])
        finally:
            os.close(self._device)

    def _take(self, request: memoryview) -> None:
        _, opcode, unique, number, *_ = _IN.unpack_from(request)
        body = request[_IN.size :]
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):  # no reply; nodes are few, and are kept
            return
        if self.holds_next and opcode == WRITE and _OPEN_FLAGS.unpack_from(body, 32)[0] & os.O_DIRECT:
            self.holds_next, self.held = False, bytes(request)
            return
        try:
            payload, code = self._answer(opcode, number, body), 0
        except OSError as error:
            payload, code = b"", -(error.errno or errno.EIO)
        try:
            os.writev(self._device, [_OUT.pack(_OUT.size + len(payload), code, unique), payload])
        except OSError as error:
            if error.errno != errno.ENOENT:  # the process that asked was killed meanwhile
                raise

    def _answer(self, opcode: int, number: int, body: memoryview) -> bytes:
        if opcode == INIT:
            return self._init(body)
        if opcode == DESTROY:
            return b""
        handler = self._handlers.get(opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, str(opcode))
        if not self.has_power:
            raise OSError(errno.EIO, "no power")
        return handler(self._nodes[number], body)

    def _init(self, body: memoryview) -> bytes:
        _, _, read_ahead, flags = struct.unpack_from("<IIII", body)
        head = struct.pack("<IIIIHHIIHH", 7, 31, read_ahead, flags & WANTED_FLAGS, 64, 48, MAX_WRITE_BYTES, 1,
                           MAX_WRITE_BYTES // BLOCK_BYTES, 0)  # fmt: skip
        return head.ljust(64, b"\0")

    # What a node is

    def _attributes(self, node: Node) -> bytes:
        size = len(node.current) if isinstance(node, File) else BLOCK_BYTES
        links = 1 if isinstance(node, File) else 2
        owner = (os.getuid(), os.getgid(), 0, BLOCK_BYTES, 0)
        return _ATTRIBUTES.pack(node.number, size, -(-size // 512), 0, 0, 0, 0, 0, 0, node.mode, links, *owner)

    def _entry(self, node: Node) -> bytes:
        self._nodes[node.number] = node
        return struct.pack("<QQQQII", node.number, 0, 0, 0, 0, 0) + self._attributes(node)

    def _told(self, node: Node) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def _lookup(self, node: Node, body: memoryview) -> bytes:
        return self._entry(self.tree.find(_directory(node), _name(body)))

    def _getattr(self, node: Node, body: memoryview) -> bytes:
        return self._told(node)

    def _setattr(self, node: Node, body: memoryview) -> bytes:
        valid, _, _, size, _, _, _, _, _, _, _, _, mode = struct.unpack_from("<IIQQQQQQIIIII", body)
        if isinstance(node, File):
            if valid & SETS_SIZE:
                node.resize(size)
            if valid & SETS_MODE:
                node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return self._told(node)

    def _statfs(self, node: Node, body: memoryview) -> bytes:
        used = sum(len(one.current) for one in self._nodes.values() if isinstance(one, File))
        blocks, free = CAPACITY_BYTES // BLOCK_BYTES, (CAPACITY_BYTES - used) // BLOCK_BYTES
        return struct.pack("<QQQQQIIII24x", blocks, free, free, 1 << 20, 1 << 20, BLOCK_BYTES, 255, BLOCK_BYTES, 0)

    # Names

    def _make(self, parent: Node, name: str, node: Node) -> Node:
        directory = _directory(parent)
        if name in directory.current:
            raise OSError(errno.EEXIST, name)
        self.tree.change((directory, name, node))
        return node

    def _mknod(self, node: Node, body: memoryview) -> bytes:
        return self._entry(self._make(node, _name(body[16:]), File(struct.unpack_from("<I", body)[0])))

    def _mkdir(self, node: Node, body: memoryview) -> bytes:
        return self._entry(self._make(node, _name(body[8:]), Directory()))

    def _create(self, node: Node, body: memoryview) -> bytes:
        _, mode = struct.unpack_from("<II", body)
        made = self._make(node, _name(body[16:]), File(stat.S_IFREG | stat.S_IMODE(mode)))
        return self._entry(made) + self._open(made, body)

    def _unlink(self, node: Node, body: memoryview) -> bytes:
        directory, name = _directory(node), _name(body)
        self.tree.find(directory, name)
        self.tree.change((directory, name, None))
        return b""

    def _rmdir(self, node: Node, body: memoryview) -> bytes:
        found = self.tree.find(_directory(node), _name(body))
        if _directory(found).current:
            raise OSError(errno.ENOTEMPTY, "")
        return self._unlink(node, body)

    def _rename(self, node: Node, body: memoryview) -> bytes:
        return self._move(node, struct.unpack_from("<Q", body)[0], body[8:])

    def _rename2(self, node: Node, body: memoryview) -> bytes:
        target, flags = struct.unpack_from("<QI", body)
        if flags:
            raise OSError(errno.EINVAL, "flags of a rename")
        return self._move(node, target, body[16:])

    def _move(self, node: Node, target: int, names: memoryview) -> bytes:
        old, new, *_ = bytes(names).split(b"\0")
        self.tree.rename(_directory(node), old.decode(), _directory(self._nodes[target]), new.decode())
        return b""

    def _readdir(self, node: Node, body: memoryview) -> bytes:
        _, start, room = struct.unpack_from("<QQI", body)
        out = b""
        for place, (name, one) in enumerate(list(_directory(node).current.items()), 1):
            raw = name.encode()
            entry = struct.pack("<QQII", one.number, place, len(raw), one.mode >> 12) + raw
            entry = entry.ljust(-(-len(entry) // 8) * 8, b"\0")
            if place > start:
                if len(out) + len(entry) > room:
                    break
                out += entry
        return out

    # Bytes

    def _open(self, node: Node, body: memoryview) -> bytes:
        return struct.pack("<QII", 0, FOPEN_DIRECT_IO if isinstance(node, File) else 0, 0)

    def _read(self, node: Node, body: memoryview) -> bytes:
        _, position, size = struct.unpack_from("<QQI", body)
        return bytes(memoryview(_file(node).current)[position : position + size])

    def _write(self, node: Node, body: memoryview) -> bytes:
        _, position, size = struct.unpack_from("<QQI", body)
        _file(node).write(position, body[40 : 40 + size])
        return struct.pack("<II", size, 0)

    def _fallocate(self, node: Node, body: memoryview) -> bytes:
        _, position, length, mode, _ = struct.unpack_from("<QQQII", body)
        if mode & ~1:
            raise OSError(errno.EOPNOTSUPP, "a mode of fallocate")
        if not mode:
            _file(node).resize(max(len(_file(node).current), position + length))
        return b""

    def _sync(self, node: Node, body: memoryview) -> bytes:
        self.tree.sync(node)
        return b""

    def _nothing(self, node: Node, body: memoryview) -> bytes:
        return b""

    def land(self) -> None:
        """What was held back."""
        self.holds_next, held, self.held = False, self.held, b""
        if held:
            self._take(memoryview(held))

    def cut(self, seed: int) -> None:
        """From now on nothing is taken; the tree is what a power loss leaves."""
        self.has_power = False
        self.tree.cut(random.Random(seed))


def _name(body: memoryview) -> str:
    return bytes(body).split(b"\0", 1)[0].decode()


def _directory(node: Node) -> Directory:
    if not isinstance(node, Directory):
        raise OSError(errno.ENOTDIR, "")
    return node


def _file(node: Node) -> File:
    if not isinstance(node, File):
        raise OSError(errno.EISDIR, "")
    return node
