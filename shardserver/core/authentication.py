"""Passwords: argon2 off the loop, and a memory of verified logins so that a storm of reconnects stays cheap."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import argon2

VERIFIED_KEPT = 1024


def hash_password(password: str) -> str:
    return argon2.PasswordHasher().hash(password)


class PasswordVerifier:
    """Remembers verified pairs under a key of this process; the key includes the stored hash, so a change voids it."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="argon2")
        self._hasher = argon2.PasswordHasher()
        self._nobody = ""

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Is it the password? password_hash: None for an unknown user."""
        stored = password_hash or ""
        mark = hmac.new(self._key, stored.encode() + b"\0" + password.encode(), hashlib.sha256).digest()
        if mark in self._verified:
            self._verified.move_to_end(mark)
            return True
        loop = asyncio.get_running_loop()
        good = await loop.run_in_executor(self._pool, self._check, stored, password)
        if good and password_hash is not None:
            self._verified[mark] = None
            if len(self._verified) > VERIFIED_KEPT:
                self._verified.popitem(last=False)
        return good and password_hash is not None

    async def hash(self, password: str) -> str:
        """As it is stored."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._hasher.hash, password)

    def _check(self, stored: str, password: str) -> bool:
        if not stored:  # of an unknown user: the time does not tell who exists
            stored = self._nobody = self._nobody or self._hasher.hash(secrets.token_hex(16))
        try:
            return self._hasher.verify(stored, password)
        except argon2.exceptions.VerificationError:
            return False

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
