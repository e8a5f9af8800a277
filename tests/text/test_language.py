"""The table of languages and the ways to name one."""

from __future__ import annotations

import unicodedata

import pytest

from nalanda.base.errors import DataError
from nalanda.text.language import LANGUAGES, Language, language_code, script_letters, script_of

CODES = [
    "asm_Beng", "awa_Deva", "ben_Beng", "bho_Deva", "bra_Deva", "brx_Deva", "doi_Deva", "eng_Latn",
    "gom_Deva", "gon_Deva", "guj_Gujr", "hin_Deva", "hingh_Deva", "hoc_Wara", "kan_Knda", "kas_Arab",
    "kas_Deva", "kha_Latn", "lus_Latn", "mag_Deva", "mai_Deva", "mal_Mlym", "mar_Deva", "mni_Beng",
    "mni_Mtei", "npi_Deva", "ory_Orya", "pan_Guru", "san_Deva", "sat_Olck", "sin_Sinh", "snd_Arab",
    "snd_Deva", "tam_Taml", "tcy_Knda", "tel_Telu", "urd_Arab", "xnr_Deva",
]  # fmt: skip


def test_the_table_has_the_38_codes() -> None:
    assert sorted(LANGUAGES) == sorted(CODES)
    assert len(CODES) == 38


@pytest.mark.parametrize(
    "name", ["hi", "hin", "hin_Deva", "Hindi", "hi-IN", "hi_IN", "hi-Deva", "HIN-DEVA", "hi-Deva-IN"]
)
def test_hindi_by_any_name(name: str) -> None:
    assert Language.find(name).code == "hin_Deva"


@pytest.mark.parametrize(
    ("name", "code"),
    [("bangla", "ben_Beng"), ("or", "ory_Orya"), ("ks", "kas_Arab"), ("ks-Deva", "kas_Deva"), ("sd", "snd_Arab"),
     ("mni", "mni_Beng"), ("mni-Mtei", "mni_Mtei"), ("en", "eng_Latn"), ("ne-NP", "npi_Deva")],
)  # fmt: skip
def test_other_names(name: str, code: str) -> None:
    assert Language.find(name).code == code


def test_every_spelling_finds_its_own_row() -> None:
    for language in LANGUAGES.values():
        for name in (language.code, language.name, *language.locales, *language.aliases):
            assert Language.find(name) is language


def test_script_and_direction_agree_with_the_code() -> None:
    for language in LANGUAGES.values():
        assert language.code.endswith(f"_{language.script}")
        assert language.direction == ("rtl" if language.script == "Arab" else "ltr")


def test_an_unknown_name_gets_the_nearest_codes() -> None:
    with pytest.raises(DataError, match="hin_Deva"):
        Language.find("hin_Dev")
    with pytest.raises(DataError):
        Language.find("pa_PK")  # Punjabi in Arabic script, no code of the table


def test_codes_outside_the_table_need_the_right_form() -> None:
    assert language_code("fra_Latn") == "fra_Latn"
    assert language_code("hi") == "hin_Deva"
    for wrong in ("fra", "fra_latn", "hin_Devq", ""):
        with pytest.raises(DataError):
            language_code(wrong)
    assert script_of("fra_Latn") == "Latn"
    assert script_of("hingh_Deva") == "Deva"


def test_letters_of_a_script() -> None:
    assert script_letters("नमस्ते x 1", "Deva") == (6, 7)
    assert script_letters("e\u0301 ", "Latn") == (1, 1)
    assert script_letters("123 !", "Deva") == (0, 0)
    assert script_letters("abc", "Zzzz") == (0, 3)


def test_each_script_of_the_table_has_letters_by_that_name() -> None:
    for script in {language.script for language in LANGUAGES.values()}:
        letters = (chr(point) for point in range(0x20000) if unicodedata.category(chr(point))[0] == "L")
        assert any(script_letters(letter, script)[0] for letter in letters), script
