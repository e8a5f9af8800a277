"""A tokenizer of whole numbers, and stores made of random texts: what the tests of sources share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nalanda.base.errors import DataError
from nalanda.data.store import TokenStore

LANGUAGES = ("eng_Latn", "hin_Deva", "tam_Taml")


class FakeTokenizer:
    """Words are numbers; ids 0-9 are special, then tags, then 16 sentinels, then words."""

    pad, bos, eos, unk, mask = 0, 1, 2, 3, 4
    sentinels = list(range(20, 36))
    special_ids = frozenset(range(40))
    fingerprint = "fake"

    def __init__(self, vocabulary: int = 400) -> None:
        self.vocabulary = vocabulary
        self.word_starts = np.arange(vocabulary) % 3 != 0

    def language(self, code: str) -> int:
        if code not in LANGUAGES:
            raise DataError(f"no tag for {code}")
        return 10 + LANGUAGES.index(code)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[40 + sum(map(ord, word)) % (self.vocabulary - 40) for word in text.split()] for text in texts]

    def token(self, number: int) -> str:
        return f"<{number}>" if number in self.special_ids else f"▁{number}"

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return " ".join(self.token(int(i)) for i in ids if not (skip_special and int(i) in self.special_ids))


def sequences(count: int, seed: int, low: int = 1, high: int = 30, vocabulary: int = 400) -> list[list[int]]:
    """Random texts of `low` to `high` - 1 tokens, none of them special."""
    generator = np.random.default_rng(seed)
    return [generator.integers(40, vocabulary, generator.integers(low, high)).tolist() for _ in range(count)]


def store(
    folder: Path, rows: list[list[int]], languages: bool = True, name: str = "store", skew: bool = False
) -> TokenStore:
    """A store of `rows`, in languages taken in turn, or in shares 1/2, 1/3, 1/6 where `skew`."""
    turn = [0, 0, 0, 1, 1, 2] if skew else [0, 1, 2]
    codes = [LANGUAGES[turn[i % len(turn)]] for i in range(len(rows))] if languages else None
    return TokenStore.write(folder / name, rows, 400, {"made": "in a test"}, codes)
