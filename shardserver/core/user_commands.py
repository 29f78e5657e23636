"""Users and their tokens: what a request means for the metadata. As metadata_commands.py, of which this is a part.

Passwords are hashed and compared before a plan is made (`passwords.py`): argon2 takes its time, and a plan none.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.access import by_id, by_uid
from shardserver.core.metadata import Metadata, Token, User
from shardserver.core.planning import Plan, PlanContext, Planner, lowest_free, refuse_options
from shardserver.errors import Code, RejectedError
from shardserver.protocol.addresses import UserAddress
from shardserver.protocol.primitives import Identifier
from shardserver.protocol.table import Command
from shardserver.protocol.tokens import NEVER_EXPIRES, CreateTokenRequest, DeleteTokenRequest, RawToken
from shardserver.protocol.users import (
    STATUS_INACTIVE,
    CreateUserRequest,
    UpdatePermissionsRequest,
    UpdateUserRequest,
    UserDetails,
    UserHeader,
)

TOKENS_OF_A_USER = 100
TOKEN_BYTES = 50
LATEST = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class NewPassword:
    """What a change of a password becomes before its plan. fitted: the stored hash that the current password was
    compared with; None: there was none to compare, and who asks manages users.
    """

    user: Identifier
    password_hash: str
    fitted: str | None


def header_of(user: User) -> UserHeader:
    return UserHeader(user.id, user.created_at, user.status, user.name, {})


def details_of(metadata: Metadata, user: User) -> UserDetails:
    return UserDetails(header_of(user), by_id(metadata, user.permissions))


def find_user(metadata: Metadata, identifier: Identifier) -> User:
    """Raises RejectedError(20)."""
    user = metadata.find_user(identifier)
    if user is None:
        raise RejectedError(Code.RESOURCE_NOT_FOUND, f"user {identifier!r}")
    return user


def token_hash(token: str) -> bytes:
    """Tokens are random, so that no slow hash is needed to keep them."""
    return hashlib.sha256(token.encode()).digest()


# Users


def create_user(metadata: Metadata, request: CreateUserRequest, context: PlanContext) -> Plan:
    """request.password: hashed already."""
    refuse_options(request.options)
    if request.username in metadata.user_ids:
        raise RejectedError(Code.USER_ALREADY_EXISTS, request.username)
    user = User(
        lowest_free(metadata.users),
        request.username,
        context.now,
        request.password,
        request.status,
        by_uid(metadata, request.permissions),
    )
    return Plan([ev.UserCreated(user)], details_of(metadata, user).encode())


def update_user(metadata: Metadata, request: UpdateUserRequest, context: PlanContext) -> Plan:
    refuse_options(request.options)
    user, name = find_user(metadata, request.user), request.username
    if name is not None and metadata.user_ids.get(name, user.id) != user.id:
        raise RejectedError(Code.USER_ALREADY_EXISTS, name)
    if user.id == md.ROOT_ID and request.status == STATUS_INACTIVE:
        raise RejectedError(Code.CANNOT_CHANGE_PERMISSIONS, "root cannot be disabled")
    events: list[ev.Event] = [ev.UserUpdated(user.id, name, request.status)]
    if request.status == STATUS_INACTIVE and user.is_active:
        events.append(ev.AccessEnded(user.id, context.client))
    return Plan(events)


def delete_user(metadata: Metadata, request: UserAddress, context: PlanContext) -> Plan:
    user = find_user(metadata, request.user)
    if user.id == md.ROOT_ID:
        raise RejectedError(Code.CANNOT_DELETE_USER, "root")
    return Plan([ev.UserDeleted(user.id)])


def update_permissions(metadata: Metadata, request: UpdatePermissionsRequest, context: PlanContext) -> Plan:
    user = find_user(metadata, request.user)
    if user.id == md.ROOT_ID:
        raise RejectedError(Code.CANNOT_CHANGE_PERMISSIONS, "root")
    return Plan([ev.PermissionsSet(user.id, by_uid(metadata, request.permissions))])


def change_password(metadata: Metadata, request: NewPassword, context: PlanContext) -> Plan:
    user = find_user(metadata, request.user)
    if request.fitted is not None and user.password_hash != request.fitted:  # it was changed meanwhile
        raise RejectedError(Code.INVALID_CREDENTIALS, "the current password")
    return Plan([ev.PasswordSet(user.id, request.password_hash), ev.AccessEnded(user.id, context.client)])


# Tokens, of who asks


def create_token(metadata: Metadata, request: CreateTokenRequest, context: PlanContext) -> Plan:
    """The reply is the only place that holds the token: it is not kept for repeats (changes.py)."""
    user = metadata.users[context.user_id]
    if request.name in user.tokens:
        raise RejectedError(Code.TOKEN_ALREADY_EXISTS, request.name)
    if len(user.tokens) >= TOKENS_OF_A_USER:
        raise RejectedError(Code.TOKENS_LIMIT_REACHED, f"{TOKENS_OF_A_USER} tokens")
    expires_at = 0 if request.expiry in NEVER_EXPIRES else context.now + request.expiry
    if expires_at > LATEST:
        raise RejectedError(Code.INVALID_TOKEN_EXPIRY, f"{request.expiry} µs from now")
    raw = base64.b64encode(secrets.token_bytes(TOKEN_BYTES)).decode()
    made = Token(request.name, token_hash(raw), expires_at)
    return Plan([ev.TokenCreated(user.id, made)], RawToken(raw).encode())


def delete_token(metadata: Metadata, request: DeleteTokenRequest, context: PlanContext) -> Plan:
    token = metadata.users[context.user_id].tokens.get(request.name)
    if token is None:
        raise RejectedError(Code.RESOURCE_NOT_FOUND, f"token {request.name!r}")
    return Plan([ev.TokensRemoved([token.hash])])


def expire_tokens(metadata: Metadata, context: PlanContext) -> Plan:
    """Forget those whose time is over."""
    tokens = [token for user in metadata.users.values() for token in user.tokens.values()]
    over = [token.hash for token in tokens if is_over(token, context.now)]
    return Plan([ev.TokensRemoved(over)] if over else [])


def is_over(token: Token, now: int) -> bool:
    return 0 < token.expires_at <= now


USER_PLANNERS: dict[Command, Planner] = {
    Command.CREATE_USER: create_user,
    Command.UPDATE_USER: update_user,
    Command.DELETE_USER: delete_user,
    Command.UPDATE_PERMISSIONS: update_permissions,
    Command.CHANGE_PASSWORD: change_password,
    Command.CREATE_TOKEN: create_token,
    Command.DELETE_TOKEN: delete_token,
}
