"""Listening sockets: a guard finds a second server on the port, then SO_REUSEPORT listeners take it over."""

from __future__ import annotations

import errno
import socket

from shardserver.errors import ConfigError


def listen(host: str, port: int, listeners: int, backlog: int = 1024) -> list[socket.socket]:
    """Listeners on one port. Raises ConfigError when another process has it.

    The guard is bound without SO_REUSEPORT and never listens; only then is the option set on it, so that
    our own listeners may join it while a server that runs already would have made the first bind fail.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    guard = socket.socket(family, socket.SOCK_STREAM)
    try:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        guard.bind((host, port))
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return [_listener(family, host, guard.getsockname()[1], backlog) for _ in range(listeners)]
    except OSError as error:
        what = (
            "is in use by another process" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        )
        raise ConfigError(f"{host}:{port} {what}") from error
    finally:
        guard.close()


def shown_address(listening: socket.socket) -> str:
    """host:port, an IPv6 host in brackets."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listener(family: int, host: str, port: int, backlog: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host, port))
    made.listen(backlog)
    made.setblocking(False)
    return made
