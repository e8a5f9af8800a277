"""The Unigram search in 32-bit sums: ties as SentencePiece breaks them, doubtful rows found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.viterbi import Search, single_precision


def test_a_search_by_hand() -> None:
    scores = {"a": -1.0, "b": -1.5, "ab": -2.0, "abc": -9.0}
    search = Search(scores, {"a": 5, "b": 6, "ab": 7, "abc": 8}, 0, -12.0, None)
    assert search.encode("ab") == [7]
    assert search.encode("abc") == [8]
    assert search.encode("ba?!a") == [6, 5, 0, 5]
    assert search.encode("") == []


def test_bytes_stand_for_unknown_characters() -> None:
    search = Search({"a": -1.0}, {"a": 300}, 0, -12.0, list(range(256)))
    assert search.encode("aक") == [300, 0xE0, 0xA4, 0x95]


def test_rows_with_an_equal_cut_are_doubtful() -> None:
    scores = {"0": -3.1, "00": -4.7, "x": -2.0, "xy": -9.0, "y": -2.0}
    search = Search(scores, {name: i for i, name in enumerate(scores)}, 9, -20.0, None)
    assert search.doubtful([[0, 1], [1, 0], [2, 4], [0, 0], [], [2], [1, 1]]) == [0, 1]


def test_sums_are_rounded() -> None:
    assert single_precision(0.1) != 0.1
    assert single_precision(single_precision(0.1)) == single_precision(0.1)


@pytest.mark.parametrize("unit", ["000 ab ", "1000, the ", '"""""ने '])
def test_long_runs_of_ties_as_in_sentencepiece(unit: str, sentencepiece_file: Callable[[str], Path]) -> None:
    """Beyond a sum of -100000 SentencePiece begins anew, and rounds otherwise from there on."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = sentencepiece_file("unigram")
    text = (unit * 20_000)[:80_000]
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert Tokenizer.load(path).encode(text) == theirs.encode(text)
