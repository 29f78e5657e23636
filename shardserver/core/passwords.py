"""What of a request takes argon2's time: done before its plan, off the loop."""

from __future__ import annotations

import dataclasses
from typing import Any

from shardserver.core.authentication import PasswordVerifier
from shardserver.core.metadata import ROOT_ID, Metadata
from shardserver.core.permissions import may
from shardserver.core.user_commands import NewPassword, find_user
from shardserver.errors import Code, RejectedError
from shardserver.protocol.table import Command, Right
from shardserver.protocol.users import ChangePasswordRequest, CreateUserRequest

HOLDS_PASSWORD = frozenset({Command.CREATE_USER, Command.CHANGE_PASSWORD})
NO_PASSWORD = "-"


def without_passwords(command: Command, body: bytes, request: Any) -> bytes:
    """What a checksum may be kept of: of a password it would tell, without salt, more than its slow hash."""
    if command is Command.CREATE_USER:
        return bytes(dataclasses.replace(request, password=NO_PASSWORD).encode())
    if command is Command.CHANGE_PASSWORD:
        return bytes(dataclasses.replace(request, current=NO_PASSWORD, new=NO_PASSWORD).encode())
    return body


async def check_repeat(metadata: Metadata, verifier: PasswordVerifier, command: Command, request: Any) -> None:
    """A repeat sets the password that its user has. Raises RejectedError(4): another one, be it that it was changed."""
    if command not in HOLDS_PASSWORD:
        return
    created = command is Command.CREATE_USER
    user = metadata.find_user(request.username if created else request.user)
    stored = None if user is None else user.password_hash
    if not await verifier.verify(stored, request.password if created else request.new):
        raise RejectedError(Code.INVALID_FORMAT, "a request's number with another password")


async def prepare(
    metadata: Metadata, verifier: PasswordVerifier, user_id: int, command: Command, request: Any
) -> CreateUserRequest | NewPassword | Any:
    """The request as its plan takes it. user_id: who asks. Raises RejectedError 20 or 42."""
    if command is Command.CREATE_USER:
        return dataclasses.replace(request, password=await verifier.hash(request.password))
    if command is Command.CHANGE_PASSWORD:
        return await _prepare_change(metadata, verifier, user_id, request)
    return request


async def _prepare_change(
    metadata: Metadata, verifier: PasswordVerifier, user_id: int, request: ChangePasswordRequest
) -> NewPassword:
    """Who manages users sets another's password without the current one; a current one that is given must fit."""
    user = find_user(metadata, request.user)
    fitted: str | None = user.password_hash
    if not request.current and user.id != user_id and _manages_users(metadata, user_id):
        fitted = None
    elif not await verifier.verify(user.password_hash, request.current):
        raise RejectedError(Code.INVALID_CREDENTIALS, "the current password")
    return NewPassword(user.id, await verifier.hash(request.new), fitted)


def _manages_users(metadata: Metadata, user_id: int) -> bool:
    user = metadata.users.get(user_id)
    return user_id == ROOT_ID or (user is not None and may(user.permissions, Right.MANAGE_USERS))
