"""Forced decoding against plain forward passes, one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nalanda.base.errors import DataError
from nalanda.generate import scoring
from nalanda.generate.scoring import log_probabilities
from nalanda.nn.model import Model


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_each_token_has_its_log_probability(
    model: Model, prompts: list[list[int]], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_CHUNK", 60)  # two rows of logits at a time
    targets = [[4 + i, 9, 2][: 1 + i % 3] for i in range(len(prompts))]
    found = log_probabilities(model, prompts, targets, bos=1, batch_tokens=batch_tokens)
    for prompt, target, row in zip(prompts, targets, found):
        with torch.no_grad():
            if model.transformer.both:
                ids, source = [1, *target], {"source_ids_BS": torch.tensor([prompt])}
            else:
                ids, source = prompt + target, {}
            hidden = model.transformer(torch.tensor([ids]), **source).hidden_BTD[0]
            values = model.logits(hidden).log_softmax(-1)[-len(target) - 1 : -1]
        assert row == pytest.approx([values[i, t].item() for i, t in enumerate(target)], abs=1e-5)


def test_bad_targets_are_named(make_model: Callable[..., Model]) -> None:
    model = make_model("decoder learned")
    assert len(log_probabilities(model, [[5] * 20], [[5] * 5], bos=1)[0]) == 5
    for targets, message in [
        ([[]], "target 0 is empty"),
        ([[5] * 6], "target 0 has 6 tokens, but after its prompt there is room for 5"),
        ([[23]], "target 0 has an id outside the model's vocabulary of 23"),
    ]:
        with pytest.raises(DataError, match=message):
            log_probabilities(model, [[5] * 20], targets, bos=1)
    with pytest.raises(ValueError, match="1 targets for 2 prompts"):
        log_probabilities(model, [[5], [6]], [[5]], bos=1)


def test_no_pairs_no_scores(make_model: Callable[..., Any]) -> None:
    assert log_probabilities(make_model("decoder learned"), [], [], bos=1) == []
