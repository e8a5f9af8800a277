"""SentencePiece models: the .model file read without its library, and its segmentation as a `tokenizers` pipeline.

    model = read(Path("spiece.model"))                  # pieces, scores, types, normalizer
    blueprint = build(model, model.pieces, special=model.control, unk="<unk>")

`names` may be another list than the model's own pieces: a fairseq dictionary, a list moved by one, more tokens at its
end. A name is the id of the piece with that name; a piece without a name follows at the end, beyond `ids_end`, and
becomes <unk>. What the pipeline says in Rust, and why each step is there:

    Precompiled          the charsmap; inside Nalanda `charsmap.CharsMap` goes before instead, which is exact
    Replace              spaces at both ends go, runs of spaces become one       (remove_extra_whitespaces)
    Prepend              the dummy prefix, where anything is left
    Replace " " -> "▁"
    Replace              in a text that spells a control symbol, one character that no piece has, by another such
    BPE | Unigram        the whole text is one word, as in SentencePiece
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nalanda.base.errors import DataError
from nalanda.tokenizer.blueprint import (
    NO_AFFIXES,
    Affixes,
    Blueprint,
    Exact,
    added_token,
    definition,
    read_bytes,
    template,
)
from nalanda.tokenizer.charsmap import check_charsmap
from nalanda.tokenizer.protobuf import Value, fields

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces, as SentencePiece and GGUF number them."""
SPACE = "▁"
_UNIGRAM, _BPE, _WORD, _CHAR = range(1, 5)
_KINDS: dict[int, Literal["bpe", "unigram"]] = {_UNIGRAM: "unigram", _BPE: "bpe", _CHAR: "bpe"}
_UNKNOWN_PENALTY = 10.0  # SentencePiece's kUnkPenalty, which the tokenizers library has too
# SentencePiece means the best score times the length, less 0.1; its best score begins at the smallest positive float
# and every score is negative, so that it is 0.
_USER_SCORE = -0.1
_STAND_IN = "\U0010ffff"  # a noncharacter: no vocabulary has a piece for it


@dataclass(frozen=True)
class Model:
    """How a text is cut into pieces."""

    kind: Literal["bpe", "unigram"]
    pieces: list[str]
    scores: list[float]
    types: list[int]
    charsmap: bytes = b""
    dummy_prefix: bool = True
    collapse: bool = True
    """Whether spaces at the ends go and runs of spaces become one (`remove_extra_whitespaces`)."""
    escape: bool = True
    byte_fallback: bool = False
    merged: bool = True
    """Whether pieces are joined at all: not in a model of single characters."""
    origin: str = "sentencepiece.model"
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def control(self) -> list[str]:
        """The names of the unknown and control symbols, which no text reaches."""
        return [p for p, kind in zip(self.pieces, self.types, strict=True) if kind in (UNKNOWN, CONTROL)]

    def of_type(self, *kinds: int) -> dict[str, float]:
        """Piece -> score, of the types asked for."""
        rows = zip(self.pieces, self.scores, self.types, strict=True)
        return {piece: score for piece, score, kind in rows if kind in kinds}


def read(path: Path) -> Model:
    """The model in a SentencePiece file. Raises DataError naming the file where it is damaged or of another kind."""
    origin = str(path)
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Value] = {}
    rules: dict[int, Value] = {}
    for number, value in fields(memoryview(read_bytes(path)), origin):
        if number == 1:
            pieces.append(_piece(value, origin, len(pieces)))
        elif number in (2, 3):
            (trainer if number == 2 else rules).update(fields(_message(value, origin), origin))
    kind = trainer.get(3, _UNIGRAM)
    if not pieces or kind not in _KINDS:
        what = "has no pieces" if not pieces else "is a model of whole words, which is not supported"
        raise DataError(f"{origin}: {what}; expected a SentencePiece model of kind BPE, Unigram or char")
    if trainer.get(24):
        raise DataError(f"{origin}: treat_whitespace_as_suffix is not supported")
    names, scores, types = (list(column) for column in zip(*pieces, strict=True))
    check_distinct(names, origin)
    charsmap = rules.get(2, b"")
    model = Model(
        kind=_KINDS[int(kind)],
        pieces=names,
        scores=scores,
        types=types,
        charsmap=bytes(charsmap) if isinstance(charsmap, memoryview) else b"",
        dummy_prefix=bool(rules.get(3, True)),
        collapse=bool(rules.get(4, True)),
        escape=bool(rules.get(5, True)),
        byte_fallback=bool(trainer.get(35, False)),
        merged=kind != _CHAR,
        origin=origin,
        roles=_roles(trainer, names),
    )
    if UNKNOWN not in types:
        raise DataError(f"{origin}: no piece is the unknown one; the file is damaged")
    return model


