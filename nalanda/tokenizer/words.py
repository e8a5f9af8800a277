"""Which tokens of a vocabulary begin a word: what whole-word masking needs to know.

    starts = word_starts(rust, vocabulary, special_ids, byte_ids)     # bool, one for each id

True for special tokens and for pieces that begin with white space, punctuation or a symbol; False for what goes on
inside a word, for digits (a number is one word, its space began it) and for bytes. SentencePiece's "▁" and GPT-2's
"Ġ" are white space; in BERT's WordPiece, where no piece has a space, every piece without "##" begins a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

import numpy as np
import tokenizers

_JOINERS = "\u200c\u200d"


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in shown]
    return {**{chr(byte): byte for byte in shown}, **{chr(0x100 + i): byte for i, byte in enumerate(rest)}}


def is_byte_level(rust: tokenizers.Tokenizer) -> bool:
    """Whether the vocabulary is written in the alphabet of bytes."""
    parts = (rust.pre_tokenizer, rust.decoder)
    return any(part is not None and b'"ByteLevel"' in part.__getstate__() for part in parts)


def word_starts(
    rust: tokenizers.Tokenizer, vocabulary: int, special: Collection[int], bytes_: Collection[int]
) -> np.ndarray:
    """For each id, whether the token begins a word (bool, length `vocabulary`)."""
    table = byte_alphabet() if is_byte_level(rust) else None
    model = rust.model
    prefix = model.continuing_subword_prefix if isinstance(model, tokenizers.models.WordPiece) else None
    names = [rust.id_to_token(i) or "" for i in range(vocabulary)]
    spaced = any(name.startswith(" ") for name in names)
    starts = np.zeros(vocabulary, dtype=bool)
    for number, name in enumerate(names):
        if number in special:
            starts[number] = True
        elif number in bytes_ or not name or (prefix and name.startswith(prefix)):
            continue
        elif prefix is not None and not spaced:
            starts[number] = True
        else:
            starts[number] = _begins(_text(name, table) if table else name)
    return starts


def _text(name: str, table: dict[str, int]) -> str:
    """The characters of a byte-level token; a part of a character is no beginning of a word."""
    return bytes(table.get(c, 0x80) for c in name).decode("utf-8", "replace").replace("\ufffd", "\u200d")


def _begins(text: str) -> bool:
    return bool(text) and text[0] not in _JOINERS and unicodedata.category(text[0])[0] not in "LMN"
