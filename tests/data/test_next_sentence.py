"""Next sentence: layout, labels, and random sentences from other texts only."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from nalanda.base.errors import DataError
from nalanda.data.next_sentence import NextSentence, NextSentenceConfig, sentences


def test_layout(make: Any) -> None:
    source = make.next_sentence()
    text = source.store.samples
    for batch in source.step(0) + source.step(source.steps_per_epoch):
        for row in range(len(batch["ids"])):
            real = batch["segments"][row] == 1
            tokens, types = batch["targets"][row][real].tolist(), batch["token_types"][row][real].tolist()
            middle = types.index(1)
            assert tokens[0] == source.tokenizer.bos
            assert tokens[middle - 1] == tokens[-1] == source.tokenizer.eos
            assert types == [0] * middle + [1] * (len(types) - middle)
            first = source.firsts[batch["sample_ids"][row]]
            assert tokens[1 : middle - 1] == source.store[first].tolist()
            if batch["labels"][row] == 0:
                assert tokens[middle:-1] == source.store[first + 1].tolist()
            weight = batch["target_weight"][row][real]
            assert 0 < weight.sum() < len(tokens) - 2
            assert weight[0] == weight[-1] == weight[middle - 1] == 0
    assert text is not None


def test_half_of_the_pairs_are_random_and_from_every_other_text(make: Any) -> None:
    source = make.next_sentence()
    text = source.store.samples
    ids = np.arange(len(source.firsts))
    labels, drawn = [], np.zeros(len(source.store), dtype=int)
    for epoch in range(100):
        second, label = source.second(ids, epoch)
        first = source.firsts
        assert (text[second] == text[first])[label == 0].all()
        assert (text[second] != text[first])[label == 1].all()
        np.add.at(drawn, second[label == 1], 1)
        labels.append(label)
    share = np.mean(labels)
    assert abs(share - 0.5) < 4 * 0.5 / sqrt(100 * len(ids))
    assert drawn.min() > 0
    # A sentence can be drawn by the pairs of all other texts: the expected counts, and chi square, ~ N(1, 2/n).
    chances = sum((text != text[f]) / (text != text[f]).sum() for f in source.firsts) / len(ids)
    expected = chances * drawn.sum()
    chi = ((drawn - expected) ** 2 / expected).sum() / len(drawn)
    assert abs(chi - 1) < 5 * sqrt(2 / len(drawn))
    assert not np.array_equal(labels[0], labels[1])


def test_padding_rows_carry_no_label(make: Any) -> None:
    source = make.next_sentence(row_multiple=8, batch_tokens=1024)
    padding = [
        b["label_weight"][b["sample_ids"] < 0] for s in range(source.steps_per_epoch) for b in source.step(s)
    ]
    assert sum(map(len, padding)) > 0
    assert all(bool((part == 0).all()) for part in padding)


def test_long_sentences_are_cut_and_counted(make: Any) -> None:
    config = NextSentenceConfig(**make.values(max_length=23))
    store = make.sentences([[[50] * 11, [60] * 3], [[70] * 10], [[80] * 4, [90] * 4]])
    source = NextSentence(config, store, make.tokenizer, 1)
    assert source.describe()["truncated"] == 1
    assert source.describe()["single_sentence_texts"] == 1
    assert source.describe()["rows"] == 2
    assert max(b["ids"].shape[1] for b in source.epoch()) <= 24


def test_stores_that_do_not_do(make: Any) -> None:
    config = NextSentenceConfig(**make.values())
    with pytest.raises(DataError, match="which text a sentence belongs to"):
        NextSentence(config, make.store([[50]]), make.tokenizer, 1)
    for texts in ([[[50], [51]]], [[[50]], [[51]]]):
        with pytest.raises(DataError, match="at least two texts"):
            NextSentence(config, make.sentences(texts), make.tokenizer, 1)


def test_sentences() -> None:
    assert sentences("One. Two! Is it 3.5?\nयह एक है। वह दो है॥ ") == [
        "One.",
        "Two!",
        "Is it 3.5?",
        "यह एक है।",
        "वह दो है॥",
    ]
    assert sentences(" \n ") == []
