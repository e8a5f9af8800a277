"""A trained tokenizer: text to ids and exactly back.

    tokenizer = Tokenizer.load(folder)           # tokenizer.json + tokenizer_config.json, as transformers reads them
    ids = tokenizer.encode_batch(texts)          # never adds special tokens, never finds one in a text
    tokenizer.decode(ids[0]) == texts[0]         # for every NFC text
    tokenizer.language("hin_Deva")               # the id of <2hin_Deva>

The special tokens stand first, in this order; bytes and learned pieces follow:

    <pad> <unk> <bos> <eos> <mask>   <2hin_Deva> <2tam_Taml> ...   <extra_0> <extra_1> ...   <0x00> ... <0xFF>
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from nalanda.base.errors import DataError, RunError
from nalanda.base.io import read_json, write_json, write_text
from nalanda.tokenizer.pretokenizer import CONTINUATION

ROLES = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "mask": "<mask>"}
"""The special tokens that every tokenizer of ours has, by role, in the order of their ids."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The byte tokens' names, as the `tokenizers` library expects them."""
FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_TAG = re.compile(r"<2([^<>\s]+)>")
_SENTINEL = re.compile(r"<extra_(\d+)>")
_JOINERS = "\u200c\u200d"


def special_tokens(languages: Sequence[str], sentinels: int) -> list[str]:
    """The names of all special tokens, in the order of their ids."""
    return [
        *ROLES.values(),
        *(f"<2{code}>" for code in languages),
        *(f"<extra_{i}>" for i in range(sentinels)),
    ]


