"""Lines that carry descriptors: with their line, in order, bounded, and closed whatever goes wrong."""

import errno
import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserver.errors import ProtocolError
from shardserver.supervisor import lines
from shardserver.supervisor.lines import MAX_DESCRIPTORS, LineSocket


class Pair:
    """Two ends of a link."""

    def __init__(self, *, max_line_bytes: int = 1 << 20) -> None:
        ours, theirs = socket.socketpair()
        self.sender = LineSocket(ours, max_line_bytes)
        self.receiver = LineSocket(theirs, max_line_bytes, takes_descriptors=True)

    def lines(self, count: int) -> list[bytes]:
        """So many, while the sender sends on."""
        found: list[bytes] = []
        for _ in range(10_000):
            if len(found) >= count:
                return found
            self.sender.flush()
            assert self.receiver.receive()
            found += iter(self.receiver.take, None)
        raise AssertionError("they do not come")

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> Iterator[Pair]:
    before = open_files()
    made = Pair()
    yield made
    made.close()
    assert open_files() == before


def marked(number: int) -> int:
    """A descriptor that says which one it is."""
    descriptor = os.memfd_create(f"number-{number}")
    os.write(descriptor, b"%d" % number)
    return descriptor


def mark_of(descriptor: int) -> int:
    try:
        return int(os.pread(descriptor, 16, 0))
    finally:
        os.close(descriptor)


def test_descriptors_arrive_with_their_line_and_are_gone_from_the_sender(pair: Pair) -> None:
    before = open_files()
    pair.sender.send("plain")
    pair.sender.send("two", [marked(1), marked(2)])
    pair.sender.send("one", [marked(3)])
    assert open_files() == before
    assert pair.lines(3) == [b'"plain"', b'"two"', b'"one"']
    got = pair.receiver.take_descriptors(2) + pair.receiver.take_descriptors(1)
    assert not any(map(os.get_inheritable, got))
    assert list(map(mark_of, got)) == [1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300_000)), max_size=12))
def test_any_lines_through_a_full_socket_keep_their_descriptors(plan: list[tuple[int, int]]) -> None:
    pair, numbers, before = Pair(), itertools.count(), open_files()
    expected = []
    for count, size in plan:
        marks = [next(numbers) for _ in range(count)]
        expected.append((size, marks))
        pair.sender.send("x" * size, [marked(mark) for mark in marks])
    got = []
    for line, (_, marks) in zip(pair.lines(len(plan)), expected, strict=True):
        got.append((len(line) - 2, [mark_of(one) for one in pair.receiver.take_descriptors(len(marks))]))
    assert got == expected and open_files() == before
    pair.close()


def test_a_line_that_takes_more_than_came_is_refused(pair: Pair) -> None:
    pair.sender.send("one", [marked(1)])
    assert pair.lines(1) == [b'"one"']
    with pytest.raises(ProtocolError, match="1 descriptors came for a line that takes 2"):
        pair.receiver.take_descriptors(2)


def test_descriptors_that_nobody_takes_are_closed_with_the_socket(pair: Pair) -> None:
    pair.sender.send("two", [marked(1), marked(2)])
    assert pair.lines(1) == [b'"two"']  # the fixture counts


def test_descriptors_of_a_peer_that_has_gone_are_closed(pair: Pair) -> None:
    before = open_files()
    pair.receiver.close()
    pair.sender.send("two", [marked(1), marked(2)])
    assert pair.sender.unsent_bytes == 0 and open_files() == before - 1


def test_descriptors_that_wait_are_closed_with_the_socket(pair: Pair) -> None:
    before = open_files()
    pair.sender.send("x" * (8 << 20))
    pair.sender.send("two", [marked(1), marked(2)])
    assert open_files() == before + 2
    pair.sender.close()
    assert open_files() == before - 1


def test_a_peer_that_does_not_read_is_bounded(pair: Pair) -> None:
    pair.sender.send("x" * (8 << 20))
    before = open_files()
    for _ in range(MAX_DESCRIPTORS // 8):
        pair.sender.send("8", [marked(n) for n in range(8)])
    unsent = pair.sender.unsent_bytes
    with pytest.raises(ProtocolError, match=f"{MAX_DESCRIPTORS} descriptors wait"):
        pair.sender.send("too many", [marked(1)])
    assert pair.sender.unsent_bytes == unsent and open_files() == before + MAX_DESCRIPTORS


def test_a_receiver_is_bounded_too(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="too many"):
        for _ in range(MAX_DESCRIPTORS + 1):
            pair.sender.send("1", [marked(1)])
            pair.receiver.receive()


def test_descriptors_that_the_kernel_does_not_take_now_wait(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "too many on their way")

    with monkeypatch.context() as patched:
        patched.setattr(lines.socket, "send_fds", refuse)
        pair.sender.send("one", [marked(7)])
        assert pair.sender.is_held_up and pair.sender.unsent_bytes
    assert pair.lines(1) == [b'"one"'] and not pair.sender.is_held_up
    assert mark_of(pair.receiver.take_descriptors(1)[0]) == 7


def test_an_end_that_takes_none_has_them_closed_by_the_kernel() -> None:
    before = open_files()
    ours, theirs = socket.socketpair()
    sender, receiver = LineSocket(ours, 4096), LineSocket(theirs, 4096)
    sender.send("hostile", [marked(1)])
    assert receiver.receive() and receiver.take() == b'"hostile"'
    sender.close()
    receiver.close()
    assert open_files() == before
