"""The budget of bulk in flight: who waits for it is woken one after the other, whatever becomes of those before."""

from __future__ import annotations

from shardserver.storage.run_budget import RunBudget, Share


def test_what_the_woken_one_does_not_take_wakes_the_next() -> None:
    turns: list[None] = []
    budget = RunBudget(lambda: 10, lambda: turns.append(None))
    holder, late, patient = Share(budget), Share(budget), Share(budget)
    woken: list[str] = []
    assert holder.take(10) and not late.take(4)
    late.wait(4, lambda: woken.append("late"))
    patient.wait(5, lambda: woken.append("patient"))
    late.wait(6, lambda: woken.append("late"))  # more has come: it keeps its place
    assert budget.waiting_bytes == 11
    holder.give_back()
    assert woken == ["late"] and len(turns) == 1
    late.end_wait()
    assert woken == ["late", "patient"]
    assert patient.take(5) and budget.taken_bytes == 5
    patient.end_wait()
    patient.give_back()
    assert woken == ["late", "patient"] and budget.waiting_bytes == budget.taken_bytes == 0


def test_who_waits_no_more_is_not_woken() -> None:
    budget = RunBudget(lambda: 1, lambda: None)
    holder, gone = Share(budget), Share(budget)
    woken: list[int] = []
    holder.take(1)
    gone.wait(1, lambda: woken.append(1))
    gone.end_wait()
    holder.give_back()
    assert woken == [] and budget.waiting_bytes == 0
