"""Recorded requests sent again to a server: what it answers beside what was recorded.

Sessions, tokens and ids that the server gave are put in where the recording had its own.
"""

from __future__ import annotations

import re
import socket
from typing import Any

from tests.protocol.test_vectors import read_reply, told_rows

CHECKSUM, SESSION = slice(144, 160), slice(184, 192)
RECORDED_TOKEN = "create_personal_access_token"
# Moments, sizes of texts, and what the server may choose: identifiers of sessions and clients, names, versions, ports.
FREE = re.compile(
    r"(op|commit|session|size|generation|.*created_at|.*expiry_at|.*_timestamp|.*batch_checksum|server_version(\.len)?"
    r"|.*_port|node\[\d\]\.(name|ip)(\.len)?|cluster_name(\.len)?|.*client_id|.*address(\.len)?|token(\.len)?"
    r"|option\[\d+\]\.description(\.len)?)"
)
REFUSAL = re.compile(r"(status|result\.count|result\[0\]\.(index|code)|size|op|commit)")


def receive(source: socket.socket, length: int) -> bytes:
    """Raises EOFError."""
    got = b""
    while len(got) < length:
        part = source.recv(length - len(got))
        if not part:
            raise EOFError(f"{len(got)} of {length} bytes")
        got += part
    return got


class VectorReplay:
    """Connections by the recording's numbers, opened when first asked for."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._sockets: dict[int, socket.socket] = {}
        self._sessions: dict[int, bytes] = {}
        self._token = b""
        self._recorded_token = b""

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()

    def differences(self, vector: dict[str, Any]) -> dict[str, tuple[object, object]]:
        """Field -> (recorded, answered), of those that may not differ."""
        answer = self._ask(vector)
        found = {row[1]: row[2] for row in read_reply(answer, vector["command_code"] or 0)[0]}
        due = {row[1]: row[2] for row in told_rows(vector["reply"])}
        self._learn(vector, answer, due, found)
        if refusal_of(due) is not None and refusal_of(due) == refusal_of(found):
            # In the status or in the result section: clients read both alike (framing 6.2).
            due, found = ({k: v for k, v in one.items() if not REFUSAL.fullmatch(k)} for one in (due, found))
        if vector["name"] == "login_with_personal_access_token":  # asked without one
            due = due | {"request_checksum": found.get("request_checksum")}
        if vector["name"].startswith("describe_options"):
            due, found = options_by_key(due), options_by_key(found)
            found = {name: value for name, value in found.items() if name in due}  # we have keys of our own beside
        names = [*due, *(name for name in found if name not in due)]
        return {
            name: (due.get(name), found.get(name))
            for name in names
            if due.get(name) != found.get(name) and not FREE.fullmatch(name)
        }

    def _ask(self, vector: dict[str, Any]) -> bytes:
        number = vector["connection"]
        if number not in self._sockets:
            self.close()  # the recorder had one connection at a time
            self._sockets[number] = socket.create_connection((self._host, int(self._port)), timeout=30)
        request = bytearray.fromhex(vector["request"]["hex"])
        if any(request[SESSION]):
            request[SESSION] = self._sessions[number]
        if self._recorded_token and self._recorded_token in request:
            request = request.replace(self._recorded_token, self._token)
            request[CHECKSUM] = bytes(16)  # none: it was of the recorded body
        if vector["name"] == "get_client":
            request[-4:] = self._client_id
        target = self._sockets[number]
        target.sendall(request)
        header = receive(target, 256)
        return header + receive(target, int.from_bytes(header[48:52], "little") - 256)

    def _learn(self, vector: dict[str, Any], answer: bytes, due: dict[str, Any], found: dict[str, Any]) -> None:
        if "session" in found:
            self._sessions[vector["connection"]] = int(found["session"]).to_bytes(8, "little")
        if "client.client_id" in found:
            self._client_id = int(found["client.client_id"]).to_bytes(4, "little")
        if vector["name"] == RECORDED_TOKEN and "token" in found:
            self._recorded_token, self._token = (str(one["token"]).encode() for one in (due, found))
            assert len(self._token) == len(self._recorded_token)  # else the frame's size changes, too


def refusal_of(fields: dict[str, Any]) -> object | None:
    """The code of a refusal, wherever it stands; None: it is none."""
    return fields.get("status") or fields.get("result[0].code")


def options_by_key(fields: dict[str, Any]) -> dict[str, Any]:
    """Kinds and defaults, by the option's key instead of its place."""
    return {
        f"{fields[f'option[{place}].key']}.{name}": fields[f"option[{place}].{name}"]
        for place in range(fields["count"])
        for name in ("kind", "default_len", "default")
        if f"option[{place}].{name}" in fields
    }
