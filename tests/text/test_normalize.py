"""NFC and the split key."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from nalanda.text.normalize import nfc, split_key


def test_nfc_composes_and_leaves_joiners() -> None:
    assert nfc("e\u0301") == "é"
    assert nfc("क्\u200dष श्र\u200c") == "क्\u200dष श्र\u200c"
    assert nfc("\u0958") == "क\u093c"  # a composition exclusion


def test_split_key_of_english() -> None:
    assert split_key("  Sri-Lanka,  (ISLAND)!") == "sri lanka island"
    assert split_key("Ｆｕｌｌ ｗｉｄｔｈ") == "full width"
    assert split_key("...") == ""
    assert split_key("snake_case") == "snake_case"


latin = st.text(st.characters(max_codepoint=0x24F, exclude_categories=("Cs",)))


@given(latin)
def test_on_latin_text_it_is_pythons_definition(text: str) -> None:
    expected = re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).lower()).strip()
    assert split_key(text) == expected


def test_accents_written_apart_break_words_as_in_python() -> None:
    text = "x\u0331y"  # no composed form
    assert split_key(text) == re.sub(r"\W+", " ", text).strip() == "x y"


def test_vowel_signs_viramas_and_joiners_stay_in_the_word() -> None:
    assert split_key("हिन्दी, भाषा।") == "हिन्दी भाषा"
    assert split_key("க்\u200cஷ-தமிழ்") == "க்ஷ தமிழ்"
    assert split_key("می\u200cروم") == "میروم"
    assert split_key("ᱥᱟᱱᱛᱟᱲᱤ ꯃꯤꯇꯩꯂꯣꯟ 𑣉𑣞𑣁") == "ᱥᱟᱱᱛᱟᱲᱤ ꯃꯤꯇꯩꯂꯣꯟ 𑣉𑣞𑣁".lower()


@given(st.text())
def test_a_key_has_single_inner_spaces_only(text: str) -> None:
    key = split_key(text)
    assert key == key.strip()
    assert "  " not in key
