"""Experts that train: even loads by a loss or by biases, resumes to the bit, Muon on each expert by itself."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nalanda.config import parse
from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, MoEConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, Moment
from nalanda.train.hooks_moe import ExpertBias
from nalanda.train.muon import orthogonalize, update_scale
from nalanda.train.optimizer import MuonConfig, Optimizer

V, EXPERTS = 40, 8


def a_model() -> Model:
    torch.manual_seed(3)
    options = MoEConfig(experts=EXPERTS, top_k=2, inner=16, balance_bias=True)
    config = ModelConfig(
        kind="decoder", layers=2, hidden=16, heads=2, bias=True, feedforward="glu", init_std=0.1, moe=options
    )
    return Model(build_spec(config, V), {"tokens": TokensHeadSpec()})


def lopsided() -> Model:
    """Its routers send nearly every token to two experts: they like a part of their input that is always there."""
    model = a_model()
    with torch.no_grad():
        for block in model.transformer.decoder.blocks:  # type: ignore[union-attr]
            block.feedforward_norm.bias.fill_(1.0)  # type: ignore[union-attr]
            block.feedforward.router.weight[:2] += 0.1  # type: ignore[union-attr]
    return model


class Walk:
    """Rows that count upwards by a step each; rare tokens are rare, so experts that follow tokens are uneven."""

    steps_per_epoch = 100
    fingerprint = "walk"

    def __init__(self, micro: int = 1) -> None:
        self.micro = micro

    def step(self, step: int) -> list[Batch]:
        return [self._batch(2 * step + micro) for micro in range(self.micro)]

    def _batch(self, seed: int) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        rows, width = 8, 12
        start = torch.randint(V, (rows, 1), generator=draw)
        ids = (start + torch.arange(width + 1) * torch.randint(1, 4, (rows, 1), generator=draw)) % V
        ids = ids * ids // V  # most are small numbers
        lengths = torch.randint(6, width + 1, (rows, 1), generator=draw)
        segments = (torch.arange(width) < lengths).int()
        return Batch(
            ids=ids[:, :-1],
            segments=segments,
            positions=torch.arange(width, dtype=torch.int32).repeat(rows, 1),
            targets=ids[:, 1:],
            target_weight=segments.float(),
        )

    def epoch(self) -> Iterator[Batch]:
        yield self._batch(999)

    def describe(self) -> dict[str, Any]:
        return {"kind": "walk"}


def config(steps: int, **values: Any) -> LoopConfig:
    values = {"budget": {"steps": steps}, "log_every": 1, "compile": "off", "precision": "fp32", **values}
    return parse(LoopConfig, {"optimizer": {"kind": "adamw", "lr": 5e-3}, **values}, "test")


def objective(**more: Any) -> ExpertsConfig[TokensConfig]:
    return ExpertsConfig[TokensConfig](
        objective=TokensConfig(), **{"load_balance": 0.0, "z_loss": 0.0, **more}
    )


def test_loads_become_even_by_a_loss_and_by_biases(folder: Any) -> None:
    found = {}
    for name, options in (("none", {}), ("loss", {"load_balance": 0.1}), ("bias", {"bias_rate": 0.02})):
        run, aim = folder(name), objective(**options)
        hooks = [ExpertBias(aim.bias_rate)] if aim.bias_rate else []
        run.fit(config(30, workers=0), model=lopsided(), source=Walk(), objective=aim, hooks=hooks)
        rows = [row for row in run.rows if "nll" in row]
        assert rows[0]["expert_load_max"] > 3  # 4 is everything to two of eight
        assert rows[-1]["nll"] < 0.8 * rows[0]["nll"]
        last = rows[-5:]
        for key in ("expert_load_max", "expert_load_entropy"):
            found[name, key] = sum(row[key] for row in last) / len(last)
    for name in ("loss", "bias"):
        assert found[name, "expert_load_max"] < 0.65 * found["none", "expert_load_max"], found
        assert found[name, "expert_load_entropy"] > found["none", "expert_load_entropy"] + 0.2, found


class Cut(Hook):
    """As if the power went at a step, before its checkpoint."""

    name = "cut"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            raise KeyboardInterrupt


def test_biases_are_in_the_checkpoint_and_resume_to_the_bit(folder: Any) -> None:
    aim = objective(load_balance=0.01, z_loss=0.001, bias_rate=0.01)

    def hooks() -> list[Hook]:
        return [ExpertBias(aim.bias_rate), Evaluation(EvaluationConfig(every=4), Walk(), aim)]

    def fit(run: Any, *more: Hook) -> None:
        loop = config(9, checkpoint={"every": 3}, ema={"decay": 0.9})
        run.fit(loop, model=lopsided(), source=Walk(2), objective=aim, hooks=[*hooks(), *more])

    whole, cut = folder("whole"), folder("cut")
    fit(whole)
    for at in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            fit(cut, Cut(at))
    fit(cut)
    assert cut.losses() == whole.losses()
    one, two = whole.weights(), cut.weights()
    assert all(torch.equal(one[name], two[name]) for name in one)
    bias = one["transformer.decoder.blocks.0.feedforward.router.balance_bias"]
    assert bias.min() < -0.04
    assert bias.max() > 0.04


def test_a_bias_moves_by_the_sign_of_what_is_missing() -> None:
    model = a_model()
    name = "transformer.decoder.blocks.1.feedforward.router"
    load = torch.tensor([0, 10, 5, 5, 5, 5, 4, 6])
    moment: Any = SimpleNamespace(model=model, tallies={name: load})
    for _ in range(2):
        ExpertBias(0.25).after_step(moment)
    found = model.get_buffer(f"{name}.balance_bias")
    assert found.tolist() == [0.5, -0.5, 0, 0, 0, 0, 0.5, -0.5]
    assert not model.get_buffer(name.replace("1", "0") + ".balance_bias").any()


def test_muon_takes_each_expert_s_matrices_by_themselves() -> None:
    model = a_model()
    layer = "transformer.decoder.blocks.0.feedforward.experts"
    optimizer = Optimizer(MuonConfig(lr=0.1, weight_decay=0.0), model)
    assert optimizer.roles[f"{layer}.gate_up.weight"] == optimizer.roles[f"{layer}.output.weight"] == "matrix"
    torch.manual_seed(0)
    before = {}
    for name, weight in model.named_parameters():
        before[name] = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
    optimizer.step(1.0)
    for name, rows in (("gate_up", 16), ("output", 16)):
        weight = model.get_parameter(f"{layer}.{name}.weight")
        assert weight.grad is not None
        for expert in (0, EXPERTS - 1):
            parts = weight.grad[expert].split(rows)
            moved = (before[f"{layer}.{name}.weight"][expert] - weight.detach()[expert]).split(rows)
            assert len(parts) == {"gate_up": 2, "output": 1}[name]
            for gradient, step in zip(parts, moved, strict=True):
                whole = orthogonalize(gradient[None])[0] * 0.1 * update_scale(*gradient.shape, "match_rms")
                torch.testing.assert_close(step, whole, rtol=1e-3, atol=1e-5)
