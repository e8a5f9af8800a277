"""How a token is shown to a person: never as broken letters, never as a character that cannot be seen.

    label(tokenizer, 1234)  ->  Label(name="Ġthe", text="the", kind="text", word=True)

A token may be a piece of a character's bytes (shown as `E0 A4`), a mark without its letter (shown on a dotted
circle), a control or a direction mark (shown by its code), or a special token (shown by its name).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACES = ("\u2581", "\u0120")  # SentencePiece's and byte-level BPE's sign for a space
_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u200c": "ZWNJ", "\u200d": "ZWJ", " ": "␣", "\xa0": "NBSP"}
_JOINERS = "\u200c\u200d"
_NEEDS_CIRCLE = ("COMBINING", "ARABIC", "HEBREW", "SYRIAC", "VEDIC", "VARIATION SELECTOR")
_DOTTED_CIRCLE = "\u25cc"


class Names(Protocol):
    """The part of a tokenizer that labels need."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    def token(self, number: int) -> str: ...
    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class Label:
    """A token for the eye. `word`: a space stands before it; `name` is how the vocabulary writes it."""

    name: str
    text: str
    kind: Literal["text", "special", "bytes"]
    word: bool


def label(tokenizer: Names, number: int) -> Label:
    """The label of token `number`; one that the tokenizer has not (a padded embedding matrix) is shown by its id."""
    try:
        name = tokenizer.token(number)
    except ValueError:
        return Label("", f"#{number}", "special", False)
    if number in tokenizer.special_ids:
        return Label(name, visible(name), "special", False)
    text = tokenizer.decode([number], skip_special=False)
    raw = token_bytes(name)
    if raw is not None and ("\ufffd" in text or not text):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return Label(name, raw.lstrip(b" ").hex(" ").upper(), "bytes", raw[:1] == b" ")
    if not text.strip(" ") and name in (" ", *_SPACES):  # a space alone, which a decoder may swallow
        return Label(name, _SIGNS[" "], "text", False)
    text = text or name
    word = name[:1] == " " or text[:1] == " " or (name[:1] in _SPACES and text[:1] != name[:1])
    text = text[1:] if text[:1] == " " and len(text) > 1 else text
    return Label(name, visible(text), "text", word)


def visible(text: str) -> str:
    """`text` with every character that cannot be seen, or that would turn others round, shown as a sign or code."""
    shown = [_shown(character, text[:place]) for place, character in enumerate(text)]
    joined = "".join(shown)
    start = next((i for i, c in enumerate(joined) if c not in "#␣"), 0)
    if joined and unicodedata.category(joined[start])[0] == "M" and not _shapes_alone(joined[start]):
        joined = joined[:start] + _DOTTED_CIRCLE + joined[start:]
    return joined


def _shapes_alone(mark: str) -> bool:
    """Whether browsers put a lone mark on a dotted circle of their own: so they do for India's and its neighbours'
    scripts, where a second circle would come from another font and stand beside it."""
    return not unicodedata.name(mark, "").startswith(_NEEDS_CIRCLE)


def _shown(character: str, before: str) -> str:
    if character in _JOINERS and before and unicodedata.category(before[-1])[0] in "LM":
        return character  # inside a word they shape its letters
    if character == " " and before.strip():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    if (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
        and character != " "
    ):
        return f"U+{ord(character):04X}"
    return character


def token_bytes(name: str) -> bytes | None:
    """The bytes that a token's name stands for: `<0xE0>`, or a name in byte-level BPE's alphabet; else None."""
    match = _BYTE.fullmatch(name)
    if match:
        return bytes([int(match[1], 16)])
    alphabet = _alphabet()
    if name and all(character in alphabet for character in name):
        return bytes(alphabet[character] for character in name)
    return None


@cache
def _alphabet() -> dict[str, int]:
    """Byte-level BPE's letter for each byte (Radford et al. 2019): itself if it prints, else from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def spelled(labels: Sequence[Label]) -> list[str]:
    """For each token that is a piece of a character's bytes: the character its run of pieces spells; else ''."""
    whole = [""] * len(labels)
    pieces: list[int] = []
    raw = b""
    for place, item in enumerate(labels):
        if item.kind != "bytes":
            pieces, raw = [], b""
            continue
        pieces.append(place)
        raw += token_bytes(item.name) or b""
        try:
            text = visible(raw.decode("utf-8").lstrip(" "))
        except UnicodeDecodeError:
            continue  # not whole yet
        for piece in pieces:
            whole[piece] = text
        pieces, raw = [], b""
    return whole


def right_to_left(text: str) -> bool:
    """Whether most letters of `text` are of a script that is written from right to left."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    return sum(kind in ("R", "AL") for kind in kinds) > sum(kind == "L" for kind in kinds)
