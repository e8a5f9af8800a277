"""Deterministic data parallel: the same bits on 1, 2 and 4 processes, whatever the workers, across resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ended, together
from small_runs import Trained, Work, failing_on_the_second, not_finite, trained

from nalanda.base.errors import UserError
from nalanda.config import ConfigError, parse
from nalanda.train.config import LoopConfig

EXACT: dict[str, Any] = {"parallel": {"mode": "deterministic"}, "ema": {"decay": 0.9}}
TIMES = ("seconds", "tokens_per_second")


def plain(run: Trained) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in run.rows]


def same(one: Trained, other: Trained) -> bool:
    return all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


@pytest.fixture(scope="module")
def alone() -> Trained:
    return trained(Work(EXACT, source={"micros": 5}, evaluate=True))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_rank_counts_give_the_same_bits(alone: Trained, ranks: int) -> None:
    work = Work({**EXACT, "workers": ranks}, source={"micros": 5}, evaluate=True)
    first, *others = together(ranks, trained, work)
    assert plain(first) == plain(alone)
    assert all(same(run, alone) for run in [first, *others])
    assert all(not run.rows for run in others), "only the first rank logs"


@pytest.mark.slow
def test_muon_and_more_ranks_than_batches(alone: Trained) -> None:
    work = Work({**EXACT, "optimizer": {"kind": "muon"}}, source={"micros": 3})
    one = trained(work)
    for run in together(4, trained, work):
        assert same(run, one)


def test_a_run_goes_on_with_other_ranks_and_workers(alone: Trained, tmp_path: Path) -> None:
    """2 ranks, stopped; then 1 rank; the rows and weights are those of the run that was never stopped."""
    values = {"source": {"micros": 5}, "evaluate": True, "folder": str(tmp_path)}
    stopped = together(2, trained, Work({**EXACT, "workers": 2}, stop_at=(1, 4), **values))
    assert {(type(end), end.code) for end in stopped} == {(Ended, 143)}
    assert sorted("stopped after step 4" in end.line for end in stopped) == [False, True]
    rest = trained(Work({**EXACT, "workers": 0}, **values))
    assert plain(rest) == plain(alone)[-len(rest.rows) :]
    assert rest.rows[0]["step"] == 5
    assert same(rest, alone)


def test_an_error_of_any_rank_ends_all_with_one_line() -> None:
    ended = together(2, failing_on_the_second, Work(EXACT))
    assert [(end.code, end.line) for end in ended] == [(1, ""), (1, "step 2 cannot be made")]


def test_a_loss_that_is_not_finite_ends_all() -> None:
    ended = together(2, not_finite, Work(EXACT))
    assert {end.code for end in ended} == {4}
    wanted = "step 1: the loss is nan; the loss in micro-batch 3 of 4, first the model; samples"
    assert sorted(wanted in end.line for end in ended) == [False, True]


@pytest.mark.parametrize(
    ("parallel", "line"),
    [
        (
            {"data": 2, "tensor": 2},
            "parallel: data 2 x tensor 2 x context 1 x expert 1 is 4 processes and this run has 1",
        ),
        (
            {"tensor": 3},
            "parallel: data 1 x tensor 3 x context 1 x expert 1 is 3 processes and this run has 1",
        ),
    ],
)
def test_sizes_that_are_not_the_run_are_one_line(parallel: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        trained(Work({"parallel": parallel}))


@pytest.mark.parametrize(
    ("parallel", "line"),
    [
        ({"mode": "deterministic", "tensor": 2}, "take out tensor"),
        ({"mode": "deterministic", "shard": True}, "take out shard"),
        ({"mode": "deterministic", "data": 3}, "power of two, not 3"),
    ],
)
def test_what_deterministic_mode_cannot_do_is_one_line(parallel: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        parse(LoopConfig, {"budget": {"steps": 1}, "parallel": parallel}, "test")
