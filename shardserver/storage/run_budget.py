"""How many bytes of direct runs may be in flight at a time (storage rule 26)."""

from __future__ import annotations

from collections.abc import Callable


class RunBudget:
    """limit_bytes(): as it is now. on_free: told when some were given back."""

    def __init__(self, limit_bytes: Callable[[], int], on_free: Callable[[], None]) -> None:
        self.limit_bytes, self._on_free = limit_bytes, on_free
        self.taken_bytes = 0

    def take(self, size: int) -> bool:
        """One run may always go, however large."""
        if self.taken_bytes and self.taken_bytes + size > self.limit_bytes():
            return False
        self.taken_bytes += size
        return True

    def give_back(self, size: int) -> None:
        self.taken_bytes -= size
        self._on_free()


class Share:
    """What one run has taken of the budget; 0 while nothing of it is in flight."""

    def __init__(self, budget: RunBudget) -> None:
        self._budget, self._taken = budget, 0

    def take(self, size: int) -> bool:
        if not self._budget.take(size):
            return False
        self._taken += size
        return True

    def give_back(self) -> None:
        taken, self._taken = self._taken, 0
        if taken:
            self._budget.give_back(taken)
