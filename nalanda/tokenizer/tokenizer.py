"""A trained tokenizer: text to ids and exactly back.

    tokenizer = Tokenizer.load(folder)           # ours, Hugging Face's, original files, or a .gguf: see foreign.py
    ids = tokenizer.encode_batch(texts)          # never adds special tokens, never finds one in a text
    tokenizer.decode(ids[0]) == texts[0]         # for every NFC text, with a tokenizer of ours
    tokenizer.language("hin_Deva")               # the id of <2hin_Deva>, hin_Deva, __hi__, hi_IN or >>hin<<
    prefix, suffix = tokenizer.affixes           # what the model expects around a text: [CLS] ... [SEP]

In our own the special tokens stand first, in this order; bytes and learned pieces follow:

    <pad> <unk> <bos> <eos> <mask>   <2hin_Deva> <2tam_Taml> ...   <extra_0> <extra_1> ...   <0x00> ... <0xFF>
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from nalanda.base.errors import DataError, RunError
from nalanda.base.io import write_json, write_text
from nalanda.tokenizer.blueprint import OWN_KEY, Blueprint, Exact
from nalanda.tokenizer.charsmap import CharsMap
from nalanda.tokenizer.tags import find_tags
from nalanda.tokenizer.viterbi import Search, unigram_search
from nalanda.tokenizer.words import word_starts

ROLES = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "mask": "<mask>"}
"""The special tokens that every tokenizer of ours has, by role, in the order of their ids."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The byte tokens' names, as the `tokenizers` library expects them."""
FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_SENTINEL = re.compile(r"<extra_(?:id_)?(\d+)>")
_STAND_INS = {"bos": "cls", "eos": "sep"}


def special_tokens(languages: Sequence[str], sentinels: int) -> list[str]:
    """The names of all special tokens, in the order of their ids."""
    return [
        *ROLES.values(),
        *(f"<2{code}>" for code in languages),
        *(f"<extra_{i}>" for i in range(sentinels)),
    ]


