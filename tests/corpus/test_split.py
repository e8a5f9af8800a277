"""Splitting by hash, and the exact search for near rows against the plain one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nalanda.corpus.document import Document
from nalanda.corpus.split import NearIndex, SplitConfig, jaccard, key_side, trigrams


@given(st.text())
def test_the_split_is_the_hash_modulo_50(key: str) -> None:
    residue = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 50
    assert SplitConfig().of(key) == {7: "test", 8: "dev"}.get(residue, "train")


def test_the_split_of_known_keys_never_changes() -> None:
    found = {
        key: SplitConfig().of(key) for key in ("sri lanka", "india", "aichi", "hindi", "tamasheq", "bhutan")
    }
    assert found == {
        "sri lanka": "train", "india": "train", "aichi": "test", "hindi": "train", "tamasheq": "dev", "bhutan": "test"
    }  # fmt: skip


def test_residues_are_checked() -> None:
    with pytest.raises(ValueError, match="from 0 to modulo - 1 = 49"):
        SplitConfig(test=(50,))
    with pytest.raises(ValueError, match="given twice"):
        SplitConfig(test=(7,), dev=(7,))
    half = SplitConfig(modulo=2, test=(1,), dev=())
    assert {half.of(str(n)) for n in range(20)} == {"train", "test"}


def test_the_english_side_decides() -> None:
    assert key_side(Document("Sun", "1", "eng_Latn", "सूर्य", "hin_Deva"), "eng_Latn") == "Sun"
    assert key_side(Document("सूर्य", "1", "hin_Deva", "Sun", "eng_Latn"), "eng_Latn") == "Sun"
    assert key_side(Document("सूर्य", "1", "hin_Deva"), "eng_Latn") == "सूर्य"


def test_trigrams() -> None:
    assert trigrams("abcd") == {"abc", "bcd"}
    assert trigrams("ab") == {"ab"}
    assert trigrams("") == {""}
    assert jaccard(trigrams("abcd"), trigrams("abce")) == 1 / 3


keys = st.lists(st.text("ab c", max_size=14), max_size=12)


@given(held_out=keys, others=keys, threshold=st.sampled_from([0.2, 1 / 3, 0.5, 0.6, 0.8, 0.9, 1.0]))
@example(held_out=["abcdefg"], others=["abcdef"], threshold=0.8)  # exactly at the threshold: 4 of 5
def test_the_index_finds_exactly_what_comparing_all_finds(
    held_out: list[str], others: list[str], threshold: float
) -> None:
    index = NearIndex(held_out, threshold)
    for key in others:
        plain = any(jaccard(trigrams(key), trigrams(other)) >= threshold for other in held_out)
        assert index.has_neighbour(key) == plain, key


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError):
        NearIndex([], 0)
