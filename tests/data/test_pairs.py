"""Pairs: layout, tags, what is dropped, language sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nalanda.base.errors import DataError
from nalanda.data.pairs import Pairs, PairsConfig


def test_layout(make: Any) -> None:
    source = make.pairs(row_multiple=4, batch_tokens=1024)
    for batch in source.step(0) + source.step(3):
        for row, sample in enumerate(batch["sample_ids"].tolist()):
            read = batch["source_ids"][row][batch["source_segments"][row] == 1].tolist()
            real = batch["segments"][row] == 1
            if sample < 0:
                assert read == []
                assert not real.any()
                continue
            text, translation = source.source[sample].tolist(), source.target[sample].tolist()
            tag = 10 + sample % 3
            assert read == [tag, *text, 2]
            assert batch["ids"][row][real].tolist() == [1, *translation]
            assert batch["targets"][row][real].tolist() == [*translation, 2]
            assert batch["target_weight"][row].tolist() == real.float().tolist()
            assert batch["positions"][row][real].tolist() == list(range(len(translation) + 1))


def test_pairs_that_are_empty_or_too_long_are_dropped_and_counted(make: Any) -> None:
    sides = [[[50] * n for n in lengths] for lengths in ([0, 3, 3, 14, 15, 3], [3, 0, 3, 15, 3, 16])]
    source = Pairs(PairsConfig(**make.values(max_length=16)), *map(make.store, sides), make.tokenizer, 1)
    assert source.describe()["dropped"] == {"empty": 2, "too_long": 2}
    assert sorted(i for b in source.epoch() for i in b["sample_ids"].tolist()) == [2, 3]
    assert source.describe()["source_tokens"] == 17
    assert source.describe()["target_tokens"] == 18


def test_stores_that_are_not_aligned(make: Any) -> None:
    one, two = make.store([[50]]), make.store([[50], [51]])
    config = PairsConfig(**make.values())
    with pytest.raises(DataError, match=r"1 sequences, .* 2: not aligned"):
        Pairs(config, one, two, make.tokenizer, 1)


def test_temperature_raises_small_languages(make: Any) -> None:
    def rows(temperature: float) -> np.ndarray:
        source = make.pairs(count=600, turn=(0, 0, 0, 0, 0, 0, 0, 1, 1, 2), temperature=temperature)
        steps = range(source.steps_per_epoch)
        tags = [b["source_ids"][:, 0].numpy() for step in steps for b in source.step(step)]
        return np.bincount(np.concatenate(tags))[10:]

    assert rows(1.0).tolist() == [420, 120, 60]
    root = np.sqrt([420, 120, 60])
    assert np.abs(rows(2.0) - root / root.sum() * 600).max() < 1


def test_evaluation_is_sorted_and_without_sampling(make: Any) -> None:
    source = make.pairs(count=200, turn=(0, 0, 0, 1), temperature=5.0)
    batches = list(source.epoch())
    assert sorted(i for b in batches for i in b["sample_ids"].tolist()) == list(range(200))