class Tokenizer:
    """Encodes text as ids and decodes ids as text; see the file's heading. Made by `load` and by `train.train`."""

    def __init__(
        self,
        definition: str,
        roles: dict[str, str],
        origin: str = FILE,
        *,
        chat_template: str | None = None,
        exact: Exact | None = None,
        split_special: bool = True,
    ) -> None:
        """`definition` is the content of a tokenizer.json; `roles` names the tokens of pad, unk, bos, eos, mask ...

        Raises RunError when the definition is damaged or lacks one of the tokens named.
        """
        self._origin, self._definition, self._exact = origin, definition, exact or Exact()
        self._rust = self._pipeline()
        self._rust.encode_special_tokens = True  # user text stays text
        self._roles = dict(roles)
        self._split_special = split_special
        self.chat_template: str | None = chat_template
        """The Jinja template that writes a conversation as one text, where there is one."""
        rest = json.dumps(asdict(exact), sort_keys=True) if exact and exact != Exact() else ""
        self.fingerprint: str = hashlib.sha256((definition + rest).encode()).hexdigest()[:16]
        """16 hexadecimal digits of the SHA-256 of tokenizer.json: ids of another fingerprint mean other text."""
        size = self._rust.get_vocab_size(with_added_tokens=True)
        self.vocabulary: int = size if self._exact.ids_end is None else self._exact.ids_end
        """How many ids there are."""
        self.target: Tokenizer = self
        """The tokenizer of a translation's target side: another one in Marian's models, else this."""
        self._numbers = {role: self._number(role, name) for role, name in self._roles.items()}

    def _pipeline(self) -> tokenizers.Tokenizer:
        with _said_plainly(self._origin, "not a tokenizer"):
            rust = tokenizers.Tokenizer.from_str(self._definition)
        # Padding and truncation are the data side's decisions.
        rust.no_padding()
        rust.no_truncation()
        self._charsmap: CharsMap | None = None
        if self._exact.charsmap:
            self._charsmap = _take_charsmap(rust, self._exact.protected, self._origin)
        return rust

    def _number(self, role: str, name: str) -> int:
        number = self._rust.token_to_id(name)
        if number is None:
            raise RunError(f"{self._origin}: has no {role} token ('{name}' is not in its vocabulary)")
        return int(number)

    @classmethod
    def load(cls, place: Path) -> Tokenizer:
        """The tokenizer of a folder (ours, Hugging Face's, original files) or of a .gguf file.

        Raises RunError for a missing or damaged file, DataError for one that is not understood.
        """
        from nalanda.tokenizer.foreign import read

        return cls.of(read(Path(place)))

    @classmethod
    def of(cls, plan: Blueprint) -> Tokenizer:
        """The tokenizer that a reader of files described."""
        made = cls(
            plan.definition,
            plan.roles,
            plan.origin,
            chat_template=plan.chat_template,
            exact=plan.exact,
            split_special=plan.split_special,
        )
        if plan.target is not None:
            made.target = cls.of(plan.target)
        return made

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template, as `transformers.AutoTokenizer` reads
        them; a target side of its own goes into the folder `target`."""
        extra = [self.token(i) for i in sorted(self.special_ids) if i < self.vocabulary]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": name for role, name in self._roles.items()},
            "additional_special_tokens": [name for name in extra if name not in self._roles.values()],
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": self._split_special,
        }
        if self._exact != Exact():
            config[OWN_KEY] = asdict(self._exact)
        write_text(folder / FILE, self._definition)
        write_json(folder / CONFIG_FILE, config)
        if self.chat_template is not None:
            write_text(folder / TEMPLATE_FILE, self.chat_template)
        if self.target is not self:
            self.target.save(folder / "target")

    @property
    def definition(self) -> str:
        """The content of tokenizer.json."""
        return self._definition

    @property
    def exact(self) -> Exact:
        """What is done around the pipeline of tokenizer.json."""
        return self._exact

    @property
    def roles(self) -> dict[str, str]:
        """Role -> token, of the roles that there are."""
        return dict(self._roles)

    def role(self, name: str) -> int | None:
        """The id of the token that plays a role; None where none does. BERT's cls and sep play bos and eos."""
        number = self._numbers.get(name)
        return self._numbers.get(_STAND_INS.get(name, "")) if number is None else number

    def _required(self, role: str) -> int:
        number = self.role(role)
        if number is None:
            raise DataError(
                f"{self._origin}: the tokenizer has no {role} token, which this use of it needs; "
                f"name one as {role}_token in tokenizer_config.json"
            )
        return number

    @property
    def pad(self) -> int:
        """What fills rows; eos or 0 where there is no such token: segments mask what is filled, so any id will do."""
        found = (self.role(role) for role in ("pad", "eos"))
        return next((number for number in found if number is not None), 0)

    @property
    def unk(self) -> int:
        """The unknown token's id. Raises DataError where there is none, as for the other roles."""
        return self._required("unk")

    @property
    def bos(self) -> int:
        """The id of the token before a text."""
        return self._required("bos")

    @property
    def eos(self) -> int:
        """The id of the token after a text."""
        return self._required("eos")

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text: EOS."""
        return (self.eos,)

    @property
    def mask(self) -> int:
        """The id of the token that hides another."""
        return self._required("mask")

    @cached_property
    def affixes(self) -> tuple[list[int], list[int]]:
        """(prefix, suffix): what the model expects around a single text; both empty for a tokenizer of ours."""
        parts = self._around(None)
        return parts[0], parts[1]

    @cached_property
    def pair_affixes(self) -> tuple[list[int], list[int], list[int]]:
        """(prefix, middle, suffix): what the model expects around and between two texts."""
        parts = self._around("a")
        return parts[0], parts[1], parts[2]

    def _around(self, second: str | None) -> list[list[int]]:
        """What the post-processor puts before, between and after texts."""
        with _said_plainly(self._origin, "its post_processor does not fit its vocabulary"):
            whole = self._rust.encode("a", second, add_special_tokens=True)
        parts: list[list[int]] = [[], [], []]
        texts = 0
        for number, text in zip(whole.ids, whole.sequence_ids, strict=True):
            if text is None:
                parts[texts].append(number)
            else:
                texts = text + 1
        return parts

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special token. Raises DataError for text that is not valid Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores; give it thousands of texts at a time."""
        return self._encode(self._rust, texts)

    def encode_marked(self, texts: Sequence[str]) -> list[list[int]]:
        """Like `encode_batch`, but a special token spelled in a text becomes its id.

        Only for what a chat template wrote: a user's text could forge special tokens.
        """
        return self._encode(self._marking, texts)

    @cached_property
    def _marking(self) -> tokenizers.Tokenizer:
        return self._pipeline()

    def _encode(self, rust: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        try:
            given = [self._charsmap(text) for text in texts] if self._charsmap else list(texts)
            with _said_plainly(self._origin, "its model cannot encode this text"):
                rows = [e.ids for e in rust.encode_batch_fast(given, add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError):
            raise _bad_text(texts) from None
        if self._exact.unknown_score is not None and rust is self._rust:
            for row in self._search.doubtful(rows):
                before = rust.normalizer
                rows[row] = self._search.encode(before.normalize_str(given[row]) if before else given[row])
        end, unk = self._exact.ids_end, self._exact.unk
        if end is not None and unk is not None:
            rows = [
                [i if i < end else unk for i in ids] if max(ids, default=0) >= end else ids for ids in rows
            ]
        return rows

    @cached_property
    def _search(self) -> Search:
        return unigram_search(self._definition, self._exact.unknown_score or 0.0)

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

    def has(self, number: int) -> bool:
        """Whether an id has a token: some vocabularies skip ids."""
        return self._rust.id_to_token(int(number)) is not None

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens: roles, language tags, sentinels and whatever else no text reaches."""
        added = self._rust.get_added_tokens_decoder().items()
        return frozenset(i for i, token in added if token.special) | frozenset(self._numbers.values())

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The ids of the byte tokens; empty where there is no byte fallback."""
        numbers = (self._rust.token_to_id(name) for name in BYTES)
        return frozenset(number for number in numbers if number is not None)

    @cached_property
    def _tags(self) -> tuple[str | None, dict[str, int]]:
        return find_tags({i: self.token(i) for i in sorted(self.special_ids)})

    @property
    def tag_style(self) -> str | None:
        """Whose way of writing language tags this is (a key of `tags.STYLES`); None without tags."""
        return self._tags[0]

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes that have a language tag."""
        return tuple(self._tags[1])

    def language(self, code: str) -> int:
        """The id of the language tag of `code`. Raises DataError, naming the nearest codes, when there is none."""
        tags = self._tags[1]
        if code in tags:
            return tags[code]
        near = difflib.get_close_matches(code, tags, n=3)
        known = f"did you mean {' or '.join(near)}?" if near else f"it has: {', '.join(tags) or 'none'}"
        raise DataError(f"language '{code}': the tokenizer has no tag for it; {known}")

    @cached_property
    def sentinels(self) -> list[int]:
        """The ids of <extra_0>, <extra_1> ... (T5: <extra_id_0> ...) in order."""
        found = ((_SENTINEL.fullmatch(self.token(i)), i) for i in self.special_ids)
        return [i for _, i in sorted((int(match[1]), i) for match, i in found if match)]

    @cached_property
    def word_starts(self) -> np.ndarray:
        """For each id, whether the token begins a word (bool, length `vocabulary`): see words.py."""
        return word_starts(self._rust, self.vocabulary, self.special_ids, self.byte_ids)


@contextlib.contextmanager
def _said_plainly(origin: str, what: str) -> Iterator[None]:
    """Turns what the library raises for a tokenizer that is malformed (bare Exception, or a panic) into RunError."""
    try:
        yield
    except (UnicodeEncodeError, TypeError):  # the caller's text
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RunError(f"{origin}: {what}: {error}") from None


def _take_charsmap(rust: tokenizers.Tokenizer, protected: Sequence[str], origin: str) -> CharsMap:
    """Takes the Precompiled step out of the pipeline and gives it as the exact algorithm."""
    from base64 import b64decode

    state = json.loads(rust.normalizer.__getstate__()) if rust.normalizer is not None else {}
    steps = state.get("normalizers", [state])
    blob = b"".join(b64decode(s["precompiled_charsmap"]) for s in steps if s.get("type") == "Precompiled")
    rest = [step for step in steps if step.get("type") != "Precompiled"]
    empty = tokenizers.normalizers.Sequence([])
    empty.__setstate__(json.dumps({"type": "Sequence", "normalizers": rest}).encode())
    rust.normalizer = empty
    return CharsMap(blob, protected, origin)


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
