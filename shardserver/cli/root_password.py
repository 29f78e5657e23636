"""The root password: given by the environment, or random and shown once."""

from __future__ import annotations

import os
import secrets
import sys

from shardserver.errors import ConfigError


def given_password() -> str | None:
    """Of SHARDSERVER_ROOT_PASSWORD or the file that …_FILE names. Raises ConfigError when it cannot be one."""
    given = os.environ.get("SHARDSERVER_ROOT_PASSWORD")
    path = os.environ.get("SHARDSERVER_ROOT_PASSWORD_FILE")
    if given is None and path is not None:
        try:
            with open(path) as file:
                given = file.read().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"SHARDSERVER_ROOT_PASSWORD_FILE: {error}") from error
    if given is not None and not 3 <= len(given.encode()) <= 100:
        raise ConfigError("the root password must have 3 to 100 bytes")
    return given


def first_password_hash(data_path: str) -> str | None:
    """The root password's hash at the first start; None later. A random one is shown once, and never logged."""
    from shardserver.core.authentication import hash_password

    given = given_password()
    if os.path.exists(os.path.join(data_path, "metadata")):
        if given is not None:
            print("shardserver: the root password was set at the first start; to change it, stop the server and run "
                  "`shardserver reset-root-password --data DIR`", file=sys.stderr)  # fmt: skip
        return None
    if given is None:
        given = secrets.token_urlsafe(18)
        print(f"shardserver: user iggy, password {given} (shown once)", file=sys.stderr)
    return hash_password(given)
