"""That the machinery of `make mutants` tells a rule that is missed from one that is not; without compiling anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutants.mutant_run import Outcome, judge, run_all, run_mutant, run_tests
from tests.mutants.rules import MUTANTS, Mutant
from tests.mutants.tree import ROOT, StaleMutantError, make_tree, mutated_source

POSITION = next(one for one in MUTANTS if one.name == "position")
ONE_TEST = ("tests/storage/test_journal_recovery.py::test_a_payload_that_copies_a_journal_write_is_no_write",)
HARMLESS = Mutant("harmless", "none", POSITION.path, '"""Nothing but zeros', '"""Only zeros', ONE_TEST)
STALE = Mutant("stale", "none", POSITION.path, "no such line", "", ONE_TEST)


def test_a_rule_that_is_taken_out_is_missed_and_a_harmless_change_survives(tmp_path):
    make_tree(tmp_path)
    assert run_mutant(tmp_path, replace(POSITION, tests=ONE_TEST)).found.startswith(ONE_TEST[0])
    assert run_mutant(tmp_path, HARMLESS) == Outcome()
    assert (tmp_path / POSITION.path).read_text() == (ROOT / POSITION.path).read_text()


def test_a_survivor_and_a_mutant_that_no_longer_applies_fail_the_run(capsys):
    assert not run_all([HARMLESS], None)
    assert not run_all([STALE], None)
    printed = capsys.readouterr().out
    assert "SURVIVED" in printed
    assert "'no such line' 0 times" in printed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_each_mutant_changes_one_place_and_names_tests_that_are_there(mutant):
    assert mutated_source(mutant) != (ROOT / mutant.path).read_text()
    assert all((ROOT / test.split("::")[0]).exists() for test in mutant.tests)


def test_a_place_that_is_not_there_or_there_twice_is_told():
    for old in ("no such line", "async def"):
        with pytest.raises(StaleMutantError, match="times"):
            mutated_source(Mutant("stale", "none", POSITION.path, old, "", ONE_TEST))


def test_tests_that_could_not_run_have_missed_nothing():
    assert judge(2, "ERROR tests/a.py - ImportError").trouble
    assert judge(1, "ERROR tests/a.py::test_b - a fixture that does not compile").trouble
    assert judge(5, "no tests ran").trouble
    assert judge(1, "FAILED tests/a.py::test_b[1] - assert 0").found == "tests/a.py::test_b[1]"


def test_tests_that_do_not_end_have_missed_nothing(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "tests/hangs.py").write_text("import threading\n\n\ndef test_hangs():\n    threading.Event().wait()\n")
    outcome = run_tests(tmp_path, ("tests/hangs.py",), limit_s=2)
    assert (outcome.found, outcome.trouble) == ("", "no end within 2 s")
