"""How many bytes of direct runs may be in flight at a time (storage rule 26)."""

from __future__ import annotations

from collections.abc import Callable


class RunBudget:
    """limit_bytes(): as it is now. on_free: told when some were given back. waiting_bytes: of runs that would go on."""

    def __init__(self, limit_bytes: Callable[[], int], on_free: Callable[[], None]) -> None:
        self.limit_bytes, self._on_free = limit_bytes, on_free
        self._waiting: dict[Share, tuple[int, Callable[[], None]]] = {}
        self.taken_bytes = self.waiting_bytes = 0

    def take(self, size: int) -> bool:
        """One run may always go, however large."""
        if self.taken_bytes and self.taken_bytes + size > self.limit_bytes():
            return False
        self.taken_bytes += size
        return True

    def give_back(self, size: int) -> None:
        self.taken_bytes -= size
        self.wake_next()
        self._on_free()

    def wait(self, share: Share, size: int, wake: Callable[[], None]) -> None:
        """wake: called once, when it may be worth another look. Who waits already keeps its place."""
        former, _ = self._waiting.get(share, (0, None))
        self._waiting[share] = size, wake
        self.waiting_bytes += size - former

    def forget(self, share: Share) -> None:
        size, _ = self._waiting.pop(share, (0, None))
        self.waiting_bytes -= size

    def wake_next(self) -> None:
        for share, (_, wake) in self._waiting.items():
            self.forget(share)
            wake()
            return


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

    def wait(self, size: int, wake: Callable[[], None]) -> None:
        """Until some was given back, then look again, and call end_wait in the end."""
        self._budget.wait(self, size, wake)

    def end_wait(self) -> None:
        """It took what it waited for, or wants it no more. What is left of what woke it is for the next one."""
        self._budget.forget(self)
        self._budget.wake_next()
