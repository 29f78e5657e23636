"""What the supervisor makes for a process: nothing of it outlives its holders, nothing stays open after an error."""

import os
import socket

import pytest

from shardserver.memory.shared import map_memory, map_read_only
from shardserver.router.ring_python import Consumer, Producer, ring_bytes
from shardserver.supervisor import endpoint as module
from shardserver.supervisor.descriptors import close_all, copies
from shardserver.supervisor.endpoint import make_endpoint, make_ring_memory


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_owner_writes_and_peers_read() -> None:
    before = open_files()
    endpoint, own = make_endpoint(3, 1 << 20)
    arena, doorbell, _ = endpoint.shared
    with map_memory(own.arena) as ours, map_read_only(arena) as theirs:
        assert len(ours) == 1 << 20
        ours[:8] = (5).to_bytes(8, "little")
        assert theirs[0] == 5 and endpoint.board.beats == 5
    with pytest.raises(PermissionError):
        map_memory(arena)
    os.eventfd_write(doorbell, 1)
    assert os.eventfd_read(own.doorbell) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(own.doorbell)
    endpoint.close()
    close_all(own)
    assert open_files() == before


def test_sockets_in_the_inbox_of_a_dead_process_are_closed() -> None:
    endpoint, own = make_endpoint(0, 1 << 20)
    client, handed = socket.socketpair()
    with client, socket.socket(fileno=os.dup(endpoint.shared[2])) as inbox:
        socket.send_fds(inbox, [b"x"], [handed.fileno()])
        handed.close()
        close_all(own)  # as the kernel does at its end; the supervisor still has the write end
        assert client.recv(1) == b""
        with pytest.raises(ConnectionError):  # reset when it had not read all, else a broken pipe
            inbox.send(b"x")
    endpoint.close()


def test_an_inbox_takes_many_messages_and_then_says_that_it_is_full() -> None:
    endpoint, own = make_endpoint(0, 1 << 20)
    taken = 0
    with socket.socket(fileno=os.dup(endpoint.shared[2])) as inbox, pytest.raises(BlockingIOError):
        while True:
            inbox.send(b"connection")
            taken += 1
    assert taken > 64
    endpoint.close()
    close_all(own)


@pytest.mark.parametrize("failing", ["eventfd", "dup"])
def test_nothing_stays_open_when_descriptors_run_out(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "too many open files")

    before = open_files()
    with monkeypatch.context() as patched:
        patched.setattr(module.os, failing, refuse)
        with pytest.raises(OSError, match="too many open files"):
            make_endpoint(0, 1 << 20)
    assert open_files() == before


def test_copies_are_all_or_none() -> None:
    before = open_files()
    with pytest.raises(OSError):
        copies([0, 1, -1])
    assert open_files() == before


def test_a_new_ring_is_empty_and_works() -> None:
    descriptor = make_ring_memory(16)
    with map_memory(descriptor) as memory:
        assert len(memory) >= ring_bytes(16)
        view = memoryview(memory)
        producer, consumer = Producer(view), Consumer(view)
        assert consumer.waiting() == 0 and producer.try_push(1, 0, 0, 7, 0, b"", True)
        producer.publish()
        assert [slot[3] for slot in consumer.take(4)] == [7]
        del producer, consumer
        view.release()
    os.close(descriptor)
