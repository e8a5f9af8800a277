"""Masking: rates, the 80/10/10 split, special tokens, whole words."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from nalanda.config import ConfigError, parse
from nalanda.data.masking import MaskedConfig, Masker
from nalanda.data.noise import row_keys
from nalanda.data.ragged import ragged


def every_token(source: Any, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, targets, chosen) of all places that are not padding."""
    batches = [batch for step in range(steps) for batch in source.step(step)]
    real = [batch["segments"] != 0 for batch in batches]
    keys = ("ids", "targets", "target_weight")
    ids, targets, weight = (torch.cat([b[key][r] for b, r in zip(batches, real)]).numpy() for key in keys)
    assert set(weight.tolist()) <= {0.0, 1.0}
    return ids, targets, weight == 1


@pytest.mark.parametrize("whole_words", [False, True])
def test_rates(make: Any, whole_words: bool) -> None:
    source = make.masked(count=1500, whole_words=whole_words, batch_tokens=4096)
    ids, targets, chosen = every_token(source, 2 * source.steps_per_epoch)
    ordinary = targets >= 40
    assert not chosen[~ordinary].any()
    count = int(chosen.sum())
    # Rows of fewer than seven tokens give at least one: the share lies a little above the rate.
    assert 0.15 < count / ordinary.sum() < 0.17
    assert (ids[~chosen] == targets[~chosen]).all()
    masked = chosen & (ids == source.tokenizer.mask)
    kept = chosen & (ids == targets)
    random = chosen & ~masked & ~kept
    assert ids[random].min() >= 40
    for share, expected in ((masked, 0.8), (random, 0.1 * 359 / 360), (kept, 0.1 + 0.1 / 360)):
        assert abs(share.sum() / count - expected) < 4 * sqrt(expected * (1 - expected) / count)
    drawn = np.bincount(ids[random], minlength=400)[40:]
    mean = drawn.mean()  # every ordinary token is as likely a replacement: chi square / n ~ N(1, 2/n)
    assert abs(((drawn - mean) ** 2 / mean).mean() - 1) < 5 * sqrt(2 / len(drawn))


def test_the_number_chosen_is_the_rate_rounded_without_bias(make: Any) -> None:
    config = MaskedConfig(**make.values(rate=0.15))
    masker = Masker(config, make.tokenizer)
    rows = ragged([[50] * 30] * 4000)
    chosen = masker.choose(rows, row_keys(1, "x", 0, np.arange(4000))).reshape(4000, 30)
    assert set(chosen.sum(1).tolist()) == {4, 5}
    assert abs(chosen.sum(1).mean() - 4.5) < 4 * 0.5 / sqrt(4000)
    assert abs(chosen.mean(0) - 0.15).max() < 4 * sqrt(0.15 * 0.85 / 4000)  # no place is favoured


def test_every_row_trains_something_and_special_tokens_never(make: Any) -> None:
    masker = Masker(MaskedConfig(**make.values(rate=0.9, mask_share=1, random_share=0)), make.tokenizer)
    rows = ragged([[1, 50, 2], [1, 50, 12, 60, 25, 2], [1, 2]])
    for sample in range(20):
        chosen = masker.choose(rows, row_keys(1, "x", sample, np.arange(3)))
        assert not chosen[rows.flat < 40].any()
        assert chosen[1]
        assert chosen[[4, 6]].any()


def test_whole_words_are_chosen_whole(make: Any) -> None:
    masker = Masker(MaskedConfig(**make.values(rate=0.3, whole_words=True)), make.tokenizer)
    # Ids divisible by three go on with the word: 41 42 | 43 | 44 45 48 | and, first of its row, 51 54 | 55.
    rows = ragged([[1, 41, 42, 43, 44, 45, 48, 2], [1, 51, 54, 55, 2]] * 500)
    chosen = masker.choose(rows, row_keys(1, "x", 0, np.arange(1000)))
    first, second = np.split(chosen.reshape(500, 13), [8], axis=1)
    assert (first[:, 1] == first[:, 2]).all()
    assert (first[:, 4] == first[:, 5]).all()
    assert (first[:, 4] == first[:, 6]).all()
    assert (second[:, 1] == second[:, 2]).all()
    for word in (first[:, 1], first[:, 3], first[:, 4], second[:, 1], second[:, 3]):
        assert 0.1 < word.mean() < 0.7
    assert (first[:, 1] != first[:, 3]).any()


def test_a_text_of_one_word_is_not_hidden_whole(make: Any) -> None:
    masker = Masker(MaskedConfig(**make.values(rate=0.3, whole_words=True)), make.tokenizer)
    rows = ragged([[1, 41, 42, 45, 48, 2]] * 200)  # 42, 45 and 48 go on with the word
    chosen = masker.choose(rows, row_keys(1, "x", 0, np.arange(200))).reshape(200, 6)
    assert set(chosen.sum(1).tolist()) == {1, 2}
    assert not chosen[:, [0, 5]].any()


def test_masks_change_with_the_step_and_not_in_evaluation(make: Any) -> None:
    source = make.masked()
    ids = np.arange(8)
    assert not torch.equal(source.collate(ids, 0, 1)["ids"], source.collate(ids, 0, 2)["ids"])
    passes = [torch.cat([b["ids"].flatten() for b in source.epoch()]) for _ in range(2)]
    assert torch.equal(*passes)


def test_a_sample_is_masked_the_same_in_any_company(make: Any) -> None:
    source = make.masked()
    alone, together = source.collate(np.array([5]), 0, 3), source.collate(np.array([2, 5, 9]), 0, 3)
    width = alone["ids"].shape[1]
    assert torch.equal(alone["ids"][0], together["ids"][1, :width])


def test_long_texts_are_cut_into_pieces_without_loss(make: Any) -> None:
    source = make.masked()
    told = source.describe()
    lengths = source.store.lengths
    assert told["split"] == (lengths > 62).sum() > 0
    assert told["tokens"] == lengths.sum()
    seen = sum(int((b["segments"] != 0).sum()) - 2 * len(b["ids"]) for b in source.epoch())
    assert seen == lengths.sum()


def test_shares_above_one(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"mask_share 0.95 \+ random_share 0.1 is more than 1"):
        parse(MaskedConfig, make.values(mask_share=0.95), "here")
