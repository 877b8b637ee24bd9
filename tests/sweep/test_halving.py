"""Rungs and budgets, by examples that were worked by hand."""

import math

import pytest

from luthier.core.errors import UsageError
from luthier.plan.steps import Steps
from luthier.sweep.budget import ENDLESS, Budget, Spent
from luthier.sweep.halving import Rung, rungs, step_of, survivors


def steps(total: int, every: int, warmup: int = 0) -> Steps:
    at = (*range(every, total, every), total)
    return Steps(rows=total, global_batch_size=1, per_epoch=total, total=total, warmup=warmup, saves=at, evaluations=at)


def test_half_of_the_trials_go_twice_as_far() -> None:
    """9 trials: 9 · ⅛ + 4 · ⅛ + 2 · ¼ + 1 · ½ = 2.6 runs in place of 9."""
    assert rungs(1) == (Rung(trials=1, share=1),)
    assert rungs(2) == (Rung(trials=2, share=0.5), Rung(trials=1, share=1))
    assert rungs(6) == (Rung(trials=6, share=0.25), Rung(trials=3, share=0.5), Rung(trials=1, share=1))
    assert [(rung.trials, rung.share) for rung in rungs(9)] == [(9, 0.125), (4, 0.25), (2, 0.5), (1, 1)]


def test_a_rung_is_a_validation_of_the_full_run() -> None:
    assert [step_of(share, steps(40, every=4)) for share in (0.25, 0.5, 1)] == [12, 20, 40]
    assert step_of(0.25, steps(40, every=30)) == 30
    assert step_of(0.5, steps(40, every=100)) == 40


def test_no_rung_lies_in_the_warmup() -> None:
    assert step_of(0.25, steps(40, every=4, warmup=12)) == 16


def test_the_best_survive_and_of_equal_ones_the_first() -> None:
    values = {"a": 2.0, "b": 1.0, "c": 2.0, "d": 3.0}
    assert survivors(values, 3, higher_is_better=False) == ("b", "a", "c")
    assert survivors(values, 2, higher_is_better=True) == ("d", "a")
    assert survivors({"a": 1.0}, 3, higher_is_better=False) == ("a",)


def test_a_budget_is_time_or_money_or_both() -> None:
    assert Budget.read([]) == ENDLESS
    assert Budget.read(["30 min"]) == Budget(seconds=1800)
    assert Budget.read(["1.5h", "5 dollars"]) == Budget(seconds=5400, dollars=5)
    assert str(Budget.read(["30 min", "5 dollars"])) == "30 min and $5.00"
    with pytest.raises(UsageError, match="'soon' is no time and no money"):
        Budget.read(["soon"])


def test_a_trial_fits_where_both_time_and_money_are_left() -> None:
    """30 min and $5, of which 20 min and $4 are spent: 10 min at $6 an hour are $1 and fit, at $9 an hour they do not."""
    budget, spent = Budget(seconds=1800, dollars=5), Spent(seconds=1200, dollars=4)
    assert budget.bears(spent, Spent(seconds=600, dollars=1))
    assert not budget.bears(spent, Spent(seconds=600, dollars=1.5))
    assert not budget.bears(spent, Spent(seconds=601))


def test_what_is_left_ends_with_the_clock_or_with_the_money() -> None:
    budget, spent = Budget(seconds=1800, dollars=5), Spent(seconds=1200, dollars=4)
    assert budget.seconds_left(spent, 6 / 3600) == pytest.approx(600)
    assert budget.seconds_left(spent, 12 / 3600) == pytest.approx(300)
    assert budget.seconds_left(Spent(seconds=9999), 0) == 0
    assert ENDLESS.seconds_left(spent, 1) == math.inf
