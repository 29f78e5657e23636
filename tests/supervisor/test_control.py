"""The control socket against clients that are slow, hostile, many, or gone."""

import json
import os
import selectors
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardserver.supervisor.control import (
    ANSWER_MARGIN_S,
    CLIENT_DEADLINE_S,
    MAX_CLIENTS,
    ControlServer,
    listen_control,
)
from shardserver.supervisor.messages import MAX_REQUEST_BYTES, Request


class World:
    """A server on a real socket whose loop and clock the test moves. `later` holds what is not answered at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        self.selector = selectors.DefaultSelector()
        self.later: list[Callable[[dict[str, Any]], None]] = []
        self.seen: list[str] = []
        self.arguments: list[dict[str, Any]] = []
        self.server = ControlServer(listen_control(str(path)), self.selector, self.on_request, lambda: self.now)
        self.clients: list[socket.socket] = []

    def on_request(self, request: Request, reply: Callable[[dict[str, Any]], None]) -> None:
        command = request.command
        self.seen.append(command)
        self.arguments.append(request.arguments)
        if command in ("later", "move-partition"):
            self.later.append(reply)
        else:
            reply({"echo": command} if command != "big" else {"big": "x" * (8 << 20)})

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))
        client.setblocking(False)
        self.clients.append(client)
        self.turn()
        return client

    def turn(self) -> None:
        """Until nothing is ready: every pass ends, whatever the clients do."""
        for _ in range(100_000):
            ready = self.selector.select(0)
            if not ready:
                return
            for key, _ in ready:
                if self.selector.get_map().get(key.fd) is key:
                    key.data()
        raise AssertionError("the loop spins")

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.close()
        self.selector.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "control.sock")
    yield made
    made.close()


def ask(client: socket.socket, *commands: str) -> None:
    client.sendall(b"".join(json.dumps({"command": command}).encode() + b"\n" for command in commands))


def answers(client: socket.socket) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.recv(1 << 20).splitlines()]


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_only_the_owner_may_open_the_socket(world: World) -> None:
    assert stat.S_IMODE(os.stat(world.path).st_mode) == 0o600


def test_a_path_longer_than_an_address_holds_is_fine(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    listen_control(str(directory / "control.sock")).close()
    assert (directory / "control.sock").is_socket()


def test_one_connection_asks_again_and_again(world: World) -> None:
    client = world.connect()
    for command in ("a", "b"):
        ask(client, command)
        world.turn()
        assert answers(client) == [{"echo": command}]
    ask(client, "c", "later", "d")
    world.turn()
    assert answers(client) == [{"echo": "c"}]
    world.later.pop()({"at": "last"})
    world.turn()
    assert answers(client) == [{"at": "last"}, {"echo": "d"}]


def test_a_request_may_come_byte_by_byte(world: World) -> None:
    client = world.connect()
    for byte in b'{"command": "slow"}\n':
        client.send(bytes([byte]))
        world.turn()
    assert answers(client) == [{"echo": "slow"}]


def test_a_client_that_says_nothing_holds_up_nobody_and_is_ended(world: World) -> None:
    silent, other = world.connect(), world.connect()
    silent.send(b'{"command":')
    ask(other, "a")
    world.turn()
    assert answers(other) == [{"echo": "a"}]
    world.now = CLIENT_DEADLINE_S - 1
    ask(other, "b")
    world.turn()
    world.now = CLIENT_DEADLINE_S
    assert world.server.next_deadline() == CLIENT_DEADLINE_S
    world.server.end_slow_clients()
    assert is_closed(silent) and answers(other) == [{"echo": "b"}] and not is_closed(other)


def test_a_request_waits_as_long_as_its_command_may_take(world: World) -> None:
    client = world.connect()
    ask(client, "move-partition")
    world.turn()
    world.now = 60.0 + ANSWER_MARGIN_S - 1
    world.server.end_slow_clients()
    assert not is_closed(client)
    world.later.pop()({"moved": True})
    assert world.server.next_deadline() == world.now + CLIENT_DEADLINE_S
    world.turn()
    assert answers(client) == [{"moved": True}]


def test_a_request_with_the_longest_names_fits(world: World) -> None:
    client, name = world.connect(), "\x01" * 255
    request = {"command": "move-partition", "arguments": {"stream": name, "topic": name, "partition": 1 << 32}}
    client.sendall(json.dumps(request).encode() + b"\n")
    world.turn()
    assert world.arguments == [request["arguments"]]


def test_a_client_that_does_not_read_is_not_read_and_ended(world: World) -> None:
    client = world.connect()
    ask(client, "big", "never asked")
    world.turn()
    assert world.seen == ["big"]
    world.now = CLIENT_DEADLINE_S
    world.server.end_slow_clients()
    assert world.server.next_deadline() is None


def test_a_big_answer_arrives_whole(world: World) -> None:
    client, received = world.connect(), b""
    ask(client, "big")
    while not received.endswith(b"\n"):
        world.turn()
        received += client.recv(1 << 20)
    assert len(json.loads(received)["big"]) == 8 << 20


@pytest.mark.parametrize(
    "sent", [b"nonsense\n", b"[]\n", b'{"command": 1}\n', b"\xff\xfe\n", b'{"kind": "x"}\n', b"\n"]
)
def test_a_line_that_is_no_request_gets_an_error_and_the_end(world: World, sent: bytes) -> None:
    client = world.connect()
    client.sendall(sent)
    world.turn()
    assert "error" in answers(client)[0] and is_closed(client)


def test_a_line_without_end_is_bounded(world: World) -> None:
    client = world.connect()
    client.sendall(b"x" * (3 * MAX_REQUEST_BYTES))
    world.turn()
    assert answers(client) == [{"error": f"a line of more than {MAX_REQUEST_BYTES} bytes"}]
    assert is_closed(client)


def test_an_answer_for_a_client_that_left_reaches_nobody_else(world: World) -> None:
    leaving = world.connect()
    ask(leaving, "later")
    world.turn()
    leaving.close()
    other = world.connect()  # the kernel may give it the number of the one that left
    ask(other, "later")
    world.turn()
    first, second = world.later
    first({"for": "the first"})
    world.turn()
    assert not is_closed(other)
    second({"for": "the second"})
    world.turn()
    assert answers(other) == [{"for": "the second"}]


def test_a_late_answer_for_a_client_that_was_ended_goes_nowhere(world: World) -> None:
    client = world.connect()
    ask(client, "later")
    world.turn()
    world.now = CLIENT_DEADLINE_S
    world.server.end_slow_clients()
    again = world.connect()
    world.later.pop()({"late": True})
    world.turn()
    assert is_closed(client) and not is_closed(again)


def test_more_clients_than_the_limit_are_closed_and_room_is_made_again(world: World) -> None:
    clients = [world.connect() for _ in range(MAX_CLIENTS)]
    extra = world.connect()
    assert is_closed(extra) and not is_closed(clients[0])
    clients.pop().close()
    world.turn()
    assert not is_closed(world.connect())


def test_a_flood_of_requests_is_answered_one_by_one(world: World) -> None:
    client = world.connect()
    ask(client, *(["a"] * 5000))
    received = b""
    while received.count(b"\n") < 5000:
        world.turn()
        received += client.recv(1 << 20)
    assert world.seen == ["a"] * 5000
