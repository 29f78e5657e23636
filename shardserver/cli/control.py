"""The commands' side of the control socket."""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec

from shardserver.errors import ConfigError
from shardserver.supervisor.messages import Request, answer_deadline_s

# On top of the server's own deadline for an answer.
ANSWER_MARGIN_S = 10.0


class NoServerError(ConfigError):
    """Nobody answers on the directory's control socket."""


def ask(data: str, command: str, **arguments: Any) -> dict[str, Any]:
    """The answer of the server that runs on the directory. Raises NoServerError, or ConfigError: it says no."""
    try:
        line = _exchange(os.path.join(data, "run"), Request(command, arguments))
    except (FileNotFoundError, ConnectionRefusedError):
        raise NoServerError(f"no server runs on {data}") from None
    except OSError as error:
        raise ConfigError(f"the server on {data} cannot be asked: {error.strerror or error}") from error
    if not line.endswith(b"\n"):
        raise ConfigError(f"the server on {data} ended before it answered")
    answer = msgspec.json.decode(line, type=dict[str, Any])
    if "error" in answer:
        raise ConfigError(str(answer["error"]))
    return answer


def _exchange(directory: str, request: Request) -> bytes:
    # By the directory's descriptor: sun_path holds 108 bytes (unix(7)), and a data directory's path may be longer.
    run = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(answer_deadline_s(request.command) + ANSWER_MARGIN_S)
            server.connect(f"/proc/self/fd/{run}/control.sock")
            server.sendall(msgspec.json.encode(request) + b"\n")
            with server.makefile("rb") as answers:
                return answers.readline()
    finally:
        os.close(run)
