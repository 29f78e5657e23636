"""Who somebody is: names with passwords, and tokens. Who fails again and again is slowed down, and told in the log."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from shardserver.core.authentication import PasswordVerifier
from shardserver.core.metadata import Metadata, User
from shardserver.core.user_commands import is_over, token_hash
from shardserver.errors import ShardServerError

log = logging.getLogger(__name__)

EVICT_CREDENTIALS, EVICT_TOKEN, EVICT_TOKEN_EXPIRED = 9, 10, 11
MINUTE_S = 60.0
# Of an attempt after the limit, and the most that one waits behind others of the same address and name.
SLOWED_BY_S, LONGEST_WAIT_S = 1.0, 10.0
NAMES_KEPT = 4096


class LoginRefusedError(ShardServerError):
    """reason: of the eviction."""

    def __init__(self, reason: int) -> None:
        super().__init__(f"login refused, eviction {reason}")
        self.reason = reason


class _Failures:
    """Of one address and user name. free_at: when the next attempt may be looked at."""

    __slots__ = ("count", "free_at", "since")

    def __init__(self, now: float) -> None:
        self.count, self.since, self.free_at = 0, now, now


class FailedLogins:
    """Of one shard; the names that have failed longest ago are forgotten first.

    limit: failures a minute of one address and user name that cost nothing; 0: none is slowed down.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def wait_s(self, key: tuple[str, str]) -> float:
        """Seconds until this attempt may be looked at: one after the other, once there are too many."""
        found, now = self._failures.get(key), self._clock()
        if not self._limit or found is None or now - found.since > MINUTE_S or found.count < self._limit:
            return 0.0
        found.free_at = min(max(found.free_at, now) + SLOWED_BY_S, now + LONGEST_WAIT_S)
        return found.free_at - now

    def note_failure(self, key: tuple[str, str]) -> int:
        """How many it are in this minute."""
        now = self._clock()
        found = self._failures.get(key)
        if found is None or now - found.since > MINUTE_S:
            found = self._failures[key] = _Failures(now)
        self._failures.move_to_end(key)
        if len(self._failures) > NAMES_KEPT:
            self._failures.popitem(last=False)
        found.count += 1
        return found.count

    def note_success(self, key: tuple[str, str]) -> None:
        self._failures.pop(key, None)


class Logins:
    """Of one shard. failures_a_minute: as FailedLogins takes them. clock: seconds; sleep: as asyncio's."""

    def __init__(
        self,
        verifier: PasswordVerifier,
        failures_a_minute: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._verifier, self._sleep = verifier, sleep
        self._failed = FailedLogins(failures_a_minute, clock)

    def close(self) -> None:
        self._verifier.close()

    async def by_password(
        self, metadata_of: Callable[[], Metadata], address: str, username: str, password: str
    ) -> User:
        """The user as the replica has it now. Raises LoginRefusedError."""
        key = (address.rpartition(":")[0], username)
        wait_s = self._failed.wait_s(key)
        if wait_s:
            await self._sleep(wait_s)
        user = metadata_of().find_user(username)
        stored = user.password_hash if user is not None else None
        good = await self._verifier.verify(stored, password)
        user = metadata_of().find_user(username)
        # Looked at again: meanwhile it may have gone, or got another password.
        if good and user is not None and user.password_hash == stored and user.is_active:
            self._failed.note_success(key)
            return user
        self._tell(key, self._failed.note_failure(key))
        raise LoginRefusedError(EVICT_CREDENTIALS)

    def _tell(self, key: tuple[str, str], count: int) -> None:
        if count & (count - 1) == 0:  # at 1, 2, 4, 8 …: a bounded rate
            fields = {"address": key[0], "username": key[1], "failures_this_minute": count}
            log.warning("login_failed", extra={"fields": fields})

    def by_token(self, metadata: Metadata, token: str, now: int) -> User:
        """now: microseconds since the epoch. Raises LoginRefusedError."""
        owner = metadata.token_owners.get(token_hash(token))
        if owner is None:
            raise LoginRefusedError(EVICT_TOKEN)
        user = metadata.users[owner[0]]
        if is_over(user.tokens[owner[1]], now):
            raise LoginRefusedError(EVICT_TOKEN_EXPIRED)
        if not user.is_active:
            raise LoginRefusedError(EVICT_CREDENTIALS)
        return user
