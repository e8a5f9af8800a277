"""Train, dev and test by hash, and training rows too near to a test row.

A row's split depends on nothing but its English side (its text, where it has none): SHA-256 of the split key, as an
integer, modulo `modulo`. So a sentence stands in one split in all languages, whatever is added to the corpus later.

    config.of(split_key("Sri Lanka"))                  # "train", "dev" or "test"
    near = NearIndex(test_keys, threshold=0.8)
    near.has_neighbour("sri lanka rupees")             # True where a test key has Jaccard >= 0.8 with it

Jaccard similarity is that of the sets of character trigrams of two split keys. The search is exact, by prefix
filtering (Bayardo, Ma, Srikant 2007, "Scaling up all pairs similarity search"): two sets that are as near as the
threshold share one of their first, rarest trigrams, so only rows that do are compared.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from nalanda.config import Config
from nalanda.corpus.document import Document

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class SplitConfig(Config):
    """Residues of the hash that are test and dev. Training rows at Jaccard >= `near` to them go (0: none go)."""

    modulo: int = Field(default=50, ge=1)
    test: tuple[int, ...] = (7,)
    dev: tuple[int, ...] = (8,)
    near: float = Field(default=0.8, ge=0, le=1)
    near_to: tuple[Literal["dev", "test"], ...] = ("test",)

    @model_validator(mode="after")
    def _residues(self) -> SplitConfig:
        used = [*self.test, *self.dev]
        if any(not 0 <= residue < self.modulo for residue in used):
            raise ValueError(f"residues of test and dev must be from 0 to modulo - 1 = {self.modulo - 1}")
        if len(set(used)) != len(used):
            raise ValueError("a residue is given twice in test and dev")
        return self

    def of(self, key: str) -> Split:
        """The split of the rows whose split key is `key`."""
        residue = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest(), "big") % self.modulo
        return "test" if residue in self.test else "dev" if residue in self.dev else "train"


def key_side(document: Document, english: str) -> str:
    """The side that decides a row's split: the English one of a pair, else the text."""
    if document.target is not None and document.target_language == english and document.language != english:
        return document.target
    return document.text


def trigrams(key: str) -> frozenset[str]:
    """The character trigrams of a key; of a shorter one, the key itself."""
    if len(key) < 3:
        return frozenset((key,))
    return frozenset(key[index : index + 3] for index in range(len(key) - 2))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection over that of the union."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


class NearIndex:
    """Held-out keys, arranged for finding whether a key has one of them at Jaccard >= `threshold`."""

    def __init__(self, keys: Iterable[str], threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} is outside (0, 1]")
        self.threshold = threshold
        self._sets = [trigrams(key) for key in dict.fromkeys(keys)]
        self._frequency = Counter(gram for grams in self._sets for gram in grams)
        self._rows: dict[str, list[int]] = {}
        for row, grams in enumerate(self._sets):
            for gram in self._prefix(grams):
                self._rows.setdefault(gram, []).append(row)

    def _least(self, size: int) -> int:
        """The fewest trigrams that a set of `size` shares with one that is as near as the threshold."""
        return max(1, math.ceil(self.threshold * size - 1e-9))

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        """The rarest trigrams, of which a near set must have one; ties go by the alphabet, for one fixed order."""
        order = sorted(grams, key=lambda gram: (self._frequency[gram], gram))
        return order[: len(order) - self._least(len(order)) + 1]

    def has_neighbour(self, key: str) -> bool:
        """Whether a held-out key is as near to `key` as the threshold."""
        grams = trigrams(key)
        tried: set[int] = set()
        for gram in self._prefix(grams):
            for row in self._rows.get(gram, ()):
                other = self._sets[row]
                if (
                    row in tried
                    or not self._least(len(grams)) <= len(other) <= len(grams) / self.threshold + 1e-9
                ):
                    continue
                tried.add(row)
                if jaccard(grams, other) >= self.threshold:
                    return True
        return False
