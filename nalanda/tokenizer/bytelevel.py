"""Byte-level BPE: tiktoken's rank files, and GPT-2's vocab.json with merges.txt.

    blueprint = from_ranks(Path("o200k_base.tiktoken"), settings)     # or Llama 3's tokenizer.model
    blueprint = from_merges(folder, settings)                         # GPT-2, RoBERTa, BART, Qwen2

A text is cut by a regular expression (`PATTERNS`), each word becomes UTF-8 bytes, written in an alphabet of 256
characters, and neighbours merge, the pair of the lowest rank first. A rank file holds no merges: any two neighbours
that make a token may merge, and a word that is a token is taken whole.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nalanda.base.errors import DataError
from nalanda.tokenizer.blueprint import (
    NO_AFFIXES,
    Affixes,
    Blueprint,
    added_token,
    definition,
    read_bytes,
    read_text,
    template,
)
from nalanda.tokenizer.layouts import read_vocabulary
from nalanda.tokenizer.sentencepiece import check_distinct, merges, split
from nalanda.tokenizer.settings import Settings
from nalanda.tokenizer.words import byte_alphabet

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _by_letters(digits: str) -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _by_case(digits: str, ending: str) -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{ending}|{before}{_UPPER}+{_LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": _by_letters(r"\p{N}{1,3}"),
    "qwen2": _by_letters(r"\p{N}"),
    "gpt4o": _by_case(r"\p{N}{1,3}", f"{_CONTRACTION}?"),
    "tekken": _by_case(r"\p{N}", ""),
}
"""The regular expressions (Oniguruma) whose matches are the words."""


@dataclass(frozen=True)
class Encoding:
    """What tiktoken's code, not its file, says of an encoding."""

    pattern: str
    special: Mapping[int, str]
    affixes: Affixes = NO_AFFIXES
    roles: Mapping[str, str] | None = None


def _llama3() -> Encoding:
    first = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: "<|eot_id|>",
    }
    places = [i for i in range(256) if i not in first]
    reserved = {place: f"<|reserved_special_token_{i}|>" for i, place in enumerate(places)}
    special = {128000 + place: name for place, name in sorted({**first, **reserved}.items())}
    return Encoding("llama3", special, Affixes(["<|begin_of_text|>"]), {"bos": first[0], "eos": first[1]})


def _qwen() -> Encoding:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return Encoding("qwen2", {151643 + i: name for i, name in enumerate(names)})


_END = "<|endoftext|>"
_CL100K = {
    100257: _END,
    100258: "<|fim_prefix|>",
    100259: "<|fim_middle|>",
    100260: "<|fim_suffix|>",
    100276: "<|endofprompt|>",
}
_ENCODINGS = {
    50256: Encoding("gpt2", {50256: _END}),
    50280: Encoding("gpt2", {50256: _END}),
    100256: Encoding("llama3", _CL100K),
    128000: _llama3(),
    151643: _qwen(),
    199998: Encoding("gpt4o", {199999: _END, 200018: "<|endofprompt|>"}),
}
"""The encodings in use, by how many ranks their files have."""


def looks_like_ranks(data: bytes) -> bool:
    """Whether a file begins as a rank file does: base64, a space, a number."""
    token, _, rank = data[:200].partition(b"\n")[0].partition(b" ")
    return bool(token) and rank.strip().isdigit()


def from_ranks(path: Path, settings: Settings) -> Blueprint:
    """The tokenizer of a tiktoken rank file. Raises DataError for a damaged one and for one of unknown pattern.

    A file of none of the encodings in use needs its pattern as `pat_str` in tokenizer_config.json; its special
    tokens are those of added_tokens_decoder.
    """
    ranks = read_ranks(path)
    known = _ENCODINGS.get(len(ranks))
    pattern = settings.text("pat_str", PATTERNS[known.pattern] if known else "")
    if not pattern:
        raise DataError(
            f"{path}: {len(ranks)} ranks, which is none of the encodings in use; "
            "give its pattern as pat_str in tokenizer_config.json"
        )
    given = {i: name for i, (name, _) in settings.added.items()}
    special = given or dict(known.special if known else {})
    names = {rank: token for token, rank in ranks.items()}
    for number, name in special.items():
        if number in names or not 0 <= number < 2 * len(ranks) + 1000:
            raise DataError(
                f"{settings.folder}: special token {name!r} has id {number}, which does not fit {path}"
            )
        names[number] = name
    return build(
        [names.get(i, f" no token {i}") for i in range(max(names) + 1)],
        merges({token: -float(rank) for token, rank in ranks.items()}),
        [pattern],
        str(path),
        special=list(special.values()),
        affixes=known.affixes if known and set(known.affixes.prefix) <= set(names.values()) else Affixes(),
        roles={
            **((known.roles if known else None) or {}),
            **settings.roles({n: i for i, n in names.items()}),
        },
        chat_template=settings.chat_template,
        whole_words=True,
    )


