"""Steps that go wrong on one rank: all ranks skip, rewind and make room together, as one process does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from small_runs import Work, largest_difference, short_of_memory, trained

EXACT: dict[str, Any] = {"parallel": {"mode": "deterministic"}}


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_ranks_pass_over_a_step_together(policy: str, tmp_path: Path) -> None:
    loop = {**EXACT, "health": {"nonfinite": policy}, "checkpoint": {"every": 2}}
    work = Work(loop, source={"micros": 4, "infinite": (3,)})
    one = trained(work)
    assert [event["step"] for event in one.result["health"]] == [4]
    for run in together(2, trained, replace(work, folder=str(tmp_path))):
        assert run.result["health"] == one.result["health"]
        assert all(torch.equal(value, one.weights[name]) for name, value in run.weights.items())


@pytest.mark.parametrize(("mode", "parts"), [("deterministic", 2), ("fast", 2)])
def test_one_rank_out_of_memory_makes_all_micro_batches_smaller(mode: str, parts: int) -> None:
    work = Work({"parallel": {"mode": mode}}, source={"micros": 4})
    one = trained(work)
    for run in together(2, short_of_memory, work):
        assert [(event["step"], event["parts"]) for event in run.result["health"]] == [(1, parts)]
        if run.losses:
            losses, weights = largest_difference(one, run)
            assert losses < 1e-6
            assert weights < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"shard": True}, {"tensor": 2}, {"context": 2}])
def test_ranks_that_meet_inside_passes_find_the_place_together(parallel: dict[str, Any]) -> None:
    loop = {"parallel": parallel, "health": {"nonfinite": "skip"}}
    for run in together(2, trained, Work(loop, source={"infinite": (2,)})):
        (event,) = run.result["health"]
        assert event["step"] == 3
        assert "the loss in micro-batch 4 of 4, first in the objective, of finite hidden" in event["why"]