def _message(value: Value, origin: str) -> memoryview:
    if not isinstance(value, memoryview):
        raise DataError(
            f"{origin}: damaged, a number stands where a message belongs; is it a SentencePiece model?"
        )
    return value


def _piece(value: Value, origin: str, place: int) -> tuple[str, float, int]:
    row: dict[int, Value] = dict(fields(_message(value, origin), origin))
    name, score, kind = row.get(1, b""), row.get(2, 0.0), row.get(3, NORMAL)
    if isinstance(name, int | float) or not isinstance(score, float) or not math.isfinite(score):
        raise DataError(f"{origin}: piece {place} is damaged: its name is no text or its score no number")
    if not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
        raise DataError(f"{origin}: piece {place} is of the unknown type {kind!r}")
    try:
        return bytes(name).decode(), score, kind
    except UnicodeDecodeError:
        raise DataError(f"{origin}: piece {place} is not UTF-8") from None


def _roles(trainer: Mapping[int, Value], names: Sequence[str]) -> dict[str, str]:
    """Role -> name by the trainer's ids (40 ... 43); -1, the default of pad, is none."""
    defaults = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    found: dict[str, str] = {}
    for role, (number, default) in defaults.items():
        value = int(trainer.get(number, default))
        value -= 2**64 if value >= 2**63 else 0  # negative numbers are written as two's complement
        if 0 <= value < len(names):
            found[role] = names[value]
    return found