def read_ranks(path: Path) -> dict[str, int]:
    """Token (in the alphabet of bytes) -> rank. Raises DataError naming the first line that is damaged."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    ranks: dict[str, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        if not line.strip():
            continue
        token, _, rank = line.partition(b" ")
        try:
            name = "".join(letters[byte] for byte in b64decode(token, validate=True))
            value = int(rank)
        except (binascii.Error, ValueError):
            raise DataError(f"{path}: line {number}: expected a token in base64 and its rank") from None
        if not name or name in ranks or value in seen or not 0 <= value < 1 << 24:
            raise DataError(f"{path}: line {number}: an empty token, or token or rank {value} stands twice")
        ranks[name] = value
        seen.add(value)
    if not set(letters.values()) <= set(ranks):
        raise DataError(f"{path}: not every single byte has a rank; the file is cut off or no rank file")
    return ranks


def from_merges(folder: Path, settings: Settings) -> Blueprint:
    """The tokenizer of vocab.json and merges.txt. Raises DataError where a merge makes no token."""
    path = folder / "merges.txt"
    names = read_vocabulary(folder / "vocab.json")
    numbers = {name: i for i, name in enumerate(names)}
    pairs = []
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.removesuffix("\r").partition(" ")
        if not {left, right, left + right} <= numbers.keys():
            raise DataError(f"{path}: line {number}: {line[:60]!r} joins no two tokens to a third")
        pairs.append((left, right))
    for number, (name, _) in sorted(settings.added.items()):
        if name not in numbers and number == len(names):
            names.append(name)
    roles = settings.roles({name: i for i, name in enumerate(names)})
    special = [n for n in dict.fromkeys([*roles.values(), *settings.extra]) if n in set(names)]
    special += [n for n, marked in settings.added.values() if marked and n not in special and n in set(names)]
    affixes = Affixes()
    if settings.kind in ("roberta", "bart", "longformer"):
        affixes = Affixes(["<s>"], ["</s>"], ["</s>", "</s>"])
    qwen = settings.kind.startswith("qwen")
    return build(
        names,
        pairs,
        [PATTERNS["qwen2" if qwen else "gpt2"]],
        str(path),
        special=special,
        affixes=affixes,
        roles={role: name for role, name in roles.items() if name in set(names)},
        chat_template=settings.chat_template,
        prefix_space=settings.flag("add_prefix_space", False),
        nfc=qwen,
    )


def build(
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    patterns: Sequence[str],
    origin: str,
    *,
    special: Sequence[str],
    roles: Mapping[str, str],
    users: Sequence[str] = (),
    affixes: Affixes = NO_AFFIXES,
    chat_template: str | None = None,
    whole_words: bool = False,
    prefix_space: bool = False,
    nfc: bool = False,
) -> Blueprint:
    """A byte-level BPE. `patterns` cut one after the other; `users` are tokens that a text may spell.

    Raises DataError where a token stands twice or a special one is missing.
    """
    check_distinct(names, origin)
    numbers = {name: i for i, name in enumerate(names)}
    for name in [*special, *users, *affixes.prefix, *affixes.suffix]:
        if name not in numbers:
            raise DataError(f"{origin}: the vocabulary has no token {name!r}")
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": whole_words,
        "vocab": numbers,
        "merges": [list(pair) for pair in pairs],
    }
    added = [added_token(numbers[n], n, special=True) for n in dict.fromkeys(special)]
    added += [
        {**added_token(numbers[n], n, special=False), "normalized": False}
        for n in users
        if n not in set(special)
    ]
    value = definition(
        model=model,
        normalizer=[{"type": "NFC"}] if nfc else [],
        pre_tokenizer=_cuts(patterns, prefix_space, origin),
        decoder=[{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}],
        added=added,
        post_processor=template(affixes, numbers),
    )
    return Blueprint(value, dict(roles), origin, chat_template)


def _cuts(patterns: Sequence[str], prefix_space: bool, origin: str) -> list[dict[str, Any]]:
    """The pre-tokenizer's steps."""
    last = {
        "type": "ByteLevel",
        "add_prefix_space": prefix_space,
        "trim_offsets": True,
        "use_regex": prefix_space,
    }
    if not prefix_space:
        return [*(split(pattern) for pattern in patterns), last]
    if list(patterns) != [PATTERNS["gpt2"]]:  # the space has to be there before the first cut
        raise DataError(f"{origin}: add_prefix_space is supported with GPT-2's pattern alone")
    return [last]
