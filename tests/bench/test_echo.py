"""The echo answers each request once, with the size and number that are due, however the bytes arrive."""

from __future__ import annotations

import socket
import struct

import pytest

from shardserver.bench.peers import echo
from shardserver.bench.plan import SEND_REPLY_BYTES, LoadSpec, Shape
from shardserver.client.connection import Connection

SMALL, LARGE = Shape.fixed(1, 100), Shape.fixed(100, 10_000)


def requests(client: Connection, kind: str, numbers: range) -> list[bytes]:
    """Whole frames with these numbers, each a send of nothing or a poll."""
    frame = client.send_frame("s", "t", 0, b"", 1) if kind == "send" else client.poll_frame("s", "t", 0, 0, 1)
    return [frame[:168] + struct.pack("<Q", number) + frame[176:] for number in numbers]


def read(sock: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length and (part := sock.recv(length - len(got))):
        got += part
    return got


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("kind", ["send", "poll"])
@pytest.mark.parametrize("cut", [None, 100])
def test_every_request_has_its_reply_of_the_true_size(kind: str, shape: Shape, cut: int | None) -> None:
    size = SEND_REPLY_BYTES if kind == "send" else shape.poll_reply_bytes
    with echo((), LoadSpec(shape, senders=1, depth=8)) as peer, Connection(peer.host, peer.port) as client:
        frames = requests(client, kind, range(1, 21))
        sock = client.detach_socket()
        for first in range(0, 20, 5):
            content = b"".join(frames[first : first + 5])
            step = cut or len(content)
            for place in range(0, len(content), step):
                sock.sendall(content[place : place + step])
            for number in range(first + 1, first + 6):
                reply = read(sock, size)
                assert struct.unpack_from("<I", reply, 48)[0] == len(reply) == size
                assert reply[60] == 8 and struct.unpack_from("<Q", reply, 200)[0] == number
                if kind == "poll":
                    assert struct.unpack_from("<I", reply, 268)[0] == shape.messages_per_batch
