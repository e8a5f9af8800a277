"""Denoising: layout, rates, that targets restore the text, and that every kind comes as often as it should."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from nalanda.base.errors import DataError
from nalanda.config import ConfigError, parse
from nalanda.data.denoise import KINDS, Denoise, DenoiseConfig, edit, sentinel_spans, span_mask
from nalanda.data.noise import row_keys
from nalanda.data.ragged import Ragged, ragged

SENTINELS = np.arange(20, 36)


def keys(count: int, step: int = 0) -> np.ndarray:
    return row_keys(1, "x", step, np.arange(count))


def lists(rows: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(rows.flat, np.cumsum(rows.lengths)[:-1])]


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text that a T5 source and its target describe."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            last = spans.setdefault(token, [])
        else:
            last.append(token)
    return [t for token in source for t in (spans[token] if token in SENTINELS else [token])]


@pytest.mark.parametrize(
    ("length", "rate", "mean"), [(12, 0.2, 2.5), (40, 0.15, 3), (10, 0.5, 2), (20, 0.3, 2)]
)
def test_span_mask_marks_the_rate_in_spans_of_the_mean(length: int, rate: float, mean: float) -> None:
    count = 4000
    mask = span_mask(ragged([[1] * length] * count), keys(count), rate, mean).reshape(count, length)
    marked = mask.sum(1)
    exact = length * rate
    assert set(marked.tolist()) <= {int(exact), int(exact) + 1}
    assert abs(marked.mean() - exact) < 4 * 0.5 / sqrt(count)
    spans = (np.diff(np.pad(mask, ((0, 0), (1, 0))).astype(int), axis=1) == 1).sum(1)
    assert (spans[marked > 0] > 0).all()
    assert abs(spans.mean() - max(1, exact / mean)) < 0.1
    share = mask.mean(0)
    assert abs(share - share[::-1]).max() < 6 * sqrt(0.25 / count)  # neither end is favoured
    assert share.max() < 1.2 * rate
    assert share[0] > 0.3 * rate  # fewer spans reach an end, but some do


def test_span_mask_on_very_short_rows() -> None:
    rows = ragged([[1], [1, 1], [1]] * 1000)
    mask = span_mask(rows, keys(3000), 0.3, 3.0)
    assert abs(mask.mean() - 0.3) < 0.05
    assert span_mask(rows, keys(3000), 0.3, 3.0, least=1)[rows.lengths[rows.rows()] == 1].all()


def test_edit_rates(make: Any) -> None:
    config = DenoiseConfig(**make.values(mask=0.2, span=2, delete=0.1, replace=0.1, add=0.05))
    count, length = 3000, 20
    rows = ragged([list(range(100, 100 + length))] * count)
    noised = edit(rows, keys(count), config, 4, np.array([77]))
    total = count * length
    free = 0.8 * total  # what is not in a masked span
    original = (noised.flat >= 100).sum()
    assert abs(original / free - 0.8) < 0.01  # deleted 0.1, replaced 0.1
    masks = (noised.flat == 4).sum()
    assert abs(masks / (0.2 * total / 2) - 1) < 0.03  # one mask token for each span of two
    new = (noised.flat == 77).sum()
    added = 0.05 * (free + masks)
    assert abs(new - (0.1 * free + added)) < 5 * sqrt(new)
    for row in lists(noised)[:300]:
        kept = [token for token in row if token >= 100]
        assert kept == sorted(set(kept))  # order stays, nothing comes twice


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, lambda row: row == [100, 101, 102]),
        ({"mask": 0.9, "span": 10.0}, lambda row: 4 in row and len(row) <= 2),
        ({"replace": 0.9}, lambda row: len(row) == 3),
        ({"add": 0.9}, lambda row: [t for t in row if t >= 100] == [100, 101, 102]),
        ({"delete": 0.5}, lambda row: set(row) <= {100, 101, 102} and len(row) > 0),
    ],
)
def test_edit_does_only_what_it_is_asked(make: Any, change: dict[str, float], expected: Any) -> None:
    config = DenoiseConfig(**make.values(**{"mask": 0, "delete": 0, "replace": 0, "add": 0, **change}))
    rows = ragged([[100, 101, 102]] * 500)
    noised = lists(edit(rows, keys(500), config, 4, np.array([77])))
    assert all(expected(row) for row in noised)
    if change:
        assert sum(row != [100, 101, 102] for row in noised) > 250


def test_sentinels_and_targets_restore_the_text() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(40, 400, generator.integers(1, 90)).tolist() for _ in range(500)]
    source, target = sentinel_spans(ragged(rows), keys(500), 0.3, 2.0, SENTINELS)
    for text, left, right in zip(rows, lists(source), lists(target)):
        assert restored(left, right) == text
        used = [token for token in left if token in SENTINELS]
        assert used == SENTINELS[: len(used)].tolist()  # in order, from the first
        assert [token for token in right if token in SENTINELS] == SENTINELS[: len(used) + 1].tolist()
        assert right[-1] == SENTINELS[len(used)]
        assert 1 <= len(used) <= 15
    hidden = sum(map(len, rows)) - sum(sum(t not in SENTINELS for t in row) for row in lists(source))
    assert 0.27 < hidden / sum(map(len, rows)) < 0.32


def test_layout_and_what_each_kind_gives(make: Any) -> None:
    source = make.denoise(count=600)
    tokenizer = source.tokenizer
    seen = set()
    for step in range(source.steps_per_epoch):
        for batch in source.step(step):
            ids = batch["sample_ids"].numpy()
            for row, kind in enumerate(source.kinds(ids, step)):
                seen.add(KINDS[kind])
                read = batch["source_ids"][row][batch["source_segments"][row] == 1].tolist()
                real = batch["segments"][row] == 1
                fed, target = batch["ids"][row][real].tolist(), batch["targets"][row][real].tolist()
                text = source.store[ids[row]].tolist()
                assert read[0] == tokenizer.language(source.store.codes[source.store.languages[ids[row]]])
                assert read[-1] == target[-1] == tokenizer.eos
                assert fed == [tokenizer.bos, *target[:-1]]
                if KINDS[kind] == "sentinels":
                    assert restored(read[1:-1], target[:-1]) == text
                else:
                    assert target[:-1] == text
                if KINDS[kind] == "clean":
                    assert read[1:-1] == text
                if KINDS[kind] == "romanize":
                    assert read[1:-1] == source.romanized[ids[row]].tolist()
                assert not set(read[1:-1]) & (
                    tokenizer.special_ids - {tokenizer.mask} - set(tokenizer.sentinels)
                )
    assert seen == set(KINDS)


def test_kinds_come_by_weight_and_only_where_they_can(make: Any) -> None:
    source = make.denoise(count=3000, noise={"edit": 2, "romanize": 1, "clean": 1})
    ids = np.arange(3000)
    kinds = np.concatenate([source.kinds(ids, step) for step in range(10)])
    can = np.tile(ids % 3 != 0, 10)
    for where, expected in ((can, [0.5, 0, 0.25, 0.25]), (~can, [2 / 3, 0, 0, 1 / 3])):
        for kind, share in enumerate(expected):
            found = (kinds[where] == kind).mean()
            assert abs(found - share) <= 4 * sqrt(share * (1 - share) / where.sum())


def test_a_text_is_noised_anew_every_step_and_the_same_in_any_company(make: Any) -> None:
    source = make.denoise(noise={"edit": 1})
    first, second = (source.collate(np.arange(50), 0, step)["source_ids"] for step in (1, 2))
    assert first.tolist() != second.tolist()
    alone = source.collate(np.array([7]), 0, 1)["source_ids"][0]
    assert alone[alone != 0].tolist() == first[7][first[7] != 0].tolist()


def test_sources_never_outgrow_max_length(make: Any) -> None:
    source = make.denoise(
        count=200, max_length=16, noise={"edit": 1, "romanize": 1}, add=0.9, mask=0, length_multiple=1
    )
    told = source.describe()
    assert told["split"] > 0
    widths = [(b["source_ids"].shape[1], b["ids"].shape[1]) for b in source.epoch()]
    assert max(max(pair) for pair in widths) <= 16
    assert told["tokens"] == source.store.lengths.sum()


def test_mistakes(make: Any) -> None:
    with pytest.raises(ConfigError, match="noise: all weights are 0"):
        parse(DenoiseConfig, make.values(noise={"edit": 0}), "here")
    with pytest.raises(ConfigError, match=r"delete 0.5 \+ replace 0.5 is more than 0.9"):
        parse(DenoiseConfig, make.values(delete=0.5, replace=0.5), "here")
    store = make.store([[50, 51]])
    config = DenoiseConfig(**make.values(noise={"romanize": 1}))
    with pytest.raises(DataError, match="no romanized store"):
        Denoise(config, store, make.tokenizer, 1)
    make.tokenizer.sentinels = []
    config = DenoiseConfig(**make.values(noise={"sentinels": 1}))
    with pytest.raises(DataError, match="the tokenizer has no sentinels"):
        Denoise(config, store, make.tokenizer, 1)
