"""Language tags: whose style, and which of our codes."""

from __future__ import annotations

import pytest

from nalanda.tokenizer.tag_lists import M2M100, MBART, MBART50, NLLB
from nalanda.tokenizer.tags import find_tags, is_tag


@pytest.mark.parametrize(
    ("names", "style", "codes"),
    [
        (["<s>", "<2hin_Deva>", "<2xyz>"], "nalanda", ["hin_Deva", "xyz"]),
        (["__hi__", "__ta__", "__fr__"], "m2m100", ["hin_Deva", "tam_Taml", "fr"]),
        (["hi_IN", "ne_NP", "en_XX", "fr_XX"], "mbart", ["hin_Deva", "npi_Deva", "eng_Latn", "fr"]),
        (["hin_Deva", "fra_Latn", "kas_Deva"], "nllb", ["hin_Deva", "fra_Latn", "kas_Deva"]),
        ([">>hin<<", ">>ben<<", ">>cmn_Hans<<"], "marian", ["hin_Deva", "ben_Beng", "cmn_Hans"]),
        (["__src__hi__", "__tgt__hi__", "__tgt__en__"], "indictrans", ["hin_Deva", "eng_Latn"]),
        (["<s>", "</s>", "<extra_id_0>", "<unk>"], None, []),
    ],
)
def test_styles(names: list[str], style: str | None, codes: list[str]) -> None:
    assert find_tags(dict(enumerate(names)))[0] == style
    assert list(find_tags(dict(enumerate(names)))[1]) == codes


def test_a_tag_that_is_a_code_goes_before_another_name_of_the_language() -> None:
    assert find_tags({1: ">>hin<<", 2: ">>hin_Deva<<"})[1] == {"hin_Deva": 2}


def test_the_families_lists() -> None:
    assert (len(MBART), len(MBART50), len(M2M100), len(NLLB)) == (25, 52, 100, 202)
    for names in (MBART, MBART50, M2M100, NLLB):
        assert len(set(names)) == len(names)
    assert all(is_tag(name) for name in (*MBART50, *NLLB, *(f"__{code}__" for code in M2M100)))
    assert set(MBART) < set(MBART50)


def test_ordinary_tokens_are_no_tags() -> None:
    assert not any(
        is_tag(name) for name in ("<s>", "hindi", "▁hin", "__", "IN", "hi", "<mask>", "madeupword0000")
    )
