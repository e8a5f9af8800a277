"""SentencePiece's Unigram search in its own arithmetic, for the few texts where rounding decides.

    search = Search(scores, numbers, unknown=0, unknown_score=-22.5, byte_numbers=None)
    for row in search.doubtful(rows):            # rows of ids that the Rust search found
        rows[row] = search.encode(normalized[row])

SentencePiece adds scores up as 32-bit floats, the `tokenizers` library as 64-bit ones. "0" "00" and "00" "0" have the
same sum, and other neighbours have nearly the same, so what the floats lose on the way decides. A row is doubtful
where two neighbours could be cut elsewhere at a difference within that loss; only such rows are searched again.
(Three pieces against two at nearly the same sum are not looked for.)
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import numpy as np

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_LOSS = 2.0**-21  # a few units in the last place of a 32-bit sum, relative to the sum
_FAR = 1e9
_LOWEST = -1e5  # where SentencePiece begins its sums anew
_FLOAT = struct.Struct("f")


def unigram_search(definition: str, unknown_score: float) -> Search:
    """The search over the vocabulary of a tokenizer.json that `sentencepiece.build` wrote."""
    model = json.loads(definition)["model"]
    numbers = {name: i for i, (name, _) in enumerate(model["vocab"])}
    byte_numbers = (
        [numbers.get(f"<0x{byte:02X}>", -1) for byte in range(256)] if model["byte_fallback"] else None
    )
    # Single bytes stand for unknown characters, and what no text may reach is far dearer than that.
    scores = {name: unknown_score if _BYTE.fullmatch(name) else score for name, score in model["vocab"]}
    return Search(scores, numbers, model["unk_id"], unknown_score, byte_numbers)


def single_precision(value: float) -> float:
    """`value` rounded to a 32-bit float."""
    return _FLOAT.unpack(_FLOAT.pack(value))[0]


class Search:
    """The most probable pieces of a text; see the file's heading."""

    def __init__(
        self,
        scores: Mapping[str, float],
        numbers: Mapping[str, int],
        unknown: int,
        unknown_score: float,
        byte_numbers: Sequence[int] | None,
    ) -> None:
        """`scores` and `numbers` (ids) of the pieces that a text may have; `byte_numbers`: the ids of 256 bytes."""
        self._scores, self._numbers = scores, numbers
        self._unknown, self._unknown_score, self._bytes = unknown, unknown_score, byte_numbers
        self._longest = max(map(len, scores), default=0)
        self._names = {number: name for name, number in numbers.items()}
        self._size = 1 + max(self._names, default=0)
        self._by_number = np.full(self._size, abs(unknown_score))
        self._by_number[list(self._names)] = [abs(scores[name]) for name in self._names.values()]
        self._gaps: dict[int, float] = {}

    def doubtful(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """The numbers of the rows that have to be searched again."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        if len(flat) < 2:
            return []
        owner = np.repeat(np.arange(len(rows)), lengths)
        totals = np.bincount(owner, self._by_number[np.minimum(flat, self._size - 1)], minlength=len(rows))
        inside = owner[:-1] == owner[1:]
        pairs, place = np.unique((flat[:-1] * self._size + flat[1:])[inside], return_inverse=True)
        gaps = np.array([self._gap(pair) for pair in pairs.tolist()])
        at_risk = gaps[place] <= _LOSS * totals[owner[:-1][inside]]
        return np.unique(owner[:-1][inside][at_risk]).tolist()

    def _gap(self, pair: int) -> float:
        """How near another cut of two neighbours comes to their sum."""
        gap = self._gaps.get(pair)
        if gap is None:
            left, right = (self._names.get(number, "") for number in divmod(pair, self._size))
            gap = self._gaps[pair] = self._nearest(left, right) if left and right else _FAR
        return gap

    def _nearest(self, left: str, right: str) -> float:
        total, text = self._scores[left] + self._scores[right], left + right
        nearest = _FAR
        for cut in range(1, len(text)):
            first, second = self._scores.get(text[:cut]), self._scores.get(text[cut:])
            if cut != len(left) and first is not None and second is not None:
                nearest = min(nearest, abs(first + second - total))
        return nearest

    def encode(self, text: str) -> list[int]:
        """The ids of a normalized text (Kudo 2018, section 3.2: Viterbi), sums kept as 32-bit floats."""
        best, start, found = [0.0] * (len(text) + 1), [-1] * (len(text) + 1), [""] * (len(text) + 1)
        scores, longest = self._scores, self._longest
        for i in range(len(text)):
            if i and start[i] < 0:
                continue
            if best[i] < _LOWEST:
                reached = [j for j in range(i + 1, min(i + longest, len(text)) + 1) if start[j] >= 0]
                for j in [*reached, i]:
                    best[j] = single_precision(best[j] - best[i])
            so_far, single = best[i], False
            for end in range(i + 1, min(i + longest, len(text)) + 1):
                score = scores.get(text[i:end])
                if score is None:
                    continue
                single = single or end == i + 1
                total = single_precision(so_far + score)
                if start[end] < 0 or total > best[end]:
                    best[end], start[end], found[end] = total, i, text[i:end]
            if not single:
                total = single_precision(so_far + self._unknown_score)
                if start[i + 1] < 0 or total > best[i + 1]:
                    best[i + 1], start[i + 1], found[i + 1] = total, i, ""
        cuts = [len(text)]
        while cuts[-1] > 0:
            cuts.append(start[cuts[-1]])
        return self._ids(text, cuts[::-1], found)

    def _ids(self, text: str, cuts: list[int], found: list[str]) -> list[int]:
        ids: list[int] = []
        unknown_before = False
        for begin, end in pairwise(cuts):
            unknown = not found[end]
            if not unknown:
                ids.append(self._numbers[found[end]])
            elif self._bytes is not None:
                ids += [self._bytes[byte] for byte in text[begin:end].encode()]
            elif not unknown_before:
                ids.append(self._unknown)
            unknown_before = unknown
        return ids
