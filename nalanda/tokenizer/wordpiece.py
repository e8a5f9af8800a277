"""BERT's vocab.txt: one token a line, the line's number its id.

    blueprint = from_vocabulary(Path("vocab.txt"), settings)

The text is cleaned, lower-cased and stripped of accents as tokenizer_config.json says (do_lower_case, strip_accents,
tokenize_chinese_chars), cut at white space and punctuation, and each word into the longest pieces from its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nalanda.base.errors import DataError
from nalanda.tokenizer.blueprint import Affixes, Blueprint, added_token, definition, read_text, template
from nalanda.tokenizer.pretokenizer import CONTINUATION
from nalanda.tokenizer.sentencepiece import check_distinct
from nalanda.tokenizer.settings import Settings

_LONGEST_WORD = 100  # a longer one is [UNK], as in BERT
_NAMES = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def from_vocabulary(path: Path, settings: Settings) -> Blueprint:
    """The tokenizer of a vocab.txt. Raises DataError where a token stands twice or [UNK] is missing."""
    names = [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]
    roles = {**_NAMES, **settings.roles({name: i for i, name in enumerate(names)})}
    strip = settings.tokenizer.get("strip_accents")
    return build(
        names,
        {role: name for role, name in roles.items() if name in set(names)},
        str(path),
        lowercase=settings.flag("do_lower_case", True),
        strip_accents=strip if isinstance(strip, bool) else None,
        chinese=settings.flag("tokenize_chinese_chars", True),
        chat_template=settings.chat_template,
    )


def build(
    names: Sequence[str],
    roles: dict[str, str],
    origin: str,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese: bool = True,
    chat_template: str | None = None,
) -> Blueprint:
    """BERT's tokenizer over a vocabulary in the order of its ids; `roles` needs unk."""
    check_distinct(names, origin)
    if "unk" not in roles:
        raise DataError(
            f"{origin}: the vocabulary has no token [UNK], which every word outside of it becomes"
        )
    numbers = {name: i for i, name in enumerate(names)}
    affixes = Affixes()
    if "cls" in roles and "sep" in roles:
        affixes = Affixes([roles["cls"]], [roles["sep"]], [roles["sep"]])
    value = definition(
        model={
            "type": "WordPiece",
            "unk_token": roles["unk"],
            "continuing_subword_prefix": CONTINUATION,
            "max_input_chars_per_word": _LONGEST_WORD,
            "vocab": numbers,
        },
        normalizer=[
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": chinese,
                "strip_accents": strip_accents,
                "lowercase": lowercase,
            }
        ],
        pre_tokenizer=[{"type": "BertPreTokenizer"}],
        decoder=[{"type": "WordPiece", "prefix": CONTINUATION, "cleanup": True}],
        added=[added_token(numbers[name], name, special=True) for name in dict.fromkeys(roles.values())],
        post_processor=template(affixes, numbers),
    )
    return Blueprint(value, roles, origin, chat_template)
