"""Each reason for which a row is filtered."""

from __future__ import annotations

import pytest

from nalanda.corpus.document import Document
from nalanda.corpus.filters import FiltersConfig


def pair(text: str, target: str, flag: str = "") -> Document:
    return Document(text, "1", "eng_Latn", target, "hin_Deva", meta={"flag": flag} if flag else {})


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (pair("Sun", "सूर्य"), ""),
        (pair("Sun", "सूर्य", "fuzzy"), "fuzzy"),
        (pair("", "सूर्य"), "empty"),
        (pair("Sun", ""), "untranslated"),
        (pair("Sun", " sun "), "untranslated"),
        (pair("Sun", "Sonne"), "wrong_script"),
        (pair("100", "१००"), "wrong_script"),
        (Document("नमस्ते", "1", "hin_Deva"), ""),
        (Document("hello", "1", "hin_Deva"), "wrong_script"),
        (Document("hello", "1"), ""),
        (Document(" \n", "1"), "empty"),
    ],
)
def test_reasons(document: Document, reason: str) -> None:
    assert FiltersConfig().reason(document) == reason


def test_bounds() -> None:
    assert FiltersConfig(min_characters=4).reason(pair("Star", "तार")) == "too_short"
    assert FiltersConfig(max_characters=4).reason(pair("Stars", "तारे")) == "too_long"
    long = pair("x" * 100, "क")
    assert FiltersConfig(max_ratio=3).reason(long) == "length_ratio"
    assert FiltersConfig().reason(long) == ""
    assert FiltersConfig(script_share=0.5).reason(pair("Sun", "Sonne सू")) == "wrong_script"
    assert FiltersConfig(script=False).reason(pair("Sun", "Sonne")) == ""
    assert FiltersConfig(untranslated=False, script=False).reason(pair("Sun", "")) == "too_short"
    assert FiltersConfig(keep_flags=("fuzzy",)).reason(pair("Sun", "सूर्य", "fuzzy")) == ""
    with pytest.raises(ValueError, match="min_characters is above"):
        FiltersConfig(min_characters=5, max_characters=4)
