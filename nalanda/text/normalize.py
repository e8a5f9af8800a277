"""Canonical form of text, and the key by which a corpus is split.

nfc("é")                            # one code point
split_key("Sri-Lanka  (ISLAND)")    # "sri lanka island"
"""

from __future__ import annotations

import functools
import re
import unicodedata

# Accents that any script may carry. Python's \\W breaks words at them, and so do keys of Latin text, by their
# definition; the vowel signs and viramas of a script are part of its words.
_GENERAL_MARKS = (
    (0x0300, 0x036F),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0xFE00, 0xFE0F),
    (0xFE20, 0xFE2F),
)


@functools.cache
def _not_word_or_mark() -> re.Pattern[str]:
    """Runs of what is neither a word character nor a combining mark that belongs to a script."""
    points = [
        point
        for point in range(0x20000)  # beyond are ideographs and variation selectors
        if unicodedata.category(chr(point))[0] == "M"
        and not any(low <= point <= high for low, high in _GENERAL_MARKS)
    ]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    marks = "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)
    return re.compile(f"[^\\w{marks}]+")


_NOT_WORD = re.compile(r"\W+")
_JOINER_IN_WORD = re.compile("(?<=[^\\x00-\\u02ff])[\\u200c\\u200d]+")


def nfc(text: str) -> str:
    """`text` in Unicode Normalization Form C."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def split_key(text: str) -> str:
    """`text` as NFKC, lower case, each run of non-word characters one space, stripped.

    For text in Latin script "non-word" is Python's `\\W`. In other scripts vowel signs, viramas and other
    marks of the script belong to the word, and joiners (ZWJ, ZWNJ) inside a word are left out.
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    if folded.isascii():
        return _NOT_WORD.sub(" ", folded).strip()
    return _not_word_or_mark().sub(" ", _JOINER_IN_WORD.sub("", folded)).strip()
