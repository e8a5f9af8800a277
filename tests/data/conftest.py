"""A tokenizer of whole numbers, stores of random texts, and one source of each kind: what the tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from nalanda.base.errors import DataError
from nalanda.data.denoise import Denoise, DenoiseConfig
from nalanda.data.masking import Masked, MaskedConfig
from nalanda.data.mixture import Mixture
from nalanda.data.next_sentence import NextSentence, NextSentenceConfig
from nalanda.data.packing import CausalConfig, Packed
from nalanda.data.pairs import Pairs, PairsConfig
from nalanda.data.source import Source
from nalanda.data.store import TokenStore, open_store
from nalanda.tokenizer.tokenizer import ROLES

LANGUAGES = ("eng_Latn", "hin_Deva", "tam_Taml")


class FakeTokenizer:
    """Words are numbers; ids 0-9 are special, then tags, then 16 sentinels, then words."""

    pad, bos, eos, unk, mask = 0, 1, 2, 3, 4
    sentinels: ClassVar[list[int]] = list(range(20, 36))
    special_ids = frozenset(range(40))
    fingerprint = "fake"
    roles, affixes, tag_style = ROLES, ([], []), "nalanda"

    def __init__(self, vocabulary: int = 400) -> None:
        self.vocabulary = vocabulary
        self.target = self
        self.word_starts = np.arange(vocabulary) % 3 != 0

    def language(self, code: str) -> int:
        if code not in LANGUAGES:
            raise DataError(f"no tag for {code}")
        return 10 + LANGUAGES.index(code)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [
            [40 + sum(map(ord, word)) % (self.vocabulary - 40) for word in text.split()] for text in texts
        ]

    def role(self, name: str) -> int:
        return int(getattr(self, name))

    def has(self, number: int) -> bool:
        return True

    def token(self, number: int) -> str:
        return f"<{number}>" if number in self.special_ids else f"▁{number}"

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return " ".join(self.token(int(i)) for i in ids if not (skip_special and int(i) in self.special_ids))


def sequences(count: int, seed: int = 0, low: int = 1, high: int = 30) -> list[list[int]]:
    """Random texts of `low` to `high` - 1 words, none of them special."""
    generator = np.random.default_rng(seed)
    return [generator.integers(40, 400, generator.integers(low, high)).tolist() for _ in range(count)]


class Maker:
    """Makes stores and sources in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokenizer, self._stores = folder, FakeTokenizer(), 0

    def store(self, rows: list[list[int]], turn: tuple[int, ...] = (0, 1, 2)) -> TokenStore:
        """A store of `rows` whose languages are taken in turn."""
        self._stores += 1
        codes = [LANGUAGES[turn[i % len(turn)]] for i in range(len(rows))]
        return TokenStore.write(
            self.folder / f"store-{self._stores}", rows, 400, {"made": "in a test"}, codes
        )

    def sentences(self, texts: list[list[list[int]]]) -> TokenStore:
        """A store of sentences that knows which text each belongs to."""
        self._stores += 1
        with open_store(self.folder / f"store-{self._stores}", 400) as writer:
            for number, text in enumerate(texts):
                for sentence in text:
                    writer.add(sentence, sample=number)
        return TokenStore(self.folder / f"store-{self._stores}")

    def values(self, **changes: Any) -> dict[str, Any]:
        """The values of a config."""
        return {
            "corpus": self.folder,
            "tokenizer": self.folder,
            "batch_tokens": 512,
            "max_length": 64,
            **changes,
        }

    def pairs(
        self, seed: int = 1, count: int = 300, turn: tuple[int, ...] = (0, 1, 2), **changes: Any
    ) -> Pairs:
        source, target = self.store(sequences(count, 1)), self.store(sequences(count, 2), turn)
        return Pairs(PairsConfig(**self.values(**changes)), source, target, self.tokenizer, seed)

    def denoise(self, seed: int = 1, count: int = 300, **changes: Any) -> Denoise:
        config = DenoiseConfig(
            **self.values(**{"noise": {"edit": 1, "sentinels": 1, "romanize": 1, "clean": 1}, **changes})
        )
        latin = [row if i % 3 else [] for i, row in enumerate(sequences(count, 4))]
        store, romanized = self.store(sequences(count, 3)), self.store(latin)
        return Denoise(config, store, self.tokenizer, seed, romanized)

    def causal(self, seed: int = 1, count: int = 300, **changes: Any) -> Packed:
        config = CausalConfig(**self.values(**changes))
        return Packed(config, self.store(sequences(count, 5, 0, 150)), self.tokenizer, seed)

    def masked(self, seed: int = 1, count: int = 300, **changes: Any) -> Masked:
        store = self.store(sequences(count, 6, 1, 100))
        return Masked(MaskedConfig(**self.values(**changes)), store, self.tokenizer, seed)

    def next_sentence(self, seed: int = 1, count: int = 60, **changes: Any) -> NextSentence:
        rows = iter(sequences(10 * count, 7, 1, 20))
        texts = [[next(rows) for _ in range(1 + i % 6)] for i in range(count)]
        config = NextSentenceConfig(**self.values(**changes))
        return NextSentence(config, self.sentences(texts), self.tokenizer, seed)

    def mixture(self, seed: int = 1) -> Mixture:
        return Mixture([self.pairs(seed), self.denoise(seed), self.denoise(seed + 1)], [2, 1, 1], picks=2)


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Makes stores and sources."""
    return Maker(tmp_path)


KINDS: dict[str, Callable[[Maker, int], Source]] = {
    "pairs": lambda make, seed: make.pairs(seed, micro_batch_tokens=200),
    "pairs, ladder": lambda make, seed: make.pairs(
        seed, length_multiple=8, row_multiple=4, batch_tokens=1024
    ),
    "pairs, temperature": lambda make, seed: make.pairs(seed, turn=(0, 0, 0, 1, 1, 2), temperature=3),
    "denoise": lambda make, seed: make.denoise(seed, micro_batch_tokens=256),
    "causal": lambda make, seed: make.causal(seed, micro_batch_tokens=128),
    "causal, best fit": lambda make, seed: make.causal(seed, packing="best_fit", row_multiple=4),
    "masked": lambda make, seed: make.masked(seed, whole_words=True),
    "next_sentence": lambda make, seed: make.next_sentence(seed, row_multiple=2),
    "mixture": lambda make, seed: make.mixture(seed),
}


@pytest.fixture(params=list(KINDS))
def make_source(request: pytest.FixtureRequest, make: Maker) -> Callable[[int], Source]:
    """Makes a source of every kind in turn; called twice with one seed it makes equal ones."""
    return lambda seed: KINDS[request.param](make, seed)
