"""Tokens for the eye: pieces of characters, lone marks, controls and hostile text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import pytest

from nalanda.evaluate.token_labels import Label, label, right_to_left, spelled, token_bytes, visible


class Pieces:
    """A vocabulary with what each of its tokens decodes to when alone."""

    def __init__(self, *pairs: tuple[str, str], special: int = 0) -> None:
        self.pairs, self.special_ids = pairs, frozenset(range(special))

    def token(self, number: int) -> str:
        if number >= len(self.pairs):
            raise ValueError(f"token id {number} is outside the vocabulary")
        return self.pairs[number][0]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(self.pairs[i][1] for i in ids)


def of(name: str, text: str) -> Label:
    return label(Pieces((name, text)), 0)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Ġthe", " the", ("the", "text", True)),
        ("▁the", "the", ("the", "text", True)),
        (" the", "the", ("the", "text", True)),
        ("ing", "ing", ("ing", "text", False)),
        ("##ing", "##ing", ("##ing", "text", False)),
        ("▁", "", ("␣", "text", False)),
        (" ", "", ("␣", "text", False)),
        ("▁", "▁", ("▁", "text", False)),
        ("Ċ", "\n", ("⏎", "text", False)),
        ("ĠĠĠ", "   ", ("␣␣", "text", True)),
        ("<0xE0>", "\ufffd", ("E0", "bytes", False)),
        ("<0x41>", "A", ("A", "text", False)),
        ("à¤", "\ufffd", ("E0 A4", "bytes", False)),
        ("Ġà¤", " \ufffd", ("E0 A4", "bytes", True)),
        ("क", "क", ("क", "text", False)),
        ("ि", "ि", ("ि", "text", False)),
        ("</script>", "</script>", ("</script>", "text", False)),
        ("\u202eevil", "\u202eevil", ("U+202Eevil", "text", False)),
        ("\x00", "\x00", ("U+0000", "text", False)),
        ("\u200d", "\u200d", ("ZWJ", "text", False)),
        ("\u0301", "\u0301", ("\u25cc\u0301", "text", False)),
        ("", "", ("", "text", False)),
    ],
)
def test_a_label(name: str, text: str, expected: tuple[str, str, bool]) -> None:
    found = of(name, text)
    assert (found.text, found.kind, found.word) == expected
    assert found.name == name


def test_special_tokens_go_by_their_name_and_ids_beyond_the_tokenizer_by_their_number() -> None:
    pieces = Pieces(("[CLS]", ""), ("a", "a"), special=1)
    assert label(pieces, 0) == Label("[CLS]", "[CLS]", "special", False)
    assert label(pieces, 7) == Label("", "#7", "special", False)


def test_joiners_stay_where_they_shape_letters() -> None:
    assert visible("क्\u200dष") == "क्\u200dष"
    assert visible("क्\u200c") == "क्\u200c"
    assert visible(" \u200cक") == "␣ZWNJक"


def test_nothing_invisible_is_left() -> None:
    hidden = [chr(i) for i in range(0x3000) if unicodedata.category(chr(i)) in ("Cc", "Cf", "Zl", "Zp")]
    for character in hidden:
        if character not in "\u200c\u200d":
            assert character not in visible(f"a{character}b")


def test_every_byte_has_a_letter_in_byte_level_bpe() -> None:
    known = {token_bytes(chr(i)) for i in range(0x200)} - {None}
    assert known == {bytes([byte]) for byte in range(256)}
    assert token_bytes("<0x0A>") == b"\n"
    assert token_bytes("क") is None


def test_pieces_say_which_character_they_spell() -> None:
    names = ["<0xE0>", "<0xA4>", "<0x95>", "<0xE0>", "<0xA4>", "<0xBF>"]
    text = [label(Pieces(*((name, "\ufffd") for name in names)), i) for i in range(6)]
    assert spelled(text) == ["क"] * 3 + ["ि"] * 3
    assert spelled(text[:2]) == ["", ""]
    assert spelled([*text[:2], of("a", "a"), text[2]]) == [""] * 4
    assert spelled([]) == []


def test_direction_is_that_of_most_letters() -> None:
    assert right_to_left("سلام ok")
    assert not right_to_left("नमस्ते")
    assert not right_to_left("")
