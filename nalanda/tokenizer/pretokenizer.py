"""Where words begin and end, and how tokens become text again: the parts around a subword model.

    normalizer(prefix_space=True, lowercase=False)    before: a space is put in front, so that a word is the same
                                                      piece at the start of a text and inside it
    pretokenizer("bpe")                               cuts text into words; no piece of a vocabulary crosses a cut
    decoder("bpe", prefix_space=True)                 tokens -> exactly the text that was encoded

A space stays a space and belongs to the word after it, so nothing stands for it and nothing needs escaping: a
literal U+2581 in the text is a character like any other. What one word is:

    " क्षेत्र"   letters with all their combining marks, ZWJ and ZWNJ, and the space before them
    "7"         each digit for itself (with its marks, as in a keycap emoji), so numbers are always spelled alike
    " ...)"     a run of punctuation and symbols, emoji with their joiners, and the space before them
    "\\n"        every other white space for itself; of several spaces all but the last are one word
"""

from __future__ import annotations

from typing import Literal

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

Kind = Literal["bpe", "unigram", "wordpiece"]
CONTINUATION = "##"
"""What WordPiece writes in front of a piece that does not begin a word."""

# A word is cut after this many characters: the subword models are worse than linear in a word's length, and a
# 50 MB line without a space must not stop the machine.
LONGEST_WORD = 256
_JOINERS = r"\x{200C}\x{200D}"
_WORD = rf"[\p{{L}}\p{{M}}{_JOINERS}]"
_MARK = rf"[\p{{M}}{_JOINERS}]"


def pattern(kind: Kind) -> str:
    """The regular expression (Oniguruma) whose matches are the words; together they cover every text."""
    # WordPiece marks a continuation with "##": if "#" never stands beside another in a word, no piece at a word's
    # start can look like one.
    hash_alone = rf" ?\#{_MARK}*" if kind == "wordpiece" else None
    excluded = r"\s\p{L}\p{N}" + (r"\#" if hash_alone else "")
    parts = [
        rf" ?{_WORD}{{1,{LONGEST_WORD}}}(?!{_MARK})",
        rf" ?{_WORD}{{1,{LONGEST_WORD}}}",  # a pile of marks longer than a word may be
        rf"\p{{N}}{_MARK}*",
        hash_alone,
        rf" ?[^{excluded}\p{{M}}][^{excluded}]{{0,{LONGEST_WORD - 1}}}",
        rf" {{1,{LONGEST_WORD}}}(?= )",
        r"\s",
    ]
    return "|".join(part for part in parts if part)


def pretokenizer(kind: Kind) -> pre_tokenizers.PreTokenizer:
    """Cuts a text into the words of `pattern`."""
    return pre_tokenizers.Split(Regex(pattern(kind)), behavior="isolated")


def normalizer(*, prefix_space: bool, lowercase: bool) -> normalizers.Normalizer | None:
    """What happens to a text before it is cut. NFC is the corpus's work; nothing here repairs text."""
    steps: list[normalizers.Normalizer] = []
    if lowercase:
        steps.append(normalizers.Lowercase())
    if prefix_space:
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence(steps) if steps else None


def decoder(kind: Kind, *, prefix_space: bool) -> decoders.Decoder:
    """Joins tokens: byte tokens become characters, and the one space put in front is taken away."""
    steps: list[decoders.Decoder] = []
    if kind == "wordpiece":
        steps.append(decoders.Replace(Regex(f"^{CONTINUATION}"), ""))
    steps += [decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
