"""The errors that we raise on purpose, and the codes that travel on the wire.

A class names what the receiver must do; a code says why. Codes are those of the Apache Iggy 0.9
protocol; a code keeps its meaning for good.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Codes that this server sends in a status field or a result section."""

    ERROR = 1
    INVALID_COMMAND = 3
    INVALID_FORMAT = 4
    FEATURE_UNAVAILABLE = 5
    INVALID_IDENTIFIER = 6
    RESOURCE_NOT_FOUND = 20
    UNAUTHENTICATED = 40
    UNAUTHORIZED = 41
    INVALID_CREDENTIALS = 42
    INVALID_USERNAME = 43
    INVALID_PASSWORD = 44
    INVALID_USER_STATUS = 45
    USER_ALREADY_EXISTS = 46
    CANNOT_DELETE_USER = 48
    CANNOT_CHANGE_PERMISSIONS = 49
    TOKEN_ALREADY_EXISTS = 51
    TOKENS_LIMIT_REACHED = 52
    INVALID_TOKEN_EXPIRY = 56
    TRANSIENT_NOT_COMMITTED = 57
    TRANSIENT_NOT_ACCEPTED = 58
    REQUEST_ALREADY_APPLIED = 59
    STREAM_NOT_FOUND = 1009
    STREAM_NAME_ALREADY_EXISTS = 1012
    INVALID_STREAM_NAME = 1013
    INVALID_TOPIC_SIZE = 1019
    TOO_MANY_STREAMS = 1020
    TOPIC_NOT_FOUND = 2010
    TOPIC_NAME_ALREADY_EXISTS = 2013
    INVALID_TOPIC_NAME = 2014
    TOO_MANY_PARTITIONS = 2015
    INVALID_PARTITIONS_COUNT = 2019
    TOO_MANY_TOPICS = 2021
    PARTITION_NOT_FOUND = 3007
    NO_PARTITIONS = 3008
    PARTITION_IDS_EXHAUSTED = 3013
    CONSUMER_OFFSET_NOT_FOUND = 3021
    DISK_FULL = 4006
    DAMAGED_BATCH = 4011
    TOO_BIG_USER_HEADERS = 4017
    INVALID_HEADER_KEY = 4018
    INVALID_HEADER_VALUE = 4019
    INVALID_MESSAGE_CHECKSUM = 4027
    INVALID_KEY_LENGTH = 4028
    INVALID_BATCH_CHECKSUM = 4039
    UNSUPPORTED_OPTION_KEY = 4041
    INVALID_OPTION_VALUE = 4042
    OPTIONS_BLOCK_TOO_LARGE = 4043
    INVALID_OFFSET = 4100
    GROUP_NOT_FOUND = 5000
    GROUP_NAME_ALREADY_EXISTS = 5004
    GROUP_MEMBER_NOT_FOUND = 5006
    SNAPSHOT_FAILED = 9000
    IO_ERROR = 13000


class ShardServerError(Exception):
    """Base of all errors that we raise on purpose."""


class RejectedError(ShardServerError):
    """This request is wrong: answer `code`, keep the connection."""

    def __init__(self, code: Code, message: str = "") -> None:
        super().__init__(message or code.name.lower())
        self.code = code


class BackpressureError(ShardServerError):
    """Nothing is wrong with the request: try again later."""


class NotOwnerError(BackpressureError):
    """This shard does not own that partition, any more or just now: route again."""


class ArenaFullError(BackpressureError):
    """The arena has no block of that size."""


class NotCommittedError(BackpressureError):
    """The request was handed over and has not been answered in time: it may be done or not (code 57)."""


class PeerGoneError(BackpressureError):
    """The peer's process ended before it answered."""


class ProtocolError(ShardServerError):
    """The peer broke framing: close the connection, log the reason."""


class ConfigError(ShardServerError):
    """The configuration cannot be used: refuse to start, say why."""


class StorageError(ShardServerError):
    """The disk failed: fence what it covered, keep serving the rest."""

    def __init__(self, message: str, *, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class DiskFullError(StorageError):
    """No room (ENOSPC, EDQUOT): refuse appends, resume when there is room."""


class CorruptionError(StorageError):
    """Bytes and checksum disagree."""

    def __init__(self, path: str, position: int, expected: str) -> None:
        super().__init__(f"{path} at byte {position}: expected {expected}")
        self.path = path
        self.position = position
        self.expected = expected
