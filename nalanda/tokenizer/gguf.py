"""The tokenizer in a GGUF file's metadata.

tokenizer = from_metadata(open_gguf(path).metadata, str(path))      # back: gguf_write.to_metadata

tokenizer.ggml.model   llama   SentencePiece BPE (tokens, scores, token_type)
                       t5      SentencePiece Unigram
                       gpt2    byte-level BPE (merges); `tokenizer.ggml.pre` names its regular expressions
                       bert    WordPiece; the metadata does not say whether it lower-cases: as llama.cpp, it does
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nalanda.base.errors import DataError
from nalanda.tokenizer import bytelevel, wordpiece
from nalanda.tokenizer.blueprint import Affixes, Blueprint
from nalanda.tokenizer.bytelevel import PATTERNS
from nalanda.tokenizer.pretokenizer import CONTINUATION
from nalanda.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Model, build
from nalanda.tokenizer.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "sep": "seperator_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
_MOST_TOKENS = 1 << 24
_FILLER = re.compile(r"\[PAD\d+\]")


@dataclass(frozen=True)
class Pre:
    """What a value of `tokenizer.ggml.pre` means."""

    patterns: Sequence[str]
    """Cuts, one after the other."""
    whole_words: bool = False
    """Whether a word that is a token is taken whole."""
    bos: bool = False
    """Whether bos stands before a text where the file does not say."""
    nfc: bool = False


_GPT2 = PATTERNS["gpt2"]
_DIGITS = Pre([r"\p{N}", _GPT2])
_LLAMA3 = Pre([PATTERNS["llama3"]], whole_words=True, bos=True)
_QWEN = Pre([PATTERNS["qwen2"]])
_GPT4O = Pre([PATTERNS["gpt4o"]])
_BLOOM = Pre([r" ?[^(\s|.,!?…。，、।۔،)]+"])
_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
PRE: dict[str, Pre] = {
    **dict.fromkeys(
        ("gpt-2", "olmo", "mpt", "phi-2", "jais", "jina-v2-code", "roberta-bpe", "trillion"), Pre([_GPT2])
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Pre([PATTERNS["llama3"]])),
    # Qwen's own tokenizer composes first; others that share its expression do not.
    "qwen2": replace(_QWEN, nfc=True),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _QWEN),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "tekken": Pre([PATTERNS["tekken"]], whole_words=True),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), _BLOOM),
    "falcon": Pre([r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"]),
    "deepseek-coder": Pre([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
    "deepseek-v3": Pre(
        [
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            rf"{_PUNCTUATION}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
        ]
    ),
    "default": Pre([r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
}
"""The regular expressions by name, as llama.cpp has them; where several names share one, the first is written."""


class _Metadata:
    """The keys below `tokenizer.ggml.`, checked when read."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self.values, self.origin = values, origin
        self.model = self.text("model")
        self.tokens = self.texts("tokens")
        if not self.tokens:
            raise self.wrong("tokens", "empty")

    def wrong(self, key: str, what: str) -> DataError:
        return DataError(f"{self.origin}: key '{PREFIX}{key}': {what}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(PREFIX + key, default)
        if not isinstance(value, str):
            raise self.wrong(
                key, "missing: the file holds no tokenizer" if value is None else "expected text"
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.values.get(PREFIX + key, default))

    def rows(self, key: str, length: int | None = None) -> list[Any]:
        value = self.values.get(PREFIX + key)
        if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
            raise self.wrong(key, "missing" if value is None else "expected a list")
        if len(value) > _MOST_TOKENS or (length is not None and len(value) != length):
            raise self.wrong(
                key, f"{len(value)} entries" + (f" for {length} tokens" if length is not None else "")
            )
        return list(value.tolist() if hasattr(value, "tolist") else value)

    def texts(self, key: str) -> list[str]:
        found = self.rows(key)
        bad = next((i for i, row in enumerate(found) if not isinstance(row, str)), None)
        if bad is not None:
            raise self.wrong(key, f"entry {bad} is no text")
        return found

    def types(self) -> list[int]:
        if PREFIX + "token_type" not in self.values:
            return [NORMAL] * len(self.tokens)
        return [int(kind) for kind in self.rows("token_type", len(self.tokens))]

    def scores(self) -> list[float]:
        found = [float(score) for score in self.rows("scores", len(self.tokens))]
        bad = next((i for i, score in enumerate(found) if not math.isfinite(score)), None)
        if bad is not None:
            raise self.wrong("scores", f"entry {bad} is {found[bad]}")
        return found

    def roles(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for role, key in ROLES.items():
            number = self.values.get(PREFIX + key)
            if number is None or number == 0xFFFFFFFF:  # how some writers say "none"
                continue
            if not isinstance(number, int) or not 0 <= number < len(self.tokens):
                raise self.wrong(key, f"{number} is no id of {len(self.tokens)} tokens")
            found[role] = self.tokens[number]
        return found

    def affixes(self, bos: bool, eos: bool) -> Affixes:
        roles = self.roles()
        first, last = roles.get("bos"), roles.get("eos")
        return Affixes(
            [first] if first and self.flag("add_bos_token", bos) else [],
            [last] if last and self.flag("add_eos_token", eos) else [],
        )


def from_metadata(metadata: Mapping[str, Any], origin: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe. Raises DataError naming file and key."""
    return Tokenizer.of(blueprint(metadata, origin))


def blueprint(metadata: Mapping[str, Any], origin: str) -> Blueprint:
    """What `from_metadata` makes the tokenizer of."""
    values = _Metadata(metadata, origin)
    reader = {"llama": _llama, "t5": _t5, "gpt2": _byte_level, "bert": _bert}.get(values.model)
    if reader is None:
        raise values.wrong("model", f"'{values.model}' is not known; expected llama, t5, gpt2 or bert")
    template = metadata.get("tokenizer.chat_template")
    return replace(
        reader(values), origin=origin, chat_template=template if isinstance(template, str) else None
    )


def _sentencepiece(values: _Metadata, tokens: list[str], model: Model, affixes: Affixes) -> Blueprint:
    roles = {role: tokens[values.tokens.index(name)] for role, name in values.roles().items()}
    if "unk" not in roles and UNKNOWN not in model.types:
        if "<unk>" not in tokens:
            raise values.wrong("unknown_token_id", "missing, and no token is of the unknown type")
        roles["unk"] = "<unk>"
    unk = roles.setdefault("unk", tokens[model.types.index(UNKNOWN)] if UNKNOWN in model.types else "")
    special = list(dict.fromkeys([*model.control, unk]))
    plan = build(model, tokens, special, unk, affixes)
    return replace(plan, roles=roles)


def _llama(values: _Metadata) -> Blueprint:
    types = values.types()
    # The converter writes user-defined tokens with the spaces that they stand for.
    tokens = [
        name.replace(" ", SPACE) if kind == USER_DEFINED else name
        for name, kind in zip(values.tokens, types, strict=True)
    ]
    model = Model(
        "bpe",
        tokens,
        values.scores(),
        types,
        dummy_prefix=values.flag("add_space_prefix", True),
        collapse=values.flag("remove_extra_whitespaces", False),
        byte_fallback=types.count(BYTE) == 256,
        origin=values.origin,
    )
    return _sentencepiece(values, tokens, model, values.affixes(bos=True, eos=False))


def _t5(values: _Metadata) -> Blueprint:
    tokens, count = list(values.tokens), 100
    fillers = [i for i, name in enumerate(tokens) if _FILLER.fullmatch(name)][:count]
    types = values.types()
    for place, number in enumerate(fillers):  # the converter loses the names of T5's sentinels
        tokens[number] = f"<extra_id_{count - 1 - place}>"
        types[number] = CONTROL
    charsmap = values.values.get(PREFIX + "precompiled_charsmap")
    model = Model(
        "unigram",
        tokens,
        values.scores(),
        types,
        charsmap=bytes(int(byte) & 0xFF for byte in values.rows("precompiled_charsmap"))
        if charsmap is not None
        else b"",
        dummy_prefix=values.flag("add_space_prefix", True),
        collapse=values.flag("remove_extra_whitespaces", False),
        byte_fallback=types.count(BYTE) == 256,
        origin=values.origin,
    )
    return _sentencepiece(values, tokens, model, values.affixes(bos=False, eos=True))


def _byte_level(values: _Metadata) -> Blueprint:
    name = values.text("pre", "default")
    if name not in PRE:
        raise values.wrong("pre", f"'{name}' is not known; known are {', '.join(PRE)}")
    pre, types, known = PRE[name], values.types(), set(values.tokens)
    pairs = []
    for number, row in enumerate(values.texts("merges")):
        cut = row.find(" ", 1)
        left, right = row[:cut], row[cut + 1 :]
        if cut < 0 or not {left, right, left + right} <= known:
            raise values.wrong("merges", f"entry {number} ({row[:40]!r}) joins no two tokens to a third")
        pairs.append((left, right))
    kinds = list(zip(values.tokens, types, strict=True))
    return bytelevel.build(
        values.tokens,
        pairs,
        list(pre.patterns),
        values.origin,
        special=[token for token, kind in kinds if kind in (CONTROL, UNKNOWN)],
        users=[token for token, kind in kinds if kind == USER_DEFINED],
        roles=values.roles(),
        affixes=values.affixes(bos=pre.bos, eos=False),
        whole_words=pre.whole_words,
        nfc=pre.nfc,
    )


def _bert(values: _Metadata) -> Blueprint:
    def original(name: str) -> str:
        if name.startswith("[") and name.endswith("]"):
            return name
        return name[1:] if name.startswith(SPACE) else CONTINUATION + name

    names = [original(name) for name in values.tokens]
    roles = {role: original(name) for role, name in values.roles().items()}
    for role, usual in (
        ("unk", "[UNK]"),
        ("cls", "[CLS]"),
        ("sep", "[SEP]"),
        ("pad", "[PAD]"),
        ("mask", "[MASK]"),
    ):
        if role not in roles and usual in names:
            roles[role] = usual
    return wordpiece.build(names, roles, values.origin)
