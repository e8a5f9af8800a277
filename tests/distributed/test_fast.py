"""Fast mode: every way of sharing the work learns what one process learns, within the rounding of sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import together
from small_runs import Trained, Work, largest_difference, trained


def check(work: Work, ranks: int, parallel: dict[str, Any], losses: float, weights: float) -> Trained:
    one = trained(work)
    runs = together(ranks, trained, Work(**{**vars(work), "loop": {**work.loop, "parallel": parallel}}))
    assert not isinstance(runs[0], Exception), runs
    found = largest_difference(one, runs[0])
    assert found[0] <= losses
    assert found[1] <= weights
    return runs[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shard", [False, True])
def test_data_parallel(shard: bool, optimizer: str) -> None:
    check(
        Work({"optimizer": {"kind": optimizer}, "ema": {"decay": 0.9}, "clip": 0.1}, evaluate=True),
        2,
        {"shard": shard},
        1e-6,
        1e-6,
    )


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activations_worked_out_again_change_no_bit(mode: str) -> None:
    work = Work(model={"dropout": 0.1})
    one = trained(work)
    other = trained(Work({"parallel": {"checkpointing": mode}}, model={"dropout": 0.1}))
    assert other.losses == one.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_tensor_parallel() -> None:
    check(Work({"optimizer": {"kind": "muon"}}, evaluate=True), 2, {"tensor": 2}, 1e-6, 1e-6)


def test_context_parallel() -> None:
    check(Work(source={"width": 15}), 2, {"context": 2}, 1e-6, 1e-6)


MOE = {"moe": {"experts": 4, "top_k": 2, "inner": 16, "balance_bias": True}}


def test_expert_parallel() -> None:
    check(Work(model=MOE, experts=True), 2, {"expert": 2}, 1e-6, 1e-6)


ALL = [
    ({"data": 2, "tensor": 2}, {}),
    ({"data": 2, "tensor": 2, "shard": True}, {"qk_norm": True}),
    ({"context": 2, "tensor": 2}, {}),
    ({"data": 2, "context": 2, "shard": True, "checkpointing": "full"}, {}),
    ({"context": 4}, {"window": 5}),
    ({"data": 2, "expert": 2}, MOE),
    ({"data": 2, "expert": 2, "shard": True, "checkpointing": "selective"}, MOE),
    ({"expert": 2, "context": 2}, MOE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "model"), ALL)
def test_all_together(parallel: dict[str, Any], model: dict[str, Any]) -> None:
    check(Work({"optimizer": {"kind": "muon"}}, model=model, evaluate=True), 4, parallel, 1e-6, 1e-6)
