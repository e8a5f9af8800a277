"""Romanization by rule."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalanda.text.transliterate import romanize

WORDS = {
    "नमस्ते हिन्दी": "namaste hindii",
    "क़लम १२३।": "qalama 123.",
    "தமிழ் ஸ்ரீ": "tamizh srii",
    "বাংলা খণ্ড": "baanlaa khanndda",
    "ਪੰਜਾਬੀ": "panjaabii",
    "ಕನ್ನಡ": "kannadda",
    "ଓଡ଼ିଆ": "orriaa",
    "മലയാളം": "malayaallan",
    "తెలుగు": "telugu",
    "ગુજરાતી": "gujaraatii",
    "සිංහල ශ්‍රී": "sinhala shrii",
    "ᱥᱟᱱᱛᱟᱲᱤ": "santarri",
    "ꯃꯅꯤꯄꯨꯔ": "manipura",
    "پاکستان": "pakstan",
}


@pytest.mark.parametrize("word", WORDS)
def test_known_words(word: str) -> None:
    assert romanize(word) == WORDS[word]


def test_latin_and_what_has_no_rule_pass_through() -> None:
    assert romanize("Plain text, 10 %") == "Plain text, 10 %"
    assert romanize("café Привет 日本") == "café Привет 日本"


def test_virama_removes_and_vowel_sign_replaces_the_inherent_vowel() -> None:
    assert romanize("क") == "ka"
    assert romanize("क्") == "k"
    assert romanize("की") == "kii"
    assert romanize("क्\u200dष") == romanize("क्ष")


BRAHMIC = st.characters(min_codepoint=0x900, max_codepoint=0xDFF, exclude_categories=("Cn", "Cs"))


@given(st.text(BRAHMIC))
def test_brahmic_text_comes_out_without_letters_of_its_script(text: str) -> None:
    out = romanize(text)
    assert out == romanize(text)
    assert not any(c.isalpha() and ord(c) > 0x24F for c in out)


def test_speed_is_above_a_megabyte_per_second() -> None:
    text = "नमस्ते दुनिया यह हिन्दी है " * 10_000
    start = time.process_time()
    romanize(text)
    assert len(text.encode()) / 1e6 / (time.process_time() - start) > 1  # measured: about 10
