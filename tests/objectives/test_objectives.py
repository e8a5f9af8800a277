"""Objectives give sums and exact counts, and only trained places reach the head."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalanda.config import ConfigError, parse
from nalanda.data.batch import Batch
from nalanda.objectives.labels import LabelsConfig
from nalanda.objectives.loss import add_counts
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig

V, D = 7, 4


@dataclass
class Output:
    hidden_BTD: Tensor


class Head(nn.Linear):
    """Counts the rows that it is given."""

    rows = 0
    softcap = None

    def affine(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.rows += len(hidden)
        return hidden, self.weight, self.bias


class First(nn.Linear):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden[:, 0])


class Tiny(nn.Module):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.heads = nn.ModuleDict({"tokens": Head(D, V), "next_sentence": First(D, 2)})
        self.passes = 0

    def forward(self, batch: Batch) -> Output:
        self.passes += 1
        return Output(self.embedding(batch["ids"]))

    def logits(self, hidden: Tensor, head: str = "tokens", segments_BT: Tensor | None = None) -> Tensor:
        return self.heads[head](hidden)


def a_batch(rows: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(2)
    weight = (torch.rand(rows, 5, generator=draw) < 0.5).float()
    weight[0, 0] = 0.25
    return Batch(
        ids=torch.randint(V, (rows, 5), generator=draw),
        segments=torch.ones(rows, 5, dtype=torch.int32),
        positions=torch.arange(5, dtype=torch.int32).repeat(rows, 1),
        targets=torch.where(weight != 0, torch.randint(V, (rows, 5), generator=draw), -1),
        target_weight=weight,
        labels=torch.tensor([0, 1, 1, -1])[:rows],
        label_weight=torch.tensor([1.0, 1.0, 0.5, 0.0])[:rows],
    )


def test_tokens_are_the_weighted_sum_over_trained_places() -> None:
    model, batch = Tiny(), a_batch()
    objective = TokensConfig(label_smoothing=0.1)
    counts = objective.weights(batch)
    loss = objective(model, batch, counts)
    logits = model.heads["tokens"](model.embedding(batch["ids"])).reshape(-1, V)
    rows = F.cross_entropy(
        logits, batch["targets"].reshape(-1).clamp(min=0), reduction="none", label_smoothing=0.1
    )
    weight = batch["target_weight"].reshape(-1)
    torch.testing.assert_close(loss.terms["tokens"], (rows * weight).sum())
    assert counts == {"tokens": pytest.approx(float(weight.sum()))}
    assert loss.metrics["nll"][1] == pytest.approx(counts["tokens"])
    assert not loss.metrics["nll"][0].requires_grad


def test_untrained_places_never_reach_the_head() -> None:
    model, batch = Tiny(), a_batch()
    TokensConfig()(model, batch, {})
    assert model.heads["tokens"].rows == int((batch["target_weight"] != 0).sum())


def test_labels_ignore_rows_without_weight() -> None:
    model, batch = Tiny(), a_batch()
    objective = LabelsConfig(head="next_sentence")
    loss = objective(model, batch, objective.weights(batch))
    logits = model.logits(model.embedding(batch["ids"]), "next_sentence")
    expected = sum(
        w * F.cross_entropy(logits[i : i + 1], batch["labels"][i : i + 1])
        for i, w in enumerate([1.0, 1.0, 0.5])
    )
    torch.testing.assert_close(loss.terms["next_sentence"], expected)
    assert objective.weights(batch) == {"next_sentence": 2.5}
    without = Batch(**{k: v for k, v in batch.items() if k != "label_weight"})  # type: ignore[typeddict-item]
    assert objective.weights(without) == {"next_sentence": 4.0}


def test_two_terms_have_their_own_exact_counts_and_one_forward_pass() -> None:
    model, batch = Tiny(), a_batch()
    objective = MlmNextSentenceConfig(next_sentence_weight=0.5)
    counts = objective.weights(batch)
    assert counts == {"tokens": float(batch["target_weight"].sum()), "next_sentence": 2.5}
    loss = objective(model, batch, counts)
    assert model.passes == 1
    assert set(loss.terms) == set(counts)
    alone = LabelsConfig(head="next_sentence")(model, batch, counts).terms["next_sentence"]
    torch.testing.assert_close(loss.terms["next_sentence"], alone / 2)
    assert {"nll", "accuracy", "next_sentence_nll", "next_sentence_accuracy"} == set(loss.metrics)


def test_counts_add_term_by_term() -> None:
    assert add_counts([{"a": 1.0}, {"a": 2.0, "b": 5.0}]) == {"a": 3.0, "b": 5.0}


def test_configs_are_strict_and_frozen() -> None:
    with pytest.raises(ConfigError, match="did you mean 'label_smoothing'"):
        parse(TokensConfig, {"kind": "tokens", "label_smothing": 0.1}, "x.yaml")
    with pytest.raises(ConfigError, match="label_smoothing"):
        parse(TokensConfig, {"label_smoothing": 1.0}, "x.yaml")
    with pytest.raises(ValueError):
        TokensConfig().label_smoothing = 0.2  # type: ignore[misc]
