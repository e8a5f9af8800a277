"""The preview shows what is trained, and the check stops a source that would teach nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nalanda.base.errors import DataError
from nalanda.data import preview as shown
from nalanda.data.masking import Masked, MaskedConfig


def styled(line: Any, style: str) -> list[str]:
    return [line.plain[span.start : span.end] for span in line.spans if span.style == style]


def test_masked_rows(make: Any) -> None:
    source = make.masked()
    batch = source.collate(np.array([3, 4, 5]), 0, 0)
    lines = shown.preview(batch, make.tokenizer, rows=2)
    assert len(lines) == 6
    head, reads, predicts = lines[:3]
    assert head.plain.startswith("row 0  sample 3")
    masks = int((batch["ids"][0] == 4).sum())
    assert styled(reads, shown.MASKED) == ["<4>"] * masks
    chosen = batch["target_weight"][0] == 1
    trained = styled(predicts, shown.TRAINED) + styled(predicts, shown.COPIED)
    assert sorted(trained) == sorted(f"▁{i}" for i in batch["targets"][0][chosen].tolist())
    assert len(styled(predicts, shown.PADDING)) == int((~chosen).sum())
    assert styled(reads, shown.PADDING).count("<0>") == int((batch["segments"][0] == 0).sum())


def test_pairs_show_the_encoder_and_packed_rows_their_bounds(make: Any) -> None:
    lines = shown.preview(make.pairs().step(0)[0], make.tokenizer, rows=1)
    assert [line.plain.split()[0] for line in lines] == ["row", "source", "reads", "predicts"]
    batch = make.causal().step(0)[0]
    bounds = max(int(row.max()) for row in batch["segments"][:2]) - 1
    lines = shown.preview(batch, make.tokenizer, rows=2)
    assert max(line.plain.count("| ") for line in lines) == bounds > 0
    assert "trained" in shown.legend().plain
    labels = shown.preview(make.next_sentence().step(0)[0], make.tokenizer, rows=1)
    assert "label " in labels[0].plain


def test_trained_share(make: Any) -> None:
    assert shown.trained_share(make.pairs().step(0)[0]) == 1.0
    assert 0.05 < shown.trained_share(make.masked().step(0)[0]) < 0.25


class Changed:
    """A source whose batches are changed on the way."""

    def __init__(self, source: Any, change: Any) -> None:
        self.source, self.change = source, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def step(self, step: int) -> list[Any]:
        return [{**batch, **self.change(batch)} for batch in self.source.step(step)]


def test_a_source_that_trains_on_nothing_is_refused(make: Any) -> None:
    source = Changed(make.pairs(), lambda b: {"target_weight": torch.zeros_like(b["target_weight"])})
    with pytest.raises(DataError, match=r"data \(pairs\): 0 % of \d+ places"):
        shown.check_source(source)  # type: ignore[arg-type]


def test_a_part_of_a_mixture_that_trains_on_nothing_is_refused(make: Any) -> None:
    mixture = make.mixture()
    change = Changed(mixture.parts[1], lambda b: {"target_weight": torch.zeros_like(b["target_weight"])})
    mixture.parts = (mixture.parts[0], change)
    with pytest.raises(DataError, match=r"data \(denoise\): 0 %"):
        shown.check_source(mixture)


def test_masking_everything_is_refused(make: Any) -> None:
    store = make.store([[50], [51], [52]])  # texts of one token: at least one is hidden, so all are
    source = Masked(MaskedConfig(**make.values()), store, make.tokenizer, 1)
    with pytest.raises(DataError, match=r"data \(masked\): 100% of 3 places are trained"):
        shown.check_source(source)


def test_a_broken_batch_is_refused(make: Any) -> None:
    source = Changed(make.pairs(), lambda b: {"segments": b["segments"][:, :-1]})
    with pytest.raises(DataError, match="breaks the contract"):
        shown.check_source(source)  # type: ignore[arg-type]