def check_distinct(names: Sequence[str], origin: str) -> None:
    """Raises DataError naming the first token that stands twice."""
    if len(set(names)) == len(names):
        return
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        if name in seen:
            raise DataError(f"{origin}: token {name!r} stands twice, as number {seen[name]} and {place}")
        seen[name] = place


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two pieces, the piece of the highest score first.

    SentencePiece and tiktoken keep no list of merges: any two neighbours that make a piece may merge.
    """
    rows: list[tuple[str, str]] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                rows.append((left, right))
    return rows


def build(
    model: Model,
    names: Sequence[str],
    special: Collection[str],
    unk: str,
    affixes: Affixes = NO_AFFIXES,
) -> Blueprint:
    """A tokenizer that cuts as `model` does and numbers as `names` does.

    `special` names the tokens that no text reaches, `affixes` what stands before and after a text for the model.
    Raises DataError where `names` has a token twice or lacks one of `special`, `unk` or `affixes`.
    """
    check_distinct(names, model.origin)
    check_charsmap(model.charsmap, model.origin)
    numbers = {name: i for i, name in enumerate(names)}
    for name in [*special, unk, *affixes.prefix, *affixes.suffix]:
        if name not in numbers:
            raise DataError(f"{model.origin}: the vocabulary has no token {name!r}")
    pieces = model.of_type(NORMAL, USER_DEFINED, BYTE)
    left_over = [piece for piece in pieces if piece not in numbers]
    every = [*names, *left_over]
    maker = _Bpe if model.kind == "bpe" else _Unigram
    made = maker(model, every, set(special), unk)
    added = [added_token(numbers[name], name, special=True) for name in dict.fromkeys(special)]
    exact = Exact(
        charsmap=bool(model.charsmap),
        protected=sorted(model.of_type(USER_DEFINED)) if model.charsmap else [],
        ids_end=len(names) if left_over else None,
        unk=numbers[unk] if left_over else None,
        unknown_score=made.unknown_score,
    )
    value = definition(
        model=made.model,
        normalizer=[*_normalizer(model), *made.last],
        pre_tokenizer=made.pre_tokenizer,
        decoder=_decoder(model),
        added=[*added, *made.added],
        post_processor=template(affixes, numbers),
    )
    return Blueprint(value, {"unk": unk}, exact=exact, origin=model.origin)


def _normalizer(model: Model) -> list[dict[str, Any]]:
    space = SPACE if model.escape else " "
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": b64encode(model.charsmap).decode()})
    if model.collapse:
        # A literal U+2581 at the end goes too: SentencePiece strips after it has escaped.
        steps.append(replace(rf"\A +|[ {space}]+\z", "", regex=True))
        steps.append(replace(" {2,}", " ", regex=True))
    if model.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": space})
    if model.escape:
        steps.append(replace(" ", SPACE))
    return steps


def replace(pattern: str, content: str, regex: bool = False) -> dict[str, Any]:
    """A replacing step of a tokenizer.json, as normalizer or decoder."""
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": pattern}, "content": content}


def _decoder(model: Model) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [replace(SPACE, " ")] if model.escape else []
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


class _Bpe:
    """The model part of a BPE. `last` and `pre_tokenizer` are what it needs around it, `added` further tokens."""

    def __init__(self, model: Model, names: list[str], special: set[str], unk: str) -> None:
        vocab = {name: i for i, name in enumerate(names)}
        normal = model.of_type(NORMAL) if model.merged else {}
        users = sorted(set(model.of_type(USER_DEFINED)) - special, key=lambda name: (-len(name), name))
        # Where a text is not changed in front, added tokens find user-defined symbols in it; else a pre-tokenizer
        # must, after the prefix is in place, and a word that is one symbol is looked up whole.
        self.unknown_score: float | None = None
        whole = bool(users) and (model.dummy_prefix or bool(model.charsmap))
        self.last: list[dict[str, Any]] = []
        self.added = [] if whole else [added_token(vocab[u], u, special=False) for u in users]
        self.pre_tokenizer: list[dict[str, Any]] = []
        if whole:
            edges = [*users, *([] if model.dummy_prefix else [""])]
            cuts = [_inner_cut(name, edges, normal) for name in sorted(special) if len(name) > 1]
            self.pre_tokenizer = [split("|".join([*(escape(user) for user in users), *cuts]))]
        self.model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": whole,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges(normal)],
        }


def _inner_cut(name: str, edges: Sequence[str], known: Collection[str]) -> str:
    """An expression for one character of a control symbol that stands alone as a word, so that it is none.

    `edges` are the symbols between which it would; "" is the beginning or end of the text. The character is one with
    a piece, if any: unknown ones side by side have to stay together.
    """
    place = next((i for i, character in enumerate(name) if character in known), 0)
    behind = "|".join((escape(edge) if edge else r"\A") + escape(name[:place]) for edge in edges)
    ahead = "|".join(escape(name[place + 1 :]) + (escape(edge) if edge else r"\z") for edge in [*edges, ""])
    return f"(?<={behind}){escape(name[place])}(?={ahead})"


class _Unigram:
    """The model part of a Unigram; see `_Bpe`."""

    def __init__(self, model: Model, names: list[str], special: set[str], unk: str) -> None:
        normal, users = model.of_type(NORMAL), model.of_type(USER_DEFINED)
        low = min(normal.values(), default=0.0)
        scores = {**normal, **dict.fromkeys(users, _USER_SCORE)}
        self.unknown_score: float | None = float(np.float32(low) - np.float32(_UNKNOWN_PENALTY))
        alphabet = {piece for piece in scores if len(piece) == 1}
        # Every entry of the library's vocabulary can be matched. Those that must not be are dearer than the
        # characters they are written with; where a character has no piece, that is no help (an unknown one is dearer
        # than the dearest entry), and that character is exchanged.
        never = low * (2 + max(len(name) for name in names)) - _UNKNOWN_PENALTY
        hidden = [name for name in names if name not in scores and not set(name) <= alphabet]
        byte_names = set(model.of_type(BYTE))
        self.last = _exchanges(
            [n for n in hidden if n in special or n in byte_names], alphabet, model.byte_fallback
        )
        rows: list[list[Any]] = []
        for name in names:
            known = name in scores or name in special or name in byte_names or len(name) == 1
            score = scores.get(name, low - _UNKNOWN_PENALTY if len(name) == 1 else never)
            # A space is in no normalized text, so a name with one in front is never found.
            rows.append([name if known or not model.escape else " " + name, score])
        self.added: list[dict[str, Any]] = []
        self.pre_tokenizer: list[dict[str, Any]] = []
        self.model = {
            "type": "Unigram",
            "unk_id": names.index(unk),
            "vocab": rows,
            "byte_fallback": model.byte_fallback,
        }


def _exchanges(names: list[str], alphabet: set[str], in_bytes: bool) -> list[dict[str, Any]]:
    """Steps that change one character without a piece in each text that spells one of `names`."""
    found: dict[str, list[str]] = {}
    for name in names:
        place = next(i for i, character in enumerate(name) if character not in alphabet)
        before, character, after = name[:place], name[place], name[place + 1 :]
        behind = f"(?<={escape(before)})" if before else ""
        found.setdefault(character, []).append(f"{behind}{escape(character)}(?={escape(after)})")
    steps = []
    for character, patterns in found.items():
        # With byte fallback the character's own byte tokens take its place, as they would anyway.
        content = "".join(f"<0x{byte:02X}>" for byte in character.encode()) if in_bytes else _STAND_IN
        steps.append(replace("|".join(patterns), content, regex=True))
    return steps


def escape(text: str) -> str:
    """`text` as a regular expression of the library (Oniguruma) that matches just it."""
    return "".join(c if c.isalnum() and c.isascii() else rf"\x{{{ord(c):X}}}" for c in text)


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """A pre-tokenizing step of a tokenizer.json that cuts at the matches of a regular expression."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
