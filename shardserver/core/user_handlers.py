"""Reads of users and tokens. As handlers.py."""

from __future__ import annotations

from shardserver.core.context import ShardContext
from shardserver.core.handlers import Buffers
from shardserver.core.sessions import Connection
from shardserver.core.user_commands import details_of, header_of
from shardserver.protocol.addresses import UserAddress
from shardserver.protocol.body import Empty
from shardserver.protocol.tokens import TokenInfo, TokenList
from shardserver.protocol.users import UserList


def get_user(context: ShardContext, connection: Connection, request: UserAddress) -> Buffers:
    user = context.metadata.find_user(request.user)
    return [] if user is None else [details_of(context.metadata, user).encode()]


def get_users(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    users = sorted(context.metadata.users.items())
    return [UserList(tuple(header_of(user) for _, user in users)).encode()]


def get_tokens(context: ShardContext, connection: Connection, request: Empty) -> Buffers:
    """Of who asks."""
    tokens = context.metadata.users[connection.user_id].tokens.values()
    return [TokenList(tuple(TokenInfo(token.name, token.expires_at) for token in tokens)).encode()]
