"""Who may log in, and how long somebody who guesses has to wait."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shardserver.core import metadata_events as ev
from shardserver.core.logins import (
    LONGEST_WAIT_S,
    NAMES_KEPT,
    SLOWED_BY_S,
    FailedLogins,
    LoginRefusedError,
    Logins,
)
from shardserver.core.metadata import Metadata, Token, User
from shardserver.core.user_commands import token_hash

KEY = ("127.0.0.1", "alice")
ADDRESS = "127.0.0.1:7"


class Verifier:
    """The password is the hash. meanwhile: what happens while argon2 works."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.meanwhile = lambda: None

    async def verify(self, stored: str | None, password: str) -> bool:
        self.asked.append(stored)
        self.meanwhile()
        return stored == password

    def close(self) -> None: ...


class World:
    def __init__(self, limit: int = 10) -> None:
        self.now, self.waits = 100.0, list[float]()
        self.verifier, self.metadata = Verifier(), Metadata()
        ev.apply(self.metadata, ev.UserCreated(User(0, "iggy", 1, "iggy")))
        ev.apply(self.metadata, ev.UserCreated(User(1, "alice", 1, "secret")))
        self.logins = Logins(self.verifier, limit, lambda: self.now, self.sleep)  # type: ignore[arg-type]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def by_password(self, name: str, password: str) -> int:
        """The user's id; else minus the reason."""
        try:
            return asyncio.run(self.logins.by_password(lambda: self.metadata, ADDRESS, name, password)).id
        except LoginRefusedError as error:
            return -error.reason

    def by_token(self, token: str, now: int = 1) -> int:
        try:
            return self.logins.by_token(self.metadata, token, now).id
        except LoginRefusedError as error:
            return -error.reason


def test_the_password_decides_and_an_unknown_user_costs_the_same() -> None:
    world = World()
    assert world.by_password("alice", "secret") == 1
    assert world.by_password("alice", "wrong") == -9
    assert world.by_password("nobody", "secret") == -9
    assert world.verifier.asked == ["secret", "secret", None]


def test_an_inactive_user_is_refused() -> None:
    world = World()
    ev.apply(world.metadata, ev.UserUpdated(1, None, 2))
    assert world.by_password("alice", "secret") == -9


def test_a_password_changed_while_it_was_compared_does_not_count() -> None:
    world = World()
    world.verifier.meanwhile = lambda: ev.apply(world.metadata, ev.PasswordSet(1, "another"))
    assert world.by_password("alice", "secret") == -9
    world.verifier.meanwhile = lambda: ev.apply(world.metadata, ev.UserDeleted(1))
    assert world.by_password("alice", "another") == -9


def test_a_token_is_its_users_until_its_time_is_over() -> None:
    world = World()
    for name, expires_at in ("never", 0), ("soon", 10):
        ev.apply(world.metadata, ev.TokenCreated(1, Token(name, token_hash(name), expires_at)))
    assert (world.by_token("never"), world.by_token("soon", 9), world.by_token("soon", 10)) == (1, 1, -11)
    assert world.by_token("unknown") == -10
    ev.apply(world.metadata, ev.UserUpdated(1, None, 2))
    assert world.by_token("never") == -9


def test_ten_failures_a_minute_cost_nothing_and_the_next_ones_wait() -> None:
    world = World()
    for _ in range(10):
        assert world.by_password("alice", "wrong") == -9
    assert world.waits == []
    assert world.by_password("alice", "wrong") == -9
    assert world.waits == [SLOWED_BY_S]
    assert world.by_password("iggy", "wrong") == -9  # another name
    assert world.waits == [SLOWED_BY_S]
    assert world.by_password("alice", "secret") == 1  # slowed down, not refused
    assert world.by_password("alice", "wrong") == -9  # and a success clears it
    assert len(world.waits) == 2


def test_those_who_ask_at_once_wait_for_each_other_but_never_long() -> None:
    failed = FailedLogins(1, lambda: 5.0)
    failed.note_failure(KEY)
    waits = [failed.wait_s(KEY) for _ in range(20)]
    assert waits[:3] == [SLOWED_BY_S, 2 * SLOWED_BY_S, 3 * SLOWED_BY_S]
    assert max(waits) == LONGEST_WAIT_S


def test_a_minute_later_all_is_forgotten_and_no_limit_slows_nobody() -> None:
    now = [0.0]
    failed = FailedLogins(1, lambda: now[0])
    failed.note_failure(KEY)
    now[0] = 61.0
    assert failed.wait_s(KEY) == 0 and failed.note_failure(KEY) == 1
    unlimited = FailedLogins(0, lambda: 0.0)
    unlimited.note_failure(KEY)
    assert unlimited.wait_s(KEY) == 0


def test_the_names_that_are_kept_are_bounded() -> None:
    failed = FailedLogins(1, lambda: 0.0)
    for number in range(NAMES_KEPT + 5):
        failed.note_failure(("127.0.0.1", str(number)))
    assert len(failed._failures) == NAMES_KEPT


def test_failures_are_logged_at_a_bounded_rate(caplog: pytest.LogCaptureFixture) -> None:
    world = World(limit=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(40):
            world.by_password("alice", "wrong")
    assert [one.fields["failures_this_minute"] for one in caplog.records] == [1, 2, 4, 8, 16, 32]
    assert "wrong" not in caplog.text
