"""Who sends and polls what: shares of processes, partitions, places to begin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardserver.bench.load import MOST_NS
from shardserver.bench.plan import LoadSpec, Shape, plan_connections, plan_processes, polls_over, prefill_spec
from shardserver.protocol.batch import verify_batch

SHAPE = Shape.fixed(10, 100)


@given(
    senders=st.integers(0, 20),
    pollers=st.integers(0, 20),
    processes=st.integers(1, 8),
    requests=st.none() | st.integers(1, 999),
)
def test_each_connection_is_in_one_process_and_the_requests_add_up(
    senders: int, pollers: int, processes: int, requests: int | None
) -> None:
    spec = LoadSpec(SHAPE, senders=senders, pollers=pollers, partitions=3, requests=requests)
    plans = plan_processes(spec, "host", 1, None, [1, 2], processes, first_number=50)
    connections = [one for plan in plans for one in plan.connections]
    assert sorted(one.number for one in connections) == list(range(50, 50 + senders + pollers))
    assert all(plan.connections for plan in plans) and len(plans) <= processes
    if requests is not None and senders:
        assert sum(one.request_limit for one in connections if one.sends) == requests


@given(senders=st.integers(1, 9), pollers=st.integers(1, 9), processes=st.integers(1, 9))
def test_polls_that_end_with_the_sends_have_sends_beside_them(senders: int, pollers: int, processes: int) -> None:
    spec = LoadSpec(SHAPE, senders=senders, pollers=pollers, requests=100)
    for plan in plan_processes(spec, "host", 1, None, [1], processes):
        assert any(one.sends for one in plan.connections)
        assert all(one.request_limit == MOST_NS for one in plan.connections if not one.sends)


@given(connections=st.integers(1, 64), processes=st.integers(1, 8), rate=st.floats(1, 1e6))
def test_the_rates_of_the_processes_add_up(connections: int, processes: int, rate: float) -> None:
    plans = plan_processes(LoadSpec(SHAPE, senders=connections, rate=rate), "host", 1, None, [1], processes)
    assert abs(sum(1e9 / plan.interval_ns for plan in plans) - rate) < rate * 1e-9


def test_a_connection_stays_on_its_partition_unless_it_switches() -> None:
    stays = plan_connections(LoadSpec(SHAPE, senders=5, partitions=3), 1)
    assert [(one.first_partition, one.partitions) for one in stays] == [(0, 1), (1, 1), (2, 1), (0, 1), (1, 1)]
    switches = plan_connections(LoadSpec(SHAPE, senders=2, partitions=3, switches=True), 1)
    assert [(one.first_partition, one.partitions) for one in switches] == [(0, 3)] * 2


def test_pollers_of_one_partition_begin_apart_at_whole_batches() -> None:
    spec = LoadSpec(SHAPE, pollers=4, partitions=2, log_messages=70)
    assert [one.first_offset for one in plan_connections(spec, 1)] == [0, 0, 30, 30]


@given(st.integers(1, 50), st.integers(0, 10**7))
def test_a_fill_puts_as_much_into_every_partition(partitions: int, total_bytes: int) -> None:
    filling = prefill_spec(SHAPE, partitions, total_bytes)
    connections = plan_connections(filling, 1)
    [batches] = {one.request_limit for one in connections}
    assert sorted(one.first_partition for one in connections) == list(range(partitions))
    assert polls_over(LoadSpec(SHAPE, pollers=1), filling).log_messages == batches * 10 > 0


@given(st.integers(1, 5), st.integers(0, 300), st.integers(0, 300))
def test_batches_are_valid_with_sizes_of_the_range(messages: int, least: int, more: int) -> None:
    shape = Shape(messages, least, least + more)
    for batch in shape.make_batches(3):
        assert verify_batch(bytearray(batch), messages) == 0
        assert shape.fixed(messages, least).batch_bytes <= len(batch) <= shape.largest_batch_bytes
