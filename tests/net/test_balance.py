"""Where a new connection goes: as the boards say, with those on their way, over deaths, and when counts are equal."""

from __future__ import annotations

from shardserver.memory.board import BOARD_BYTES, Board
from shardserver.net.balance import Balance


class Shards:
    """Balances of some shards that see each other's boards."""

    def __init__(self, count: int) -> None:
        self.boards: dict[int, Board] = {}
        self.balances: dict[int, Balance] = {}
        for number in range(count):
            self.start(number)

    def start(self, number: int) -> None:
        self.boards[number] = Board(memoryview(bytearray(BOARD_BYTES)))
        self.balances[number] = Balance(number, self.boards[number])
        for other in self.balances:
            if other != number:
                self.balances[number].attach(other, self.boards[other])
                self.balances[other].attach(number, self.boards[number])

    def end(self, number: int) -> None:
        del self.balances[number], self.boards[number]
        for other in self.balances.values():
            other.detach(number)

    def hand(self, source: int, target: int) -> None:
        self.balances[source].note_handed(target)

    def receive(self, source: int, target: int) -> None:
        self.balances[target].note_received(source)
        self.boards[target].connections += 1

    def accept(self, shard: int) -> int:
        best = self.balances[shard].best()
        if best == shard:
            self.boards[shard].connections += 1
        else:
            self.hand(shard, best)
        return best


def test_equal_counts_keep_a_connection_where_it_was_accepted() -> None:
    shards = Shards(3)
    assert [shards.balances[number].best() for number in range(3)] == [0, 1, 2]


def test_of_others_with_equal_counts_the_lowest_number_gets_it() -> None:
    shards = Shards(4)
    shards.boards[3].connections = 5
    assert shards.balances[3].best() == 0
    shards.boards[0].connections = 1
    assert shards.balances[3].best() == 1


def test_what_is_on_its_way_counts_where_it_goes() -> None:
    shards = Shards(3)
    shards.hand(0, 1)
    shards.hand(0, 1)
    shards.hand(2, 1)
    assert [shards.balances[0].count(number) for number in range(3)] == [0, 3, 0]
    shards.receive(0, 1)
    assert shards.balances[2].count(1) == 3  # counted once, on its way or there
    shards.receive(2, 1)
    shards.receive(0, 1)
    assert shards.balances[2].count(1) == shards.boards[1].connections == 3


def test_all_see_the_same_counts() -> None:
    shards = Shards(3)
    shards.hand(0, 2)
    shards.hand(1, 0)
    shards.boards[1].connections = 4
    views = [[shards.balances[one].count(number) for number in range(3)] for one in range(3)]
    assert views == [[1, 4, 1]] * 3


def test_sixteen_connections_on_four_shards_end_as_four_each_wherever_they_come_in() -> None:
    for accepting in ([0] * 16, [0, 1] * 8, [3, 3, 0, 0] * 4):
        shards = Shards(4)
        for shard in accepting:
            shards.accept(shard)
        assert [shards.balances[0].count(number) for number in range(4)] == [4, 4, 4, 4]


def test_only_accepting_shards_get_new_connections() -> None:
    boards = [Board(memoryview(bytearray(BOARD_BYTES))) for _ in range(3)]
    balance = Balance(0, boards[0], accepting=(0, 2))
    for number in (1, 2):
        balance.attach(number, boards[number])
    boards[0].connections = 3
    boards[2].connections = 2
    assert balance.best() == 2
    assert Balance(1, boards[1], accepting=()).best() == 1  # whoever has it by then keeps it


def test_a_dead_shard_gets_nothing_and_its_next_process_counts_from_zero() -> None:
    shards = Shards(2)
    for _ in range(3):
        shards.hand(0, 1)
    shards.hand(1, 0)
    shards.receive(1, 0)
    shards.receive(0, 1)
    shards.end(1)
    shards.boards[0].connections = 9
    assert shards.balances[0].best() == 0
    shards.start(1)
    assert [shards.balances[number].count(1) for number in range(2)] == [0, 0]
    assert [shards.balances[number].count(0) for number in range(2)] == [9, 9]
    assert shards.balances[0].best() == 1


def test_a_dead_shards_board_is_not_looked_at_by_the_others() -> None:
    shards = Shards(3)
    shards.hand(1, 2)  # it dies with the message unread, or read: nobody will know
    shards.end(1)
    assert shards.balances[0].count(2) == 0


def test_failed_syncs_of_others_are_counted_and_never_forgotten() -> None:
    shards = Shards(3)
    balance = shards.balances[0]
    shards.boards[0].sync_faults = 9  # our own
    assert balance.sync_faults_of_others() == 0
    shards.boards[1].sync_faults = 2
    shards.boards[2].sync_faults = 1
    assert balance.sync_faults_of_others() == 3
    shards.end(1)
    assert balance.sync_faults_of_others() == 3
    shards.start(1)
    shards.boards[1].sync_faults = 1
    assert balance.sync_faults_of_others() == 4