class Tokenizer:
    """Encodes text as ids and decodes ids as text; see the file's heading. Made by `load` and by `train.train`."""

    def __init__(self, definition: str, roles: dict[str, str], origin: str = FILE) -> None:
        """`definition` is the content of a tokenizer.json; `roles` names the token of pad, unk, bos, eos and mask.

        Raises RunError when the definition is damaged or lacks one of those tokens.
        """
        try:
            self._rust = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception for anything malformed
            raise RunError(f"{origin}: not a tokenizer: {error}") from None
        # Padding, truncation and special tokens are the data side's decisions; user text stays text.
        self._rust.no_padding()
        self._rust.no_truncation()
        self._rust.encode_special_tokens = True
        self._definition = definition
        self._roles = dict(roles)
        self.fingerprint: str = hashlib.sha256(definition.encode()).hexdigest()[:16]
        """16 hexadecimal digits of the SHA-256 of tokenizer.json: ids of another fingerprint mean other text."""
        self.vocabulary: int = self._rust.get_vocab_size(with_added_tokens=True)
        """How many ids there are."""
        self.pad, self.unk, self.bos, self.eos, self.mask = (self._role(role, origin) for role in ROLES)

    def _role(self, role: str, origin: str) -> int:
        name = self._roles.get(role)
        number = self._rust.token_to_id(name) if name is not None else None
        if number is None:
            raise RunError(
                f"{origin}: has no {role} token ('{name or ROLES[role]}' is not in its vocabulary)"
            )
        return int(number)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer saved in `folder`. Raises RunError for a missing or damaged file."""
        path = folder / FILE
        try:
            definition = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{path}: no such file; is '{folder}' a folder that holds a tokenizer?") from None
        except UnicodeDecodeError as error:
            raise RunError(f"{path}: damaged, not UTF-8: {error}") from None
        config = read_json(folder / CONFIG_FILE)
        if not isinstance(config, dict):
            raise RunError(f"{folder / CONFIG_FILE}: damaged, not a JSON mapping")
        roles = {role: _name(config.get(f"{role}_token")) for role in ROLES}
        return cls(definition, {role: name for role, name in roles.items() if name is not None}, str(path))

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` reads too."""
        extra = [self.token(i) for i in sorted(self.special_ids) if self.token(i) not in self._roles.values()]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": name for role, name in self._roles.items()},
            "additional_special_tokens": extra,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        }
        write_text(folder / FILE, self._definition)
        write_json(folder / CONFIG_FILE, config)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special token. Raises DataError for text that is not valid Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores; give it thousands of texts at a time."""
        try:
            encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise _bad_text(texts) from None
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD. Raises ValueError for an id out of range."""
        return self.decode_batch([ids], skip_special)[0]

    def decode_batch(self, rows: Iterable[Iterable[int]], skip_special: bool = True) -> list[str]:
        """The text of each row of ids, on all cores."""
        lists = [[int(i) for i in row] for row in rows]
        for row in lists:
            if row and not 0 <= min(row) <= max(row) < self.vocabulary:
                raise ValueError(
                    f"token id {max(row, key=abs)} is outside the vocabulary of {self.vocabulary}"
                )
        return self._rust.decode_batch(lists, skip_special_tokens=skip_special)

    def token(self, number: int) -> str:
        """The token with id `number`, as it stands in the vocabulary. Raises ValueError for an id out of range."""
        name = self._rust.id_to_token(int(number)) if number >= 0 else None
        if name is None:
            raise ValueError(f"token id {number} is outside the vocabulary of {self.vocabulary}")
        return str(name)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens: roles, language tags and sentinels."""
        return frozenset(i for i, token in self._rust.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The ids of the byte tokens; empty where there is no byte fallback."""
        numbers = (self._rust.token_to_id(name) for name in BYTES)
        return frozenset(number for number in numbers if number is not None)

    @cached_property
    def _languages(self) -> dict[str, int]:
        found = ((_TAG.fullmatch(self.token(i)), i) for i in sorted(self.special_ids))
        return {match[1]: i for match, i in found if match}

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes that have a language tag."""
        return tuple(self._languages)

    def language(self, code: str) -> int:
        """The id of the tag `<2CODE>`. Raises DataError, naming the nearest codes, when there is none."""
        if code in self._languages:
            return self._languages[code]
        near = difflib.get_close_matches(code, self._languages, n=3)
        known = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"it has: {', '.join(self._languages) or 'none'}"
        )
        raise DataError(f"language '{code}': the tokenizer has no tag for it; {known}")

    @cached_property
    def sentinels(self) -> list[int]:
        """The ids of <extra_0>, <extra_1> ... in order."""
        found = ((_SENTINEL.fullmatch(self.token(i)), i) for i in self.special_ids)
        return [i for _, i in sorted((int(match[1]), i) for match, i in found if match)]

    @cached_property
    def word_starts(self) -> np.ndarray:
        """For each id, whether the token begins a word (bool, length `vocabulary`).

        True for special tokens and for pieces that begin with white space, punctuation or a symbol; False for what
        goes on inside a word, for digits (a number is one word, its space began it) and for bytes.
        """
        starts = [self._starts_word(i) for i in range(self.vocabulary)]
        return np.array(starts, dtype=bool)

    @cached_property
    def _continuation(self) -> str | None:
        model = json.loads(self._definition).get("model", {})
        return CONTINUATION if model.get("type") == "WordPiece" else None

    def _starts_word(self, number: int) -> bool:
        if number in self.special_ids:
            return True
        token = self.token(number)
        if number in self.byte_ids or (self._continuation and token.startswith(self._continuation)):
            return False
        return bool(token) and token[0] not in _JOINERS and unicodedata.category(token[0])[0] not in "LMN"


def _name(value: Any) -> str | None:
    """The token's text in tokenizer_config.json, where it is a string or a described token."""
    return value.get("content") if isinstance(value, dict) else value


def _bad_text(texts: Sequence[Any]) -> DataError:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            return DataError(f"text {row} of the batch: expected a string, found {type(text).__name__}")
        for place, character in enumerate(text):
            if "\ud800" <= character <= "\udfff":
                return DataError(
                    f"text {row} of the batch: a lone surrogate U+{ord(character):04X} at character {place}; "
                    "the text was decoded wrongly, read it as UTF-8"
                )
    return DataError("the batch holds something that is not text")
