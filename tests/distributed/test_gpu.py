"""What the other files show with gloo on CPUs, with NCCL on GPUs: for machines that have at least two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from small_runs import Work, largest_difference, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
MUON: dict[str, Any] = {"optimizer": {"kind": "muon"}}
MOE = {"moe": {"experts": 4, "top_k": 2, "inner": 16, "balance_bias": True}}
WAYS = [
    ({}, {}),
    ({"shard": True, "checkpointing": "selective"}, {}),
    ({"tensor": 2}, {}),
    ({"context": 2}, {}),
    ({"expert": 2}, MOE),
]


@pytest.mark.parametrize(("parallel", "model"), WAYS)
def test_two_gpus_learn_what_one_learns(parallel: dict[str, Any], model: dict[str, Any]) -> None:
    one = trained(Work(MUON, model=model, device="cuda"))
    run = together(2, trained, Work({**MUON, "parallel": parallel}, model=model, device="cuda"), gpu=True)[0]
    losses, weights = largest_difference(one, run)
    assert losses < 1e-5
    assert weights < 1e-5


def test_two_gpus_give_the_bits_of_one() -> None:
    work = Work({"parallel": {"mode": "deterministic"}}, source={"micros": 5}, device="cuda")
    one, run = trained(work), together(2, trained, work, gpu=True)[0]
    assert run.losses == one.losses
    assert all(torch.equal(value, run.weights[name]) for name, value in one.weights.items())


def test_a_sharded_run_goes_on_with_one_gpu(tmp_path: Path) -> None:
    loop = {"parallel": {"shard": True}, "checkpoint": {"every": 3}}
    stopped = together(2, trained, Work(loop, folder=str(tmp_path), device="cuda", stop_at=(0, 3)), gpu=True)
    assert {end.code for end in stopped} == {143}
    rest = trained(Work(folder=str(tmp_path), device="cuda"))
    whole = trained(Work(device="cuda"))
    assert rest.losses == pytest.approx(whole.losses[-len(rest.losses) :], rel=1e-5)
