"""Lanes: the same gradient on one thread and on several, the same bits every time, errors surface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Hook, Moment
from nalanda.train.lanes import Lanes, lanes_for, split
from nalanda.train.optimizer import MuonConfig, Optimizer
from nalanda.train.precision import autocast
from nalanda.train.step import accumulate

CPU = torch.device("cpu")


def model(dropout: float = 0.0) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(kind="decoder", layers=2, hidden=32, heads=2, dropout=dropout)
    return Model(build_spec(config, 50), {"tokens": TokensHeadSpec()}).train()


def batch(rows: int, seed: int) -> Batch:
    torch.manual_seed(seed)
    ids = torch.randint(0, 50, (rows, 9))
    ones = torch.ones_like(ids, dtype=torch.int32)
    weight = (torch.rand(rows, 9) < 0.6).float()
    positions = torch.arange(9, dtype=torch.int32).expand(rows, 9).contiguous()
    return Batch(ids=ids, segments=ones, positions=positions, targets=ids.roll(-1, 1), target_weight=weight)


def gradients(count: int, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    network = model()
    with Lanes(count) as lanes:
        done = accumulate(
            network, TokensConfig(), batches, seed=1, step=3, precision="fp32", device=CPU, lanes=lanes
        )
    return done.loss, {name: weight.grad.clone() for name, weight in network.named_parameters()}  # type: ignore[union-attr]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_two_lanes_give_the_gradient_of_one() -> None:
    batches = [batch(7, 1), batch(4, 2), batch(1, 3)]
    loss, one = gradients(1, batches)
    also, two = gradients(2, batches)
    assert also == pytest.approx(loss, rel=1e-6)
    for name, gradient in one.items():
        error = (gradient - two[name]).abs().max() / gradient.abs().max().clamp(min=1e-8)
        assert error < 2e-6, f"{name}: {error}"


@pytest.mark.usefixtures("threads")
def test_lanes_give_the_same_bits_every_time() -> None:
    batches = [batch(8, 1), batch(5, 2)]
    loss, first = gradients(2, batches)
    for _ in range(5):
        also, second = gradients(2, batches)
        assert also == loss
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("threads")
def test_parts_really_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)
    with Lanes(2) as lanes:
        assert list(lanes.run(lambda part: both.wait() >= 0, [1, 2])) == [True, True]
    with pytest.raises(ZeroDivisionError), Lanes(2) as lanes:
        list(lanes.run(lambda part: 1 // part, [1, 0]))
    assert not any(thread.name.startswith("lane") for thread in threading.enumerate())


@pytest.mark.usefixtures("threads")
def test_random_models_and_compiled_ones_keep_to_one_lane() -> None:
    torch.set_num_threads(2)
    assert lanes_for(model(), CPU, compiled=False) == 2
    assert lanes_for(model(), CPU, compiled=True) == 1
    assert lanes_for(model(dropout=0.1), CPU, compiled=False) == 1
    assert lanes_for(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), CPU, compiled=False) == 1
    assert lanes_for(model(), torch.device("cuda"), compiled=False) == 1


def test_split_keeps_every_row_in_order() -> None:
    whole = batch(7, 1)
    for count in (1, 2, 3, 7, 9):
        parts = split(whole, count)
        assert len(parts) == min(count, 7)
        assert torch.equal(torch.cat([part["ids"] for part in parts]), whole["ids"])


@pytest.mark.usefixtures("threads")
def test_muon_makes_the_same_update_in_lanes() -> None:
    updated = []
    for count in (1, 2):
        network = model()
        optimizer = Optimizer(MuonConfig(lr=0.01), network)
        with Lanes(count) as lanes:
            optimizer.share_out(lanes)
            for seed in range(3):
                accumulate(
                    network, TokensConfig(), [batch(6, seed)], seed=1, step=seed, precision="fp32", device=CPU
                )
                optimizer.step(1.0)
                optimizer.zero_grad()
        updated.append({name: weight.detach().clone() for name, weight in network.named_parameters()})
    for name, weight in updated[0].items():
        assert torch.allclose(weight, updated[1][name], rtol=0, atol=1e-6), name


@pytest.mark.usefixtures("threads")
def test_resting_lanes_give_all_cores_back_for_a_while() -> None:
    torch.set_num_threads(2)
    with Lanes(2) as lanes:
        with lanes.resting():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
        with pytest.raises(ZeroDivisionError), lanes.resting():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 1
    with Lanes(1) as lanes, lanes.resting():
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_hooks_have_all_cores(folder: Any, toy: Any) -> None:
    torch.set_num_threads(2)
    seen = []

    class Look(Hook):
        def after_step(self, moment: Moment) -> None:
            seen.append(torch.get_num_threads())

    values = {"budget": {"steps": 2}, "compile": "off", "log_every": 1}
    result = folder().fit(LoopConfig.model_validate(values), model=toy(dropout=0.0), hooks=[Look()])
    assert result["lanes"] == 2
    assert seen == [2, 2]


def test_lanes_do_not_share_casts_of_weights() -> None:
    before = torch.is_autocast_cache_enabled()
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()
    assert torch.is_autocast_cache_enabled() is before
