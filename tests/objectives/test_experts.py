"""Terms and statistics around any objective: transformers' balance loss, exact z loss, padding nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.base.errors import DataError, RunError
from nalanda.config import parse
from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, MoEConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import SequenceHeadSpec, TokensHeadSpec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.objectives.labels import LabelsConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.lanes import Lanes
from nalanda.train.step import accumulate

V = 23
METRICS = {"load_balance", "router_z", "expert_load_max", "expert_load_entropy", "router_entropy"}


def a_model(kind: str = "decoder", **moe: Any) -> Model:
    torch.manual_seed(0)
    options = MoEConfig(**{"experts": 4, "every": 2, **moe})
    config = ModelConfig(kind=kind, layers=4, hidden=16, heads=2, inner=24, init_std=0.3, moe=options)
    return Model(build_spec(config, V), {"tokens": TokensHeadSpec(), "labels": SequenceHeadSpec(classes=2)})


def a_batch(rows: int = 4, width: int = 9, source: bool = False) -> Batch:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[width], [5], [7], [2]])[:rows]
    segments = (torch.arange(width) < lengths).int()
    batch = Batch(
        ids=torch.randint(V, (rows, width), generator=draw),
        segments=segments,
        positions=torch.arange(width, dtype=torch.int32).repeat(rows, 1),
        targets=torch.randint(V, (rows, width), generator=draw),
        target_weight=segments.float(),
        labels=torch.tensor([0, 1, 1, 0])[:rows],
    )
    if source:
        batch["source_ids"] = torch.randint(V, (rows, 6), generator=draw)
        batch["source_segments"] = (torch.arange(6) < lengths.flip(0)).int()
        batch["source_positions"] = torch.arange(6, dtype=torch.int32).repeat(rows, 1)
    return batch


def around_tokens(**more: Any) -> ExpertsConfig[TokensConfig]:
    return ExpertsConfig[TokensConfig](objective=TokensConfig(), **more)


def routers(model: Model, batch: Batch, stack: str = "decoder") -> list[Tensor]:
    return model(batch, capture=("router",)).captured[f"{stack}.router"]


@pytest.mark.filterwarnings("ignore")
def test_the_balance_is_transformers_of_each_layer_without_padding() -> None:
    pytest.importorskip("transformers", reason="the oracle")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model, batch = a_model(), a_batch()
    objective = around_tokens(load_balance=0.5, z_loss=0.25)
    counts = objective.weights(batch)
    assert counts == {"tokens": 23.0, "load_balance": 23.0, "router_z": 23.0}
    loss = objective(model, batch, counts)
    logits = [layer.reshape(-1, 4) for layer in routers(model, batch)]
    assert len(logits) == 2
    theirs = [load_balancing_loss_func((x,), 4, 2, attention_mask=batch["segments"]) for x in logits]
    torch.testing.assert_close(loss.terms["load_balance"] / 23, 0.5 * sum(theirs) / 2)
    real = batch["segments"].reshape(-1).bool()
    z = sum(x[real].logsumexp(-1).square().mean() for x in logits) / 2
    torch.testing.assert_close(loss.terms["router_z"] / 23, 0.25 * z)
    gradients = [
        torch.autograd.grad(value, model.parameters(), allow_unused=True, retain_graph=True)
        for value in (loss.terms["load_balance"] / 23, 0.5 * sum(theirs) / 2)
    ]
    moved = 0
    for one, two in zip(*gradients, strict=True):
        assert (one is None) is (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two)
            moved += bool(two.any())
    assert moved > 2


def test_the_inner_objective_is_untouched_and_the_model_runs_once() -> None:
    model, batch = a_model(), a_batch()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    alone = TokensConfig()(model, batch, {"tokens": 23.0})
    loss = around_tokens()(model, batch, around_tokens().weights(batch))
    assert len(calls) == 2
    assert torch.equal(loss.terms["tokens"], alone.terms["tokens"])
    assert set(loss.metrics) == {*alone.metrics, *METRICS}
    plain = around_tokens(load_balance=0, z_loss=0)
    assert set(plain.weights(batch)) == {"tokens"} == set(plain(model, batch, {"tokens": 23.0}).terms)
    labels = ExpertsConfig[LabelsConfig](objective=LabelsConfig())
    assert set(labels(model, batch, labels.weights(batch)).terms) == {"labels", "load_balance", "router_z"}


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_statistics_count_choices_and_no_padding(router: str) -> None:
    model, batch = a_model(router=router, balance_bias=True), a_batch()
    bias = torch.tensor([0.0, 9.0, 0.0, 0.0])  # every token chooses expert 1
    for layer in (1, 3):
        model.get_submodule(f"transformer.decoder.blocks.{layer}.feedforward.router").balance_bias.copy_(bias)  # type: ignore[operator, union-attr]
    objective = around_tokens(per_layer=True)
    loss = objective(model, batch, objective.weights(batch))
    shown = {name: float(top / bottom) for name, (top, bottom) in loss.metrics.items()}
    assert shown["expert_load_max"] == pytest.approx(2.0)  # half of all choices where a quarter is its share
    assert shown["expert_load_max/decoder.blocks.1"] == pytest.approx(2.0)
    assert 0 < shown["expert_load_entropy"] < 0.9
    assert 0 < shown["router_entropy"] < 1
    chosen = model(batch, capture=("experts",)).captured["decoder.experts"][1]
    load = torch.bincount(chosen[batch["segments"] != 0].reshape(-1), minlength=4)
    assert torch.equal(loss.tallies["transformer.decoder.blocks.3.feedforward.router"], load)
    assert load[1] == 23
    padded = {**batch, "ids": torch.where(batch["segments"] != 0, batch["ids"], 5)}
    again = objective(model, padded, objective.weights(batch))  # type: ignore[arg-type]
    for name, (top, _) in loss.metrics.items():
        torch.testing.assert_close(again.metrics[name][0], top)


def test_the_encoder_is_counted_by_its_own_padding() -> None:
    model, batch = a_model("encoder_decoder"), a_batch(source=True)
    objective = around_tokens()
    counts = objective.weights(batch)
    source = int(batch["source_segments"].sum())
    assert counts["router_z"] == 23 + source
    loss = objective(model, batch, counts)
    z = 0.0
    for stack, key in (("encoder", "source_segments"), ("decoder", "segments")):
        for logits in routers(model, batch, stack):
            z += (logits.detach().logsumexp(-1).square() * (batch[key] != 0)).sum().item() / 2  # type: ignore[literal-required]
    assert loss.terms["router_z"].item() == pytest.approx(0.001 * z, rel=1e-5)
    tally = {name: int(value.sum()) for name, value in loss.tallies.items()}
    assert tally["transformer.encoder.blocks.1.feedforward.router"] == 2 * source
    assert tally["transformer.decoder.blocks.1.feedforward.router"] == 2 * 23


@pytest.mark.parametrize("lanes", [1, 2])
def test_all_but_the_balance_is_exact_over_micro_batches_and_lanes(lanes: int) -> None:
    batch = a_batch()
    parts = [Batch(**{k: v[i : i + 2] for k, v in batch.items()}) for i in (0, 2)]  # type: ignore[typeddict-item, index]
    objective = around_tokens(load_balance=0, z_loss=0.1)
    how: Any = {"seed": 0, "step": 0, "precision": "fp32", "device": torch.device("cpu")}
    found = []
    for batches in ([batch], parts):
        model = a_model()
        with Lanes(lanes) as pool:
            step = accumulate(model, objective, batches, lanes=pool, **how)
        assert sum(int(tally.sum()) for tally in step.tallies.values()) == 2 * 2 * 23
        found.append((step, [weight.grad for weight in model.parameters()]))
    (one, ours), (two, theirs) = found
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    assert one.metrics["router_entropy"] == pytest.approx(two.metrics["router_entropy"])
    assert all(torch.equal(one.tallies[name], two.tallies[name]) for name in one.tallies)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) is (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_said() -> None:
    objective, batch = around_tokens(), a_batch()
    dense = Model(build_spec(ModelConfig(kind="decoder", hidden=16), V), {"tokens": TokensHeadSpec()})
    with pytest.raises(RunError, match="needs a model with mixtures of experts"):
        objective(dense, batch, objective.weights(batch))
    batch["target_weight"].zero_()
    with pytest.raises(DataError, match="no token of this step is trained"):
        objective(a_model(), batch, objective.weights(batch))


def test_it_is_read_from_a_recipe() -> None:
    values = {"kind": "experts", "objective": {"kind": "tokens", "label_smoothing": 0.1}, "z_loss": 0}
    read = parse(ExpertsConfig[TokensConfig], values, "recipe")
    assert read.objective == TokensConfig(label_smoothing=0.1)
    assert read.to_dict()["scope"] == "micro"
