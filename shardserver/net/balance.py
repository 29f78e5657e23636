"""Which shard a new connection goes to: the one with the fewest, as the boards of all say.

Each shard writes in its own board only: how many connections it has, how many it has handed to each other one, and how
many it has received from each. What is on its way counts for the shard it goes to.
"""

from __future__ import annotations

from collections.abc import Container

from shardserver.memory.board import MAX_SHARDS, Board


class Balance:
    """own: our board; `boards` holds those of the peers that have a process, own included.

    accepting: the shards that take new connections; the others get those only that ask them most.
    """

    def __init__(self, number: int, own: Board, accepting: Container[int] = range(MAX_SHARDS)) -> None:
        self.number, self.own, self._accepting = number, own, accepting
        self.boards: dict[int, Board] = {number: own}
        self._faults_of_the_dead = 0

    def attach(self, number: int, board: Board) -> None:
        """A new process of a peer: what was handed to or received from the former one counts no more."""
        self.own.handed[number] = self.own.received[number] = 0
        self.boards[number] = board

    def detach(self, number: int) -> None:
        gone = self.boards.pop(number, None)
        if gone is not None:
            self._faults_of_the_dead += gone.sync_faults

    def sync_faults_of_others(self) -> int:
        """Never falls: what a dead process met counts on."""
        if len(self.boards) == 1:  # asked twice for each sync
            return self._faults_of_the_dead
        others = sum(board.sync_faults for number, board in self.boards.items() if number != self.number)
        return self._faults_of_the_dead + others

    def count(self, shard: int) -> int:
        """Connections of a shard, and those on their way to it."""
        board = self.boards[shard]
        on_their_way = sum(other.handed[shard] - board.received[number] for number, other in self.boards.items())
        return board.connections + on_their_way

    def best(self) -> int:
        """The shard with the fewest; ourselves unless another has fewer."""
        counts = {number: self.count(number) for number in self.boards if number in self._accepting}
        if not counts:
            return self.number
        return min(counts, key=lambda number: (counts[number], number != self.number, number))

    def note_handed(self, shard: int) -> None:
        self.own.handed[shard] += 1

    def note_received(self, shard: int) -> None:
        self.own.received[shard] += 1
