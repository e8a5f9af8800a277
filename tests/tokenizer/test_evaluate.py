"""The fit of a tokenizer to a text, against counts made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from nalanda.base.errors import DataError
from nalanda.tokenizer.evaluate import evaluate
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, train


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """Six pieces: a space and five letters, and bytes; nothing is merged."""
    return train(["abcde"], TokenizerConfig(vocabulary=5 + 256 + 6))


def test_counts_by_hand(letters: Tokenizer) -> None:
    rows = evaluate(letters, [("x", "ab cd"), ("y", "aक"), ("x", "e")])
    # " ab cd" = 6 pieces; " aक" = 2 pieces + 3 bytes; " e" = 2 pieces
    assert list(rows) == ["x", "y", "all"]
    assert (rows["x"].texts, rows["x"].words, rows["x"].characters, rows["x"].tokens) == (2, 3, 6, 8)
    assert rows["x"].fertility == pytest.approx(8 / 3)
    assert rows["x"].tokens_per_character == pytest.approx(8 / 6)
    assert (rows["y"].tokens, rows["y"].byte_tokens, rows["y"].byte_share) == (5, 3, 0.6)
    assert (rows["all"].tokens, rows["all"].words, rows["all"].round_trip_failures) == (13, 4, 0)
    assert rows["all"].to_dict()["fertility"] == 13 / 4


def test_what_does_not_come_back_is_counted() -> None:
    tokenizer = train(["abcde"], TokenizerConfig(vocabulary=11, byte_fallback=False))
    row = evaluate(tokenizer, [("x", "ab"), ("x", "aक"), ("x", "कक")])["all"]
    assert (row.unknown_tokens, row.round_trip_failures) == (3, 2)


def test_many_texts_are_summed_over_batches(letters: Tokenizer) -> None:
    assert evaluate(letters, (("x", "ab") for _ in range(10_000)))["all"].tokens == 30_000


def test_no_text_gives_no_ratio(letters: Tokenizer) -> None:
    rows = evaluate(letters, [])
    assert list(rows) == ["all"]
    assert math.isnan(rows["all"].fertility)
    assert math.isnan(rows["all"].byte_share)


def test_a_language_called_all_is_refused(letters: Tokenizer) -> None:
    with pytest.raises(DataError, match="'all'"):
        evaluate(letters, [("all", "ab")])


def test_small_tokenizers_fit_their_text(small: Callable[[str], Tokenizer], corpus: list[str]) -> None:
    for kind in ("bpe", "unigram"):
        row = evaluate(small(kind), (("x", text) for text in corpus))["all"]
        assert row.byte_tokens == row.unknown_tokens == row.round_trip_failures == 0
        assert row.tokens_per_character < 0.9
