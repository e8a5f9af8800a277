"""Schedules against values worked out by hand; budgets in steps, minutes and replayed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nalanda.base.errors import RunError
from nalanda.config import ConfigError, parse
from nalanda.train.schedule import Budget, BudgetConfig, ScheduleConfig


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("cosine", 0.05, 0.5),  # half of the warm-up
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.55),  # half way down from 1 to 0.1
        ("cosine", 1.0, 0.1),
        ("linear", 0.325, 0.775),  # a quarter of the way
        ("linear", 1.0, 0.1),
        ("constant", 0.05, 0.5),
        ("constant", 0.9, 1.0),
        ("inverse_sqrt", 0.1, 1.0),
        ("inverse_sqrt", 0.4, 0.5),
        ("inverse_sqrt", 0.9, 1 / 3),
        ("wsd", 0.79, 1.0),
        ("wsd", 0.9, 0.55),
        ("wsd", 1.0, 0.1),
    ],
)
def test_values_by_hand(kind: str, progress: float, expected: float) -> None:
    schedule = ScheduleConfig(kind=kind, warmup=0.1, final=0.1, decay=0.2)  # type: ignore[arg-type]
    assert schedule.factor(progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("cooldown", "expected"), [("linear", 0.75), ("cosine", (1 + math.cos(math.pi / 4)) / 2), ("sqrt", 0.5)]
)
def test_cooldowns_by_hand(cooldown: str, expected: float) -> None:
    schedule = ScheduleConfig(kind="wsd", warmup=0.0, decay=0.4, cooldown=cooldown)  # type: ignore[arg-type]
    assert schedule.factor(0.6) == 1.0
    assert schedule.factor(0.7) == pytest.approx(expected)  # a quarter of the way down
    assert schedule.factor(1.0) == pytest.approx(0.0)


def test_what_is_off_is_not_written() -> None:
    assert "cooldown" not in ScheduleConfig().to_dict()
    assert ScheduleConfig(cooldown="sqrt").to_dict()["cooldown"] == "sqrt"


def test_cosine_quarter() -> None:
    assert ScheduleConfig(warmup=0.0).factor(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_warmup_in_steps_is_a_share_of_a_budget_in_steps() -> None:
    schedule = ScheduleConfig(warmup=50)
    assert schedule.in_shares(BudgetConfig(steps=200)).warmup == 0.25
    with pytest.raises(ValueError, match="need a budget in steps"):
        schedule.in_shares(BudgetConfig(minutes=1))
    with pytest.raises(ValueError, match="leave nothing"):
        schedule.in_shares(BudgetConfig(steps=50))


def test_exactly_one_budget() -> None:
    for values in ({}, {"steps": 3, "minutes": 1}):
        with pytest.raises(ConfigError, match="exactly one of steps, minutes, replay"):
            parse(BudgetConfig, values, "x.yaml")


def test_steps_are_taken_at_their_middle() -> None:
    budget = Budget(BudgetConfig(steps=4))
    positions = []
    while not budget.over:
        positions.append(budget.begin())
        budget.end(9.0)
    assert positions == [0.125, 0.375, 0.625, 0.875]
    assert budget.seconds == 36.0


def test_minutes_follow_the_clock_and_go_on_from_a_checkpoint() -> None:
    budget = Budget(BudgetConfig(minutes=1))
    assert budget.begin() == 0.0005
    budget.end(12.0)
    assert budget.begin() == pytest.approx(12 / 60)
    budget.end(6.0)
    again = Budget(BudgetConfig(minutes=1))
    again.load(budget.state(), budget.positions)
    assert again.begin() == budget.begin() == pytest.approx(18 / 60)
    again.end(43.0)
    assert again.over
    assert again.share == 1.0


def test_replay_walks_the_same_positions() -> None:
    config = BudgetConfig(replay=Path("somewhere"))
    budget = Budget(config, [0.1, 0.5])
    assert [budget.begin(), budget.begin()] == [0.1, 0.5]
    assert budget.over
    with pytest.raises(RunError, match="positions"):
        Budget(config, [0.1, 0.5]).load({"seconds": 1.0}, [0.2])
