"""SentencePiece's normalizer, exactly: the leftmost longest match of a compiled map is replaced, nothing else.

    charsmap = CharsMap(blob, protected=["<sep>"], origin="spiece.model")
    charsmap("ﬁ  Ａ")         # "fi  A"

The `tokenizers` library applies the same map to one grapheme at a time and takes its shortest match, so it neither
composes "e" with a mark in a longer grapheme nor keeps what follows a match inside one. This is the exact algorithm;
a text without any character that the map knows (nearly all NFC text) costs one search of a regular expression.

The blob (`precompiled_charsmap`) is a double-array trie of UTF-8 keys (darts-clone: 32-bit units), then the
replacements, each ended by a zero byte; a key's value is the place of its replacement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from nalanda.base.errors import DataError

_LONGEST_KEY = 128
_MOST_NODES = 1_000_000
_KEPT: dict[bytes, dict[str, str]] = {}


class CharsMap:
    """Replaces characters as the map says; `protected` strings stay as they are. See the file's heading."""

    def __init__(
        self, blob: bytes, protected: Iterable[str] = (), origin: str = "precompiled_charsmap"
    ) -> None:
        """Raises DataError when the map is damaged."""
        self._outputs = _table(blob, origin)
        # Longer keys go first at a place: SentencePiece asks for user-defined symbols before the map.
        self._protected = sorted(filter(None, set(protected)), key=lambda symbol: -len(symbol))
        self._longest = max(map(len, self._outputs), default=0)
        single = {key for key in self._outputs if len(key) == 1}
        first = {key[0] for key in self._outputs if len(key) > 1}
        second = {key[1] for key in self._outputs if len(key) > 1}
        parts = [re.escape(symbol) for symbol in self._protected]
        parts += [_class(single)] if single else []
        parts += [f"{_class(first)}(?={_class(second)})"] if first else []
        self._candidates = re.compile("|".join(parts)) if self._outputs else None

    def __call__(self, text: str) -> str:
        """`text` with every leftmost longest match replaced."""
        if self._candidates is None:
            return text
        found = self._candidates.search(text)
        if found is None:
            return text
        parts, done = [], 0
        while found is not None:
            place = found.start()
            parts.append(text[done:place])
            taken, output = self._match(text, place)
            parts.append(output)
            done = place + taken
            found = self._candidates.search(text, done)
        return "".join([*parts, text[done:]])

    def _match(self, text: str, place: int) -> tuple[int, str]:
        for symbol in self._protected:
            if text.startswith(symbol, place):
                return len(symbol), symbol
        for size in range(self._longest, 0, -1):
            output = self._outputs.get(text[place : place + size])
            if output is not None and len(text) - place >= size:
                return size, output
        return 1, text[place]


def check_charsmap(blob: bytes, origin: str) -> None:
    """Raises DataError where a map is damaged: the Rust library would panic."""
    _table(blob, origin)


def _class(characters: set[str]) -> str:
    """A regular expression's class of the characters, as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges) + "]"


def _table(blob: bytes, origin: str) -> dict[str, str]:
    """Key -> replacement; kept, since making it of the usual map takes half a second."""
    if blob not in _KEPT:
        while len(_KEPT) > 3:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[blob] = dict(_entries(blob, origin))
    return _KEPT[blob]


def _entries(blob: bytes, origin: str) -> Iterator[tuple[str, str]]:
    """(key, replacement) for every entry of a compiled map."""
    if not blob:
        return
    size = int.from_bytes(blob[:4], "little")
    if len(blob) < 4 or size % 4 or size > len(blob) - 4 or size == 0:
        raise DataError(f"{origin}: damaged charsmap, a trie of {size} bytes in {len(blob)} bytes")
    units = np.frombuffer(blob, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    outputs = _Outputs(blob[4 + size :], origin)
    for keys, values in _keys(units, origin):
        width = keys.shape[1]
        flat = keys.tobytes()
        try:
            for row, value in enumerate(values.tolist()):
                yield flat[row * width : (row + 1) * width].decode(), outputs[value]
        except UnicodeDecodeError:
            raise DataError(f"{origin}: damaged charsmap, an entry is not UTF-8") from None


class _Outputs(dict[int, str]):
    """The replacement that begins at a byte."""

    def __init__(self, blob: bytes, origin: str) -> None:
        self.blob, self.origin = blob, origin

    def __missing__(self, place: int) -> str:
        end = self.blob.find(b"\0", place)
        if place > len(self.blob) or end < 0:
            raise DataError(f"{self.origin}: damaged charsmap, a replacement lies outside of it")
        self[place] = self.blob[place:end].decode()
        return self[place]


def _keys(units: np.ndarray, origin: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The keys of a double-array trie as (bytes, values), level by level: uint8 (keys, length) and int64 (keys,)."""
    children = _Children(units)
    places, keys = _offset(units[:1]), np.zeros((1, 0), dtype=np.uint8)
    visited = 0
    for _ in range(_LONGEST_KEY):
        visited += children.count(places)
        if visited > _MOST_NODES:  # branches may share their ends, so there can be more of them than units
            raise DataError(f"{origin}: damaged charsmap, it has no end")
        rows, nodes = children.of(places)
        if not len(nodes):
            return
        labels = (units[nodes] & 0xFF).astype(np.uint8)
        keys = np.concatenate([keys[rows], labels[:, None]], axis=1)
        places = nodes ^ _offset(units[nodes])
        ends = (units[nodes] >> 8 & 1).astype(bool)
        if (places[ends] >= len(units)).any():
            raise DataError(f"{origin}: damaged charsmap, the trie points outside of itself")
        if ends.any():
            yield keys[ends], units[places[ends]] & 0x7FFFFFFF
    raise DataError(f"{origin}: damaged charsmap, a key of more than {_LONGEST_KEY} bytes")


class _Children:
    """The children of nodes: a child stands at its parent's place XOR its label, so all are found by sorting."""

    def __init__(self, units: np.ndarray) -> None:
        labels = units & 0x800000FF
        nodes = np.nonzero((labels > 0) & (labels < 256))[0]
        parents = nodes ^ labels[nodes]
        order = np.argsort(parents, kind="stable")
        self.nodes, self.parents = nodes[order], parents[order]

    def count(self, places: np.ndarray) -> int:
        """How many children there are, before any memory is taken for them."""
        first, last = self._range(places)
        return int((last - first).sum())

    def _range(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.searchsorted(self.parents, places, side="left"), np.searchsorted(
            self.parents, places, side="right"
        )

    def of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row in `places`, node) of every child."""
        first, last = self._range(places)
        counts = last - first
        rows = np.repeat(np.arange(len(places)), counts)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.nodes[np.repeat(first, counts) + inside]


def _offset(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & 0x200) >> 6)
