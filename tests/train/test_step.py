"""Accumulation: any split into micro-batches has the gradient of the whole, for each term by its own count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.data.batch import Batch
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.step import accumulate


def rows(batch: Batch, part: slice) -> Batch:
    return Batch(**{key: value[part] for key, value in batch.items()})  # type: ignore[index,typeddict-item]


def gradients(
    model: Any, objective: Any, batches: list[Batch], kind: torch.dtype
) -> tuple[dict[str, Tensor], Any]:
    model = model.to(kind)
    model.zero_grad()
    result = accumulate(
        model, objective, batches, seed=0, step=0, precision="fp32", device=torch.device("cpu")
    )
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, result


@pytest.mark.parametrize("objective", [TokensConfig(label_smoothing=0.1), MlmNextSentenceConfig()])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_accumulated_equals_whole(
    toy: Any, toy_batch: Any, objective: Any, kind: torch.dtype, tolerance: float
) -> None:
    model, batch = toy(dropout=0.0), toy_batch(12, 9, 3)
    whole, one = gradients(model, objective, [batch], kind)
    split, many = gradients(
        model,
        objective,
        [rows(batch, slice(0, 1)), rows(batch, slice(1, 4)), rows(batch, slice(4, 12))],
        kind,
    )
    assert whole.keys() == split.keys()
    flat, other = (torch.cat([g[name].flatten() for name in whole]) for g in (whole, split))
    assert float((flat - other).norm() / flat.norm()) < tolerance
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert (many.tokens, many.trained, many.rows) == (one.tokens, one.trained, one.rows)
    for name, (top, bottom) in one.metrics.items():
        assert many.metrics[name] == (pytest.approx(top, rel=1e-5), bottom)


def test_each_term_is_divided_by_its_own_count(toy: Any, toy_batch: Any) -> None:
    model, batches = toy(dropout=0.0), [toy_batch(2, 3, 1), toy_batch(5, 9, 2)]
    _, result = gradients(model, MlmNextSentenceConfig(), batches, torch.float32)
    tokens = sentences = 0.0
    for batch in batches:
        hidden = model(batch).hidden_BTD
        losses = F.cross_entropy(
            model.logits(hidden).flatten(0, 1), batch["targets"].flatten(), reduction="none"
        )
        tokens += float((losses * batch["target_weight"].flatten()).sum().detach())
        logits = model.logits(hidden, "next_sentence")
        sentences += float(F.cross_entropy(logits, batch["labels"], reduction="sum").detach())
    count = sum(float(batch["target_weight"].sum()) for batch in batches)
    assert result.loss == pytest.approx(tokens / count + sentences / 7, rel=1e-6)


def test_a_step_that_trains_nothing_is_an_error(toy: Any, toy_batch: Any) -> None:
    batch = toy_batch(2, 3, 1)
    batch["target_weight"].zero_()
    with pytest.raises(DataError, match="step 1: no token of its 1 batches is trained"):
        gradients(toy(), TokensConfig(), [batch], torch.float32)


def test_a_micro_batch_without_targets_adds_nothing(toy: Any, toy_batch: Any) -> None:
    empty, batch = toy_batch(2, 3, 1), toy_batch(5, 9, 2)
    empty["target_weight"].zero_()
    alone, _ = gradients(toy(dropout=0.0), TokensConfig(), [batch], torch.float32)
    both, _ = gradients(toy(dropout=0.0), TokensConfig(), [batch, empty], torch.float32)
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value)


def test_dropout_depends_on_seed_step_and_micro_batch_only(toy: Any, toy_batch: Any) -> None:
    model, batch, seen = toy(dropout=0.5), toy_batch(4, 5, 3), []
    for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1)):
        torch.manual_seed(len(seen))  # whatever the generator did before
        place = torch.device("cpu")
        result = accumulate(
            model, TokensConfig(), [batch], seed=seed, step=step, precision="fp32", device=place
        )
        seen.append(result.loss)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
